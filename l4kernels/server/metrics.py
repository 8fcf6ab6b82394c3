"""What the server counts, for Prometheus."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from l4kernels.engine.engine import Engine, Stats

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
_BETWEEN = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_WHOLE = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)

_GAUGES: tuple[tuple[str, str, str], ...] = (
    ("requests_waiting", "Samples that wait for a slot.", "waiting"),
    ("requests_running", "Samples whose prompts are computed or that are at a token.", "running"),
    ("slots", "Samples that can run at once.", "slots"),
    ("kv_cache_tokens", "Room of the KV cache.", "kv_tokens"),
    ("kv_cache_tokens_in_use", "Tokens that running samples hold.", "kv_tokens_in_use"),
    ("kv_cache_tokens_cached", "Tokens kept for prompts that begin alike.", "kv_tokens_cached"),
)
_COUNTERS: tuple[tuple[str, str, str], ...] = (
    ("steps", "Decode steps.", "steps"),
    ("generation_tokens", "New tokens.", "new_tokens"),
    ("prompt_tokens", "Tokens of prompts that were begun.", "prompt_tokens"),
    ("prefix_cache_hit_tokens", "Of those, found in the cache.", "reused_tokens"),
    ("preemptions", "Samples that had to wait again for want of pages.", "preemptions"),
    ("samples_finished", "Samples that ended, for whatever reason.", "finished"),
)


class _EngineCollector:
    """Asks the engine when somebody asks for the metrics."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        stats: Stats = self._engine.stats()
        for name, about, field in _GAUGES:
            yield GaugeMetricFamily(f"l4k_{name}", about, value=getattr(stats, field))
        for name, about, field in _COUNTERS:
            yield CounterMetricFamily(f"l4k_{name}", about, value=getattr(stats, field))


class Metrics:
    """Of one server; names begin with `l4k_`, times are in seconds."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        self.first_token = self._times("time_to_first_token_seconds", "From a request's arrival.",
                                       _FIRST)  # fmt: skip
        self.between_tokens = self._times("inter_token_seconds", "Between tokens of a sample.",
                                          _BETWEEN)  # fmt: skip
        self.duration = self._times("request_seconds", "Whole requests.", _WHOLE)
        self.answers = Counter(
            "l4k_http_answers", "By status.", ["route", "status"], registry=self.registry
        )

    def _times(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"l4k_{name}", about, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def finished_requests(self) -> float:
        return self._sample("l4k_request_seconds_count")

    def seconds_spent(self) -> float:
        return self._sample("l4k_request_seconds_sum")

    def _sample(self, name: str) -> float:
        return self.registry.get_sample_value(name) or 0.0
