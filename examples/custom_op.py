"""An op of your own, built on this package's ops and checked the way they are.

    python examples/custom_op.py

The steps are those of every kernel here: a typed reference says what the op means, the
implementation follows, both are registered with torch, and checks compare the one with the other.
To add an op with a CUDA kernel to the package itself, see docs/adding-a-kernel.md.
"""

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.testing import assert_close


def reference(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """1. What the op means: a SwiGLU feed-forward in float32, rounded once, at the end.

    Args:
        x: `[T, D]`.
        gate_up: `[2F, D]`, the gate's rows before the up projection's.
        down: `[D, F]`.
    """
    gate, up = (x.float() @ gate_up.float().T).chunk(2, -1)
    product = torch.nn.functional.silu(gate) * up
    return (product @ down.float().T).to(x.dtype)


@torch.library.custom_op("example::feed_forward", mutates_args=())
def feed_forward(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """2. How it is computed. Each op runs its kernel on a CUDA tensor, its reference on a CPU."""
    hidden = ops.gemm(x, gate_up)
    product = ops.silu_mul(hidden)
    return ops.gemm(product, down)


@feed_forward.register_fake
def _(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """3. The shape of the result, for torch.compile and torch.export."""
    return x.new_empty(x.shape[0], down.shape[0])


def floor_bytes(x: Tensor, gate_up: Tensor, down: Tensor) -> float:
    """4. The least traffic: inputs once and the result once. No implementation moves less."""
    result = feed_forward(x, gate_up, down)
    return sum(t.nbytes for t in (x, gate_up, down, result))


def check(dtype: torch.dtype, tolerance: float) -> None:
    """5. The checks: against the reference, then torch's own on schema and shapes."""
    x = torch.randn(7, 256).to(dtype)
    gate_up = torch.randn(1024, 256).to(dtype) / 16
    down = torch.randn(256, 512).to(dtype) / 16
    arguments = (x, gate_up, down)
    assert_close(feed_forward(*arguments), reference(*arguments), tolerance)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(feed_forward, arguments, test_utils=tests)
    hidden = x.new_empty(7, 1024)
    work = ops.gemm.work(x, gate_up)
    work += ops.silu_mul.work(hidden)
    work += ops.gemm.work(hidden[:, :512], down)
    ratio = work.bytes / floor_bytes(*arguments)
    print(f"{dtype}: equals its reference; {ratio:.2f} times the bytes of a fused kernel")


if __name__ == "__main__":
    torch.manual_seed(0)
    check(torch.float32, 1e-5)
    check(torch.bfloat16, 1e-2)  # two intermediate results are rounded to bfloat16
