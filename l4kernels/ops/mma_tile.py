"""One tile through TMA and wgmma: the self-test of the tensor path."""

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.contract import Contract
from l4kernels.ops.registry import Work, op, tensor_bytes

TILE = 64


def _check_mma_tile(args: Bound) -> None:
    contract = Contract(args)
    contract.tensor("a", torch.bfloat16, [TILE, TILE], "contiguous")
    contract.tensor("b", torch.bfloat16, [TILE, TILE], "contiguous")


def _work_mma_tile(args: Bound) -> Work:
    return Work(flops=2 * TILE**3, bytes=tensor_bytes(args.a, args.b, args.a))


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
