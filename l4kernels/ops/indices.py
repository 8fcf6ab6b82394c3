"""Ids that arrive as data: the CPU bodies check them, the kernels report them."""

from torch import Tensor

_FEW = 16
"""As Python's numbers these are compared sooner than by two reductions."""


def require_indices(op_name: str, name: str, ids: Tensor, low: int, high: int) -> None:
    """Raises `IndexError` unless every one of `ids` `[n]` is in `[low, high)`."""
    if ids.numel() == 0:
        return
    if ids.numel() <= _FEW:
        values = ids.tolist()
        least, most = min(values), max(values)
    else:
        least, most = (int(bound) for bound in ids.aminmax())
    if least < low or most >= high:
        wrong = least if least < low else most
        raise IndexError(
            f"l4kernels.{op_name}: expected every value of {name} in [{low}, {high}), got {wrong}"
        )
