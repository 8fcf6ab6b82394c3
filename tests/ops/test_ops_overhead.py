"""What a call of an op costs beside the kernel, on a machine that others use, too."""

import time
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch

from l4kernels import ops

X, WEIGHT, MATRIX = torch.ones(1, 128), torch.ones(128), torch.ones(128, 128)
EPILOGUE = {
    "residual": X, "row_scale": None, "bias": None, "activation": "none",
    "out_dtype": torch.float32,
}  # fmt: skip
CALLS = {  # the op, its arguments, what stands for the result
    "rms_norm": (ops.rms_norm, (X, WEIGHT, 1e-5), {}, X),
    "gemm": (ops.gemm, (X, MATRIX), {}, X),
    "gemm with an epilogue": (ops.gemm, (X, MATRIX), EPILOGUE, X),
    "add_rms_norm": (ops.add_rms_norm, (X, X, WEIGHT, 1e-5), {}, (X, X)),
}


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels on the CPU that do nothing, for the ops of the table."""
    monkeypatch.setattr(ops.registry.Op, "direct", False)
    library = torch.library.Library("l4kernels", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that others are overridden
        for op, _, _, result in {op.name: (op, *rest) for op, *rest in CALLS.values()}.values():
            library.impl(
                op.name, lambda *_, result=result, **__: result, "CPU", allow_override=True
            )
    yield
    library._destroy()


def best_seconds(calls: list[Callable[[], object]], rounds: int = 200) -> list[float]:
    """The least of many short runs, one call after the other: what disturbs hits all of them."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            started = time.thread_time()
            for _ in range(40):
                call()
            best[i] = min(best[i], time.thread_time() - started)
    return best


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(("mode", "limit"), [(torch.inference_mode, 1.3), (torch.enable_grad, 1.5)])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_costs_little_more_than_torchs_own(name, mode, limit):
    op, args, kwargs, _ = CALLS[name]
    with mode():
        for _ in range(5):
            ours, theirs = best_seconds(
                [
                    lambda: op(*args, **kwargs),
                    lambda: getattr(torch.ops.l4kernels, op.name)(*args, **kwargs),
                ]
            )
            if ours <= limit * theirs:
                return
    pytest.fail(f"{ours / theirs:.2f} times the direct call")


def test_a_contract_is_checked_once_for_a_layout(monkeypatch):
    checked = []
    check = ops.rms_norm._check
    monkeypatch.setattr(ops.rms_norm, "_check", lambda args: (checked.append(args), check(args)))
    monkeypatch.setattr(ops.rms_norm, "_layouts", set())
    for rows in (1, 1, 2, 1, 2):
        ops.rms_norm(torch.ones(rows, 8), torch.ones(8))
    assert len(checked) == 2
    for wrong in (torch.ones(7), torch.ones(8).double(), torch.ones(8, device="meta")):
        for call in (ops.rms_norm, ops.rms_norm, ops.rms_norm.reference):
            with pytest.raises((TypeError, ValueError), match=r"l4kernels.rms_norm: expected"):
                call(torch.ones(1, 8), wrong)
    with pytest.raises(ValueError, match="expected the last dimension of x to be contiguous"):
        ops.rms_norm(torch.ones(8, 2).T, torch.ones(8))


def test_what_is_remembered_stays_bounded(monkeypatch):
    monkeypatch.setattr(ops.registry, "_MAX_LAYOUTS", 10)
    for columns in range(2, 60, 2):
        ops.silu_mul(torch.ones(1, columns))
        assert len(ops.silu_mul._layouts) <= 10
