"""Ids that arrive as data: the CPU bodies check them, the kernels report them."""

from torch import Tensor


def require_indices(op_name: str, name: str, ids: Tensor, low: int, high: int) -> None:
    """Raises `IndexError` unless every id is in `[low, high)`."""
    if ids.numel() == 0:
        return
    least, most = (int(bound) for bound in ids.aminmax())
    if least < low or most >= high:
        wrong = least if least < low else most
        raise IndexError(
            f"l4kernels.{op_name}: expected every value of {name} in [{low}, {high}), got {wrong}"
        )
