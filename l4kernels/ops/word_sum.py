"""Touch every byte of a buffer once: the read ceiling of a device, and a fingerprint of data."""

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.contract import Contract
from l4kernels.ops.registry import Work, op, tensor_bytes


def _check_word_sum(args: Bound) -> None:
    contract = Contract(args)
    contract.contiguous("data", args.data)
    contract.multiple("the bytes of data", tensor_bytes(args.data), 16)


def _work_word_sum(args: Bound) -> Work:
    return Work(flops=0, bytes=tensor_bytes(args.data))


@op(
    check=_check_word_sum,
    work=_work_word_sum,
    fake=lambda args: args.data.new_empty(1, dtype=torch.int32),
)
def word_sum(data: Tensor) -> Tensor:
    """Sum of all 32-bit words of a buffer, modulo 2^32.

    Args:
        data: any shape and dtype, contiguous, a multiple of 16 bytes.

    Returns:
        `[1]` int32, the sum's low 32 bits.

    >>> word_sum(torch.ones(8, dtype=torch.int32))
    tensor([8], dtype=torch.int32)
    """
    if data.numel() == 0:
        return data.new_zeros(1, dtype=torch.int32)
    return data.reshape(-1).view(torch.int32).sum(dtype=torch.int64).to(torch.int32).reshape(1)
