"""Parts and copies of tensors, made only where there is something to do: each costs microseconds,
and a decoding step of a small model has a thousand of them."""

import torch
from torch import Tensor


def as_float(t: Tensor) -> Tensor:
    """`t.float()`.

    >>> t = torch.ones(2)
    >>> as_float(t) is t
    True
    """
    return t if t.dtype == torch.float32 else t.float()


def as_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t.to(dtype)`."""
    return t if t.dtype == dtype else t.to(dtype)


def part(t: Tensor, first: int, end: int, dim: int = 0) -> Tensor:
    """`t[first:end]`, or that of another dimension.

    >>> t = torch.ones(2, 3)
    >>> part(t, 0, 2) is t, part(t, 1, 3, dim=1).shape
    (True, torch.Size([2, 2]))
    """
    return t if end - first == t.shape[dim] else t.narrow(dim, first, end - first)
