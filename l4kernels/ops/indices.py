"""Ids that arrive as data: the CPU bodies check them, the kernels report them."""

from torch import Tensor

_FEW = 16
"""As Python's numbers these are compared sooner than by two reductions."""


def source_rows(op_name: str, permutation: Tensor, top_k: int, tokens: int) -> Tensor:
    """Of each row in expert order the token that it is a copy of, int32 `[tokens * top_k]`.

    Raises:
        IndexError: a `permutation` that leads outside.
    """
    require_indices(op_name, "permutation", permutation, 0, tokens * top_k)
    return permutation if top_k == 1 else permutation // top_k


def require_indices(op_name: str, name: str, ids: Tensor, low: int, high: int) -> tuple[int, int]:
    """Raises `IndexError` unless every one of `ids` `[n]` is in `[low, high)`.

    Returns:
        The least and the largest of them; of none: `low`, twice.
    """
    count = ids.numel()
    if count == 0:
        return low, low
    if count <= _FEW:
        values = ids.tolist()
        least, most = min(values), max(values)
    else:
        least, most = (int(bound) for bound in ids.aminmax())
    if least < low or most >= high:
        wrong = least if least < low else most
        raise IndexError(
            f"l4kernels.{op_name}: expected every value of {name} in [{low}, {high}), got {wrong}"
        )
    return least, most
