"""What can be known of a kernel without a GPU: its traffic, conflicts and launches, emulated."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from l4kernels import STATUS
from l4kernels.bench.shapes import PHASES, SIZES, calls
from l4kernels.ops import OPS
from l4kernels.testing import emulated

SMALL = (8, 40)
"""Token counts of the emulated cases: a decode batch and a ragged small prefill."""


@dataclass(frozen=True)
class Counters:
    """Sums over the launches of one call."""

    launches: int
    touched_bytes: int  # distinct 32-byte sectors read, and written: what HBM must deliver
    requested_bytes: int  # sectors requested times 32, and bulk copies: what L2 must deliver
    needed_bytes: float  # of the op's work model
    bank_conflicts: int
    tensor_flop: float
    needed_flop: float

    def __str__(self) -> str:
        text = (
            f"{self.launches} launches, bytes touched {self.touched_bytes / self.needed_bytes:.3f} "
            f"x needed, requested {self.requested_bytes / self.needed_bytes:.3f} x, "
            f"{self.bank_conflicts} bank conflicts"
        )
        if self.tensor_flop:
            text += f", {self.tensor_flop / self.needed_flop:.2f} x the tensor FLOP needed"
        return text


def count(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], **settings: Any) -> Counters:
    """Runs one call in the emulator and adds up its kernels' counters."""
    work = OPS[op].work(*args, **kwargs)
    with emulated(**settings) as control:
        control.reset()
        OPS[op](*args, **kwargs)
        kernels = control.counters().values()
    return Counters(
        launches=sum(k["launches"] for k in kernels),
        touched_bytes=sum(k["distinct_read_bytes"] + k["distinct_written_bytes"] for k in kernels),
        requested_bytes=sum(32 * k["sectors"] + k["bulk_bytes"] for k in kernels),
        needed_bytes=work.bytes,
        bank_conflicts=sum(k["bank_conflicts"] for k in kernels),
        tensor_flop=sum(k["flop"] for k in kernels),
        needed_flop=work.flops,
    )


def counters_of(op: str) -> Iterator[str]:
    """One line per small case; says so where an op has no kernel."""
    if op not in STATUS.kernels:
        yield f"{op}: no kernel: {STATUS.reason or 'this version has none for it'}"
        return
    # Products and attention at the demo's size: emulated, Scout's would take hours.
    model, sizes = ("demo", (40, 200)) if op in SIZES else ("scout", SMALL)
    phase = next(iter(SIZES.get(op, PHASES)))
    for call in calls(op, (model,), (phase,), {phase: sizes}):
        args, kwargs = call.make("cpu")
        yield f"{call.key.removeprefix('bench.')} emulated: {count(op, args, kwargs)}"
