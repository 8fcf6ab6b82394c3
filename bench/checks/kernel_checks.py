"""One case of a kernel against its typed reference; used under the emulator and on a GPU."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.checks.appended import plan_for
from bench.checks.cases import cases
from bench.checks.gemm_configs import config_cases
from bench.checks.inputs import FP8, Case
from l4kernels import testing
from l4kernels.ops import OPS
from l4kernels.ops.decode_plan import PLAN_WORDS
from l4kernels.ops.library import LIBRARY_PATH
from l4kernels.testing import assert_close

# Largest relative error against the reference, for the whole result and for any 128 x 128 tile.
# bf16 results differ by one rounding here and there (2^-9 = 2e-3 at most per value). Of e4m3 codes
# it is that of what was rounded, which the float32 sums, roots and exponentials before it carry:
# a few ulp, of which one value in 100,000 gets another code. Their scales carry the same.
BF16_ERROR, F32_ERROR, E4M3_ERROR, SCALE_ERROR = 3e-3, 1e-4, 1e-6, 2e-6
# Here both carry what the tensor core drops of the e4m3 products of a sum.
FP8_SUMS, SUM_ERROR = {"gemm_swiglu_fp8"}, 1e-3
# For many tokens weights are rounded to bf16 after their scale, as those of a bf16 product are.
ROUNDED_WEIGHTS = {"w4_gemm"}
# No arithmetic, or only such as IEEE 754 leaves no choice in: division, reciprocal, product.
EXACT = {
    "mma_tile", "word_sum", "embed", "moe_permute", "moe_permute_fp8", "quantize_fp8",
    "process_logits", "advance_step", "flash_decode_plan", "flash_prefill_plan",
}  # fmt: skip


def bound(op: str, case: Case, t: Tensor) -> float:
    """0 where arithmetic is exact: the emulator and a GPU then agree bit by bit, each with the
    reference."""
    if op in EXACT or case.name.startswith("integers"):
        return 0.0
    if op in FP8_SUMS:
        return SUM_ERROR
    f32 = SCALE_ERROR if op.endswith("_fp8") else F32_ERROR
    if op in ROUNDED_WEIGHTS:
        f32 = BF16_ERROR
    return {torch.float32: f32, FP8: E4M3_ERROR}.get(t.dtype, BF16_ERROR)


def kernel_cases(op: str, device: str = "cpu") -> list[Case]:
    """The op's cases in bfloat16.

    On a GPU those of every configuration of the GEMM as well; in the emulator they have tests.
    """
    found = list(cases(op, device, torch.bfloat16))
    return found + list(config_cases(op, device)) if device == "cuda" else found


# What a result says to others than the kernels that take it: kind and shape, and the lengths.
READABLE = {
    "flash_decode_plan": lambda plan: torch.cat([plan[:7], plan[PLAN_WORDS:]]),
    "flash_prefill_plan": lambda plan: torch.cat([plan[:7], plan[-2 * int(plan[1]) - 1 :]]),
}

# Cases in which a kernel sets the error word, and what it says.
REPORTS = {
    (op, name): "moe_route: logits (NaN)"
    for op in ("moe_route", "moe_router")
    for name in ("NaN", "NaN shared")
}


def device_error(library: Path = testing.emulator.BUILD / "libl4kernels_emulated.so") -> str:
    """What the kernels of a library have reported since the last call."""
    take = ctypes.CDLL(str(library)).l4k_take_device_error
    take.restype = ctypes.c_char_p
    return take().decode()


def mutated(op: str, case: Case) -> Iterator[tuple[str, Tensor]]:
    """The arguments that the op writes into."""
    arguments = OPS[op].overload._schema.arguments
    given = dict(zip((a.name for a in arguments), case.args, strict=False)) | case.kwargs
    for argument in arguments:
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and given.get(argument.name) is not None:
            yield argument.name, given[argument.name]


def tensors(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result or ())


def readable(op: str, result: Any) -> tuple[Tensor, ...]:
    return tuple(map(READABLE.get(op, lambda t: t), tensors(result)))


def check(op: str, case: Case) -> tuple[Tensor, ...]:
    """Runs a case on the emulator or a GPU and compares all that it returns, writes and reports."""
    if "plan" in case.kwargs and "decode" in op:  # it is one machine's; prefill's serves all
        options = case.kwargs | {"plan": plan_for(op, case.args, case.kwargs)}
        case = Case(case.name, case.args, options)
    mine, theirs = case.copy(), case.copy()
    on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in mine.args)
    library = {"library": LIBRARY_PATH} if on_gpu else {}
    device_error(**library)  # of whoever came before
    got = readable(op, OPS[op](*mine.args, **mine.kwargs))
    expected = readable(op, OPS[op].reference(*theirs.args, **theirs.kwargs))
    assert len(got) == len(expected)
    for i, (a, e) in enumerate(zip(got, expected, strict=True)):
        assert_close(a, e, bound(op, case, e), f"{op} [{case}] result {i}")
    written = zip(mutated(op, mine), mutated(op, theirs), strict=True)
    for (name, a), (_, e) in written:
        assert_close(a, e, bound(op, case, e), f"{op} [{case}] {name}")
    if on_gpu:
        torch.cuda.synchronize()
    reported = device_error(**library)
    assert reported == REPORTS.get((op, case.name), ""), f"{op} [{case}] reports {reported!r}"
    return got


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality, NaN included."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
