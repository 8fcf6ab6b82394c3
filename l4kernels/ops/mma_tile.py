"""One tile through TMA and wgmma: the self-test of the tensor path."""

import torch
from torch import Tensor

from l4kernels.ops.check import Checker
from l4kernels.ops.registry import Work, op, tensor_bytes

TILE = 64


def _check_mma_tile(a: Tensor, b: Tensor) -> None:
    check = Checker("mma_tile")
    for name, t in (("a", a), ("b", b)):
        check.dtype(name, t, (torch.bfloat16,))
        check.shape(name, t, [TILE, TILE])
        check.contiguous(name, t)
    check.same_device(a=a, b=b)


def _work_mma_tile(a: Tensor, b: Tensor) -> Work:
    return Work(flops=2 * TILE**3, bytes=tensor_bytes(a, b, a))


@op(check=_check_mma_tile, work=_work_mma_tile)
def mma_tile(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b.T` for one 64 x 64 x 64 tile: the shortest program through TMA and wgmma.

    Args:
        a: `[64, 64]` bfloat16, contiguous.
        b: `[64, 64]` bfloat16, contiguous.

    Returns:
        `[64, 64]` bfloat16; accumulated in float32 and rounded once.

    >>> mma_tile(torch.eye(64).bfloat16(), torch.eye(64).bfloat16()).sum()
    tensor(64., dtype=torch.bfloat16)
    """
    return (a.float() @ b.float().T).to(a.dtype)
