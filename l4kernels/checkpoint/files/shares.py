"""Which part of a checkpoint's tensors one of several ranks reads: the hook of tensor parallelism.

Products whose outputs are split (q, k, v, gate, up, embedding, lm_head) give each rank rows of the
weight, those whose inputs are (o, down) columns; all else every rank reads whole. Where there are
more ranks than heads of keys, several have the same ones.
"""

from dataclasses import dataclass
from typing import NamedTuple

from l4kernels.inputs.arguments import whole_number

FLOATS = ("BF16", "F16", "F32", "F64")


class Piece(NamedTuple):
    """A stored tensor: its shape, what each dimension is, and how it may be stored.

    Of `axes` "n" is the weight's outputs, "g" outputs of gate and then those of up, "k" inputs,
    "e" experts, "-" none of these. Codes packed along K and scales of groups have "k", too.
    """

    shape: tuple[int, ...]
    axes: str
    dtypes: tuple[str, ...] = FLOATS
    split: str = ""
    """The axis along which ranks share it; `Unquantised` fills it in."""
    heads: int = 0
    """Of k and v: how many they have, which more ranks than that have in common."""


@dataclass(frozen=True)
class Share:
    """Rank `rank` of `ranks`.

    >>> Share(1, 4).parts("n", 64, split="n"), Share(1, 4).parts("g", 64, split="n")
    ([slice(16, 32, None)], [slice(8, 16, None), slice(40, 48, None)])
    >>> Share(1, 4).parts("k", 64, split="n")
    [slice(None, None, None)]
    """

    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        whole_number("ranks", self.ranks, 1, 1 << 16)
        whole_number("rank", self.rank, 0, self.ranks - 1)

    def parts(self, axis: str, size: int, split: str) -> list[slice]:
        """Where the rank's part lies along a dimension of a weight that is split along `split`."""
        halves = 2 if axis == "g" else 1
        if self.ranks == 1 or not split or {"g": "n"}.get(axis, axis) != split:
            return [slice(None)]
        part, rest = divmod(size, halves * self.ranks)
        if rest:
            twice = " twice, for gate and up" if halves == 2 else ""
            raise ValueError(f"expected {self.ranks} ranks to divide a dimension of {size}{twice}")
        starts = (half * size // halves + self.rank * part for half in range(halves))
        return [slice(start, start + part) for start in starts]

    def of_heads(self, heads: int) -> "Share":
        """Of k and v of so many heads: as many ranks as there are heads, if these are fewer.

        >>> Share(5, 8).of_heads(2), Share(5, 8).of_heads(16)
        (Share(rank=1, ranks=2), Share(rank=5, ranks=8))
        """
        if heads >= self.ranks or self.ranks % heads:
            return self
        return Share(self.rank * heads // self.ranks, heads)

    def of(self, piece: Piece) -> list[list[slice]]:
        """`parts` of each dimension of a stored tensor.

        Raises:
            ValueError: the ranks do not divide one that they share.
        """
        own = self.of_heads(piece.heads) if piece.heads else self
        dimensions = zip(piece.axes, piece.shape, strict=True)
        return [own.parts(axis, size, piece.split) for axis, size in dimensions]


WHOLE = Share()
