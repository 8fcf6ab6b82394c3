"""Memory of weights, and how rows get there: what decides the speed of loading on a CPU."""

import math
import mmap

import torch
from torch import Tensor

_LARGE = 4 << 20
"""Bytes from which huge pages pay; one has 2 MB."""
TURNED = 1 << 20
"""Elements of a part of a matrix that lies transposed: what a core's cache holds twice."""


def large_empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.empty`; on a CPU in huge pages where the system has them.

    The system clears every page of new memory when it is first written, which in pages of 4 KB
    takes longer than to copy a weight there.

    >>> large_empty(2, 3, dtype=torch.bfloat16, device=torch.device("cpu")).shape
    torch.Size([2, 3])
    """
    size = math.prod(shape) * dtype.itemsize
    advice = getattr(mmap, "MADV_HUGEPAGE", None)
    if device.type == "cpu" and size >= _LARGE and advice is not None:
        try:
            pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            pages.madvise(advice)
        except OSError:  # a system without, or no memory: torch says that better
            pass
        else:
            return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(shape)
    return torch.empty(shape, dtype=dtype, device=device)


def rows_first(weight: Tensor) -> Tensor:
    """A matrix `[n, K]` with contiguous rows; itself if they are.

    One that lies transposed should be a part of TURNED elements: it is gathered into the cache and
    turned there. Straight from one matrix into the other is ten times slower.
    """
    if weight.device.type != "cpu" or not lies_transposed(weight):
        return weight.contiguous()
    if weight.dtype.itemsize == 1:  # torch turns bytes four times faster than e4m3
        return weight.view(torch.uint8).t().contiguous().t().contiguous().view(weight.dtype)
    gathered = weight.t().contiguous()
    return torch.empty(weight.shape, dtype=weight.dtype).copy_(gathered.t())


def lies_transposed(weight: Tensor) -> bool:
    """Whether a matrix has its columns together, and not its rows."""
    return weight.dim() == 2 and weight.stride(0) == 1 and not weight.is_contiguous()
