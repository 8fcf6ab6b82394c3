"""`l4k bench ledger`: what one decode step calls, in order, and what each call costs at the least.

The step runs on tensors without data, so a model of any size takes seconds and no memory. Bytes and
FLOP are the ops' own (`op.work`), launches and shared memory what the bindings ask of the emulator.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l4kernels.engine.graphs import as_it_is
from l4kernels.engine.kv_cache import CacheShape, KVCache, Pages
from l4kernels.engine.runner import Runner
from l4kernels.engine.state import StepKind, StepState
from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights import FORMATS
from l4kernels.model.config import Llama4Config
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops import OPS, Work
from l4kernels.ops.check import FP8, NAMESPACE
from l4kernels.planning.footprint import experts_met
from l4kernels.planning.gpus import GPUS
from l4kernels.planning.plan import Plan, plan
from l4kernels.testing.emulator import Launch, launches_of

META = torch.device("meta")
SHARED_BYTES = 227 << 10
"""Of an SM that two CTAs of different kernels may share: where neighbours of a chain need more, the
second starts when the first has ended."""


@dataclass(frozen=True)
class OpCall:
    """A call that a step makes: of one of our ops, or of one of torch's that launches something."""

    layer: int | None  # None: before the layers or after them
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any

    @property
    def own(self) -> bool:
        return self.name in OPS

    @property
    def fp8(self) -> bool:
        """Products of e4m3 operands are held against the e4m3 peak."""
        return isinstance(first := self.args[0], Tensor) and first.dtype == FP8


class _Recorder(TorchDispatchMode):
    """Keeps the calls of a block that would launch something on a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[OpCall] = []
        self.layer: int | None = None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        own = function.namespace == NAMESPACE
        if own or not (function.is_view or "empty" in str(function)):
            name = function._schema.name.partition("::")[2] if own else str(function)
            self.calls.append(OpCall(self.layer, name, args, kwargs, result))
        return result

    @contextmanager
    def watching(self, layers: Any) -> Iterator["_Recorder"]:
        """Records the block, each call with the layer that makes it."""

        def enters(layer: int | None) -> Callable[..., None]:
            return lambda *_: setattr(self, "layer", layer)

        handles = [m.register_forward_pre_hook(enters(i)) for i, m in enumerate(layers)]
        handles += [m.register_forward_hook(enters(None)) for m in layers]
        try:
            with torch.inference_mode(), self:
                yield self
        finally:
            for handle in handles:
                handle.remove()


def calls_of_step(config: Llama4Config, form: str, batch: int, context: int) -> list[OpCall]:
    """Those of the engine's step: one token of each of `batch` sequences of up to `context`."""
    kv_dtype = FP8 if FORMATS[form].fp8_cache else torch.bfloat16
    model = Llama4Model(config, ModelOptions(torch.bfloat16, META, form), kv_dtype=kv_dtype)
    shape = CacheShape.of(config, kv_dtype)
    pages = Pages(*(batch * count for count in shape.needed(context)))
    cache = KVCache(config, pages, dtype=kv_dtype, device=META)
    state = StepState(config, shape, batch, context, device=META, dtype=torch.bfloat16)
    runner = Runner(model, cache, state, as_it_is, buckets=True)
    with _Recorder().watching(model.layers) as recorder:
        runner.step(batch, StepKind())
    return recorder.calls


@dataclass(frozen=True)
class Row:
    """A call with its floor and its launches; None where those are not known."""

    layer: int | None
    name: str
    bytes: float
    flops: float
    floor_us: float
    launches: tuple[Launch, ...] | None
    pair_bytes: int | None
    """Shared memory of its first launch and of the one before it, a CTA of each; None where that is
    not known, or where the launch is not a dependent one."""

    @property
    def shared_bytes(self) -> int | None:
        return max((launch.shared_bytes for launch in self.launches or ()), default=None)

    @property
    def overlaps(self) -> bool | None:
        """Whether it can start on an SM where the kernel before it still runs."""
        return None if self.pair_bytes is None else self.pair_bytes <= SHARED_BYTES

    def costs(self) -> tuple[Any, ...]:
        """Equal for equal calls of two layers."""
        return self.name, self.bytes, self.flops, self.launches


