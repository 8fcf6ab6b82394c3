"""Parts and copies of tensors, made only where there is something to do: each costs microseconds,
and a decoding step of a small model has hundreds of them."""

import functools

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack as in_mode


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


def scalar(value: float, like: Tensor) -> Tensor:
    """`value` as a tensor without dimensions, of the dtype and device of another; never written.

    Of a Python number torch makes one at each call, which takes longer than one row's arithmetic.

    >>> x = torch.ones(2)
    >>> x * scalar(0.5, x)
    tensor([0.5000, 0.5000])
    """
    if in_mode():  # what a mode makes, such as a tensor without data, is for itself
        return torch.tensor(value, dtype=like.dtype, device=like.device)
    return _scalar(value, like.dtype, like.device)


@functools.lru_cache(1024)
def _scalar(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def part(t: Tensor, first: int, end: int, dim: int = 0) -> Tensor:
    """`t[first:end]`, or that of another dimension.

    >>> t = torch.ones(2, 3)
    >>> part(t, 0, 2) is t, part(t, 1, 3, dim=1).shape
    (True, torch.Size([2, 2]))
    """
    return t if end - first == t.shape[dim] else t.narrow(dim, first, end - first)
