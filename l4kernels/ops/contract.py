"""The contract of an op: what it expects of its arguments, stated once, a line for each tensor."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import Checker


class Contract(Checker):
    """What an op expects of its bound arguments, a line for each tensor."""

    def __init__(self, args: Bound):
        super().__init__(args.op)
        self.args = args
        self.sizes: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        dtypes: torch.dtype | Sequence[torch.dtype],
        shape: Sequence[int | str],
        layout: Literal["any", "rows", "contiguous"] = "any",
    ) -> None:
        """The argument is None, or a tensor of one of `dtypes`, of `shape` and of the layout: in
        "rows" the last dimension is contiguous.
        """
        t = getattr(self.args, name)
        if t is None:
            return
        self.dtype(name, t, (dtypes,) if isinstance(dtypes, torch.dtype) else dtypes)
        self.shape(name, t, shape)
        if layout == "rows":
            self.last_dim_contiguous(name, t)
        elif layout == "contiguous":
            self.contiguous(name, t)

    def shape(self, name: str, t: Tensor, expected: Sequence[int | str]) -> None:
        """As `Checker.shape`, but a letter is one size wherever it stands: `sizes["M"]`."""
        known = [self.sizes.get(e, e) if isinstance(e, str) else e for e in expected]
        super().shape(name, t, known)
        last = [e for e in known if e != "..."]
        found = zip(last, t.shape[t.dim() - len(last) :], strict=True)
        self.sizes.update((e, size) for e, size in found if isinstance(e, str))
