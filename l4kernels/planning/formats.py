"""Which of a model's weights are in which format."""

from dataclasses import dataclass

from l4kernels.layers.weights import FORMATS


@dataclass(frozen=True)
class Precision:
    """Storage of a weight matrix: bytes per weight, and per output row for its scale."""

    per_weight: float
    per_row: float = 0.0


def _precision(name: str) -> Precision:
    return Precision(FORMATS[name].bytes_per_weight, FORMATS[name].bytes_per_row)


BF16, FP8, INT4 = map(_precision, ("bf16", "fp8", "int4"))
_INT4_FP32 = Precision(0.5 + 4 / 128)
KV_BYTES = {"bf16": 2, "fp8": 1}


@dataclass(frozen=True)
class Format:
    """Precision of each kind of weight; embeddings, router, norms and vision stay bf16."""

    name: str
    attention: Precision = BF16
    routed: Precision = BF16
    shared: Precision = BF16
    dense: Precision = BF16
    lm_head: Precision = BF16
    fp8_cache: bool = False
    """Whether the KV cache is fp8 unless told otherwise."""

    def of(self, kind: str) -> Precision:
        return getattr(self, kind, BF16)


def _mix(
    name: str,
    *,
    attention: Precision = BF16,
    ffn: Precision = BF16,
    lm_head: Precision = BF16,
    fp8_cache: bool = False,
) -> Format:
    return Format(name, attention, ffn, ffn, ffn, lm_head, fp8_cache)


def _own(name: str) -> Format:
    """What `from_pretrained(weights=name)` makes."""
    form = FORMATS[name]
    return _mix(
        name,
        attention=_precision(form.attention or name),
        ffn=_precision(name),
        lm_head=_precision(form.head),
        fp8_cache=form.fp8_cache,
    )


PUBLISHED = {
    form.name: form
    for form in (
        Format("fp8-experts", routed=FP8),  # official Maverick FP8
        _mix("fp8-ffn", ffn=FP8),  # FP8-dynamic
        _mix("fp8-bf16head", attention=FP8, ffn=FP8),
        _mix("int4-ffn", ffn=INT4),  # W4A16
        _mix("int4-bf16head", attention=INT4, ffn=INT4),
        Format("int4-meta", routed=_INT4_FP32, shared=_INT4_FP32),
    )
}
"""Mixes of published checkpoints, for comparison: no model is made in them."""


def all_formats() -> dict[str, Format]:
    """Everything that can be planned: the formats of `FORMATS` first, then the published mixes."""
    return {name: _own(name) for name in FORMATS} | PUBLISHED