@dataclass(frozen=True)
class Ledger:
    """One decode step."""

    model: str
    format: str
    gpu: str
    batch: int
    context: int
    rows: tuple[Row, ...]
    plan: Plan
    unknown: tuple[str, ...]
    """Why launches of some calls are not known; empty where all are."""

    @property
    def bytes(self) -> float:
        return sum(row.bytes for row in self.rows)

    @property
    def floor_us(self) -> float:
        return sum(row.floor_us for row in self.rows)

    @property
    def launches(self) -> int:
        """Those that are known."""
        return _count(self.rows)

    def groups(self) -> list["Group"]:
        """Rows before the layers, of each kind of layer, and after them."""
        found: dict[Any, Group] = {}
        for layer, part in itertools.groupby(self.rows, lambda row: row.layer):
            rows = list(part)
            key = rows[0] if layer is None else tuple(row.costs() for row in rows)
            place = "" if layer is not None else "after" if found else "before"
            group = found.setdefault(key, Group(place and f"{place} the layers"))
            group.rows = rows  # of the last: the first layer has another one before it
            group.layers += [] if layer is None else [layer]
        return list(found.values())


@dataclass
class Group:
    """Equal layers, or what is outside of them."""

    place: str  # empty: layers
    layers: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Of one of the layers, those that are known."""
        return _count(self.rows)

    @property
    def floor_us(self) -> float:
        return sum(row.floor_us for row in self.rows)


def _count(rows: Iterable[Row]) -> int:
    return sum(len(row.launches or ()) for row in rows)


def ledger(
    config: Llama4Config,
    form: str,
    gpu: str = "h200",
    batch: int = 1,
    context: int = 8192,
    sms: int = 132,
) -> Ledger:
    """What a decode step of `batch` sequences calls; each has `context` keys, the new one included.

    Raises:
        ValueError: as of `plan`.

    >>> step = ledger(Llama4Config.preset("demo"), "int4", context=100)
    >>> [row.name for row in step.rows][0]
    'embed'
    """
    planned = plan(config, form, gpu, context, batch)
    calls = calls_of_step(config, form, batch, context)
    known: dict[Any, tuple[Launch, ...] | None] = {}
    rows, before, problems = [], None, dict[str, None]()
    for call in calls:
        work, layout = _work(call, config, batch, context), _layout(call)
        if layout not in known:
            known[layout], problem = _launches(call, sms)
            problems |= {problem: None} if problem else {}
        own = known[layout]
        pair = None
        if own and before and own[0].dependent:
            pair = own[0].shared_bytes + before.shared_bytes
        floor = GPUS[gpu].floor_us(work, fp8=call.fp8)
        rows.append(Row(call.layer, call.name, work.bytes, work.flops, floor, own, pair))
        before = own[-1] if own else None if own is None else before
    return Ledger(config.name, form, gpu, batch, context, tuple(rows), planned, tuple(problems))


def _launches(call: OpCall, sms: int) -> tuple[tuple[Launch, ...] | None, str]:
    """What a call launches; or None, and why that is not known."""
    if not call.own or OPS[call.name].without_kernel:
        return None, f"{call.name} runs on torch's kernels"
    try:
        return launches_of(call.name, *call.args, sms=sms, **call.kwargs), ""
    except NotImplementedError as error:  # no emulator, or no kernel
        return None, str(error).partition(";")[0]


def _layout(call: OpCall) -> tuple[Any, ...]:
    """All that decides what a call launches."""
    leaves = tree_leaves((call.args, list(call.kwargs.items())))
    return call.name, *(
        (tuple(v.shape), v.stride(), v.dtype) if isinstance(v, Tensor) else v for v in leaves
    )


def _work(call: OpCall, config: Llama4Config, batch: int, context: int) -> Work:
    """What the call must do, with the values that it depends on in place of those it has not.

    Routing is uniform: of a number of experts between two whole ones the mean of both is taken.
    """
    if not call.own:
        moved = [
            t for t in tree_leaves((call.args, call.kwargs, call.result)) if isinstance(t, Tensor)
        ]
        return Work(0.0, float(sum(t.nbytes for t in moved)))
    op = OPS[call.name]
    bound = op.signature.bind(*call.args, **call.kwargs)
    if "seqlens_k" in bound.arguments:
        bound.arguments["seqlens_k"] = torch.full((batch,), context, dtype=torch.int32)
    if bound.arguments.get("expert_offsets") is None:
        return op.work(*bound.args, **bound.kwargs)
    met = experts_met(config, batch)
    few = math.floor(met)
    parts = []
    for experts, share in ((few, few + 1 - met), (few + 1, met - few)):
        if share:
            bound.arguments["expert_offsets"] = _offsets(config, batch, experts)
            work = op.work(*bound.args, **bound.kwargs)
            parts.append(Work(share * work.flops, share * work.bytes))
    return reduce(add, parts)


def _offsets(config: Llama4Config, tokens: int, experts: int) -> Tensor:
    """Of rows that visit so many routed experts, as evenly as can be, and all the shared one."""
    rows = tokens * config.num_experts_per_tok
    counts = torch.zeros(config.num_local_experts + 1, dtype=torch.int32)
    counts[:experts] = rows // experts
    counts[: rows % experts] += 1
    counts[-1] = tokens
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).to(torch.int32)
