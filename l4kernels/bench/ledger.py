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

from l4kernels import ops
from l4kernels.engine.kv_cache import KVCache
from l4kernels.layers.attention import AttentionMetadata
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
    """Those of one token of each of `batch` sequences, whose keys are then `context` each."""
    kv_dtype = FP8 if FORMATS[form].fp8_cache else torch.bfloat16
    model = Llama4Model(config, ModelOptions(torch.bfloat16, META, form), kv_dtype=kv_dtype)
    cache = KVCache(config, [context] * batch, dtype=kv_dtype, device=META)

    def made(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    where, lengths = made(batch), made(batch, dtype=torch.int32)
    bounds, real = made(batch + 1, dtype=torch.int32), made(batch, dtype=torch.float32)
    kinds = [
        AttentionMetadata(where, where, bounds, lengths, table, 1) for table in cache.block_tables
    ]
    with _Recorder().watching(model.layers) as recorder:
        hidden = model(where, [kinds[kind] for kind in cache.kinds], cache.layers)
        ops.sample(model.compute_logits(hidden), real, lengths, real, real, where, where)
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
    without_launches: str
    """Why launches are not known; empty where they are."""

    @property
    def bytes(self) -> float:
        return sum(row.bytes for row in self.rows)

    @property
    def floor_us(self) -> float:
        return sum(row.floor_us for row in self.rows)

    @property
    def launches(self) -> int | None:
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
    def launches(self) -> int | None:
        """Of one of the layers."""
        return _count(self.rows)

    @property
    def floor_us(self) -> float:
        return sum(row.floor_us for row in self.rows)


def _count(rows: Iterable[Row]) -> int | None:
    """Launches of all of them, if all are known."""
    counts = [len(row.launches) for row in rows if row.launches is not None]
    return sum(counts) if len(counts) == len([*rows]) else None


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
    launches: dict[Any, tuple[Launch, ...]] = {}
    problem = ""
    try:
        for call in calls:
            if call.own and not OPS[call.name].without_kernel and _layout(call) not in launches:
                found = launches_of(call.name, *call.args, sms=sms, **call.kwargs)
                launches[_layout(call)] = found
    except NotImplementedError as error:
        problem = str(error)
    rows, before = [], None
    for call in calls:
        work, own = _work(call, config, batch, context), launches.get(_layout(call))
        pair = None
        if own and before and own[0].dependent:
            pair = own[0].shared_bytes + before.shared_bytes
        floor = GPUS[gpu].floor_us(work, fp8=call.fp8)
        rows.append(Row(call.layer, call.name, work.bytes, work.flops, floor, own, pair))
        before = own[-1] if own else None if own is None else before
    return Ledger(config.name, form, gpu, batch, context, tuple(rows), planned, problem)


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
