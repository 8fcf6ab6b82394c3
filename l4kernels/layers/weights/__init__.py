"""Formats of weights: the table that all who offer a format read, and one file for each.

The table does without torch: `l4k plan` and `l4k --help` read it.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class WeightFormat:
    """What can be said of a format without its class.

    Sizes are those of its own class. A model may hold attention and lm_head in another format.
    """

    name: str
    linear: str
    """Module and name of its subclass of `Linear`."""
    bytes_per_weight: float
    """In a bfloat16 model, with the scales of groups."""
    bytes_per_row: float = 0.0
    """For the scale of an output channel."""
    head: str = "bf16"
    """The format of lm_head in a model of this one."""
    attention: str = ""
    """The format of attention's products in a model of this one; empty: this one."""
    k_multiple: int = 1
    """What divides the input size."""
    n_multiple: int = 1
    """What divides the output size."""
    fp8_products: bool = False
    """Whether its GEMMs multiply e4m3 by e4m3, at twice the rate of bfloat16."""
    fp8_cache: bool = False
    """Whether the KV cache is e4m3 on a GPU unless told otherwise: it decides what fits there."""
    own_ops: tuple[str, ...] = ()
    """Ops that only models with weights of its class call."""
    group: int = 128
    """Of int4: weights along K that share a scale."""
    zeros: bool = False
    """Of int4: whether groups have zero points."""

    def holds(self, other: "WeightFormat") -> bool:
        """Whether codes in the other format fit into this one as they are."""
        return (self.linear, self.group, self.zeros) == (other.linear, other.group, other.zeros)

    def bytes(self, n: int, k: int, experts: int = 1) -> float:
        """Memory of weights `[experts, n, k]` in a bfloat16 model, scales included."""
        return experts * n * (k * self.bytes_per_weight + self.bytes_per_row)


_INT4 = WeightFormat(
    "int4",
    "l4kernels.layers.weights.int4.Int4Linear",
    bytes_per_weight=0.5 + 2 / 128,
    head="fp8",  # the one place where an error of int4 is not averaged away
    k_multiple=128,
    n_multiple=16,
    fp8_cache=True,
    own_ops=("w4_gemm", "quantize_int4"),
)

FORMATS = {
    form.name: form
    for form in (
        WeightFormat("bf16", "l4kernels.layers.weights.bf16.Bf16Linear", bytes_per_weight=2.0),
        WeightFormat(
            "fp8",
            "l4kernels.layers.weights.fp8.Fp8Linear",
            bytes_per_weight=1.0,
            bytes_per_row=4.0,
            head="fp8",
            k_multiple=128,
            fp8_products=True,
            own_ops=("gemm_swiglu_fp8",),
        ),
        _INT4,
        # A third of a token's bytes are attention's: what int4 saves there is 1.5 GB of Scout's 10.
        replace(_INT4, name="int4+fp8attn", attention="fp8"),
    )
}
"""What `weights=...` can be, by name."""


def int4_format(group: int, *, zeros: bool) -> WeightFormat:
    """int4 in other groups than 128, or with zero points: what a checkpoint may hold, and nothing
    that `weights=...` makes.

    >>> int4_format(32, zeros=True).name, int4_format(128, zeros=False) is FORMATS["int4"]
    ('int4-g32-zeros', True)
    """
    if group == _INT4.group and not zeros:
        return _INT4
    name = f"int4-g{group}" + ("-zeros" if zeros else "")
    size = 0.5 + (3 if zeros else 2) / group
    return replace(_INT4, name=name, bytes_per_weight=size, group=group, zeros=zeros)
