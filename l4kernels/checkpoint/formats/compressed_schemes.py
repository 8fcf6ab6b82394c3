"""How compressed-tensors says that weights are quantised, in the config and in their tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from l4kernels.checkpoint.files.quantization import ADVICE, Quantization
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.fields import Fields
from l4kernels.inputs.files import shown

SUPPORTED = (
    "fp8 (one scale per tensor, output channel, group or block), int4 and int8 (per channel or "
    "group, with or without zero points), NVFP4"
)
_FORMATS = (
    "float-quantized",
    "int-quantized",
    "naive-quantized",
    "pack-quantized",
    "nvfp4-pack-quantized",
)
_ALL_FORMATS = (*_FORMATS, "mixed-precision", "dense")
_KINDS = (("float", 8), ("int", 8), ("int", 4), ("float", 4))
_MAX_SCHEMES = 64
"""Published checkpoints have one or two."""
_STRATEGIES = ("tensor", "channel", "group", "block", "tensor_group")


@dataclass(frozen=True)
class Scheme:
    """What weights of one kind look like: `bits` of a code, and what shares a scale.

    Attributes:
        type: "int" or "float".
        strategy: "tensor", "channel", "group", "block" or, of NVFP4, "tensor_group".
        group: weights along K that share a scale; 0 where `strategy` is another.
        block: rows and columns that do; (0, 0) likewise.
        zeros: whether there are zero points.
    """

    type: str
    bits: int
    strategy: str
    group: int = 0
    block: tuple[int, int] = (0, 0)
    zeros: bool = False

    @property
    def by_row(self) -> bool:
        """Whether all weights of a row share their scale."""
        return self.strategy in ("tensor", "channel")

    def __str__(self) -> str:
        names = {
            "tensor": "with one scale",
            "channel": "with a scale per channel",
            "group": f"in groups of {self.group}",
            "block": f"in blocks of {self.block[0]}x{self.block[1]}",
            "tensor_group": f"in groups of {self.group} and one scale for all",
        }
        kind = f"{'fp' if self.type == 'float' else 'int'}{self.bits}"
        return f"{kind} {names[self.strategy]}" + (" and zero points" if self.zeros else "")


@dataclass(frozen=True)
class Record:
    """The config's record: a scheme for each of its groups that quantises weights."""

    schemes: tuple[Scheme, ...]
    ignore: frozenset[str]
    """Names of modules that are not quantised; patterns are left out."""
    cache: Fields | None
    """How keys and values are quantised in the cache."""

    @classmethod
    def of(cls, said: Quantization) -> "Record":
        fields, where = said.fields, said.file
        for key in ("sparsity_config", "moe_sparsity_config", "transform_config"):
            value = fields.data.get(key)
            dense = isinstance(value, Mapping) and value.get("format") == "dense"
            if value and not (dense and key == "sparsity_config"):
                raise CheckpointError(
                    f"{where}: {key} is {shown(value)}: sparse or transformed weights cannot be "
                    f"read; supported: {SUPPORTED}; {ADVICE}"
                )
        _require_format(fields.data.get("format"), str(where))
        groups, cache = fields.data.get("config_groups"), fields.data.get("kv_cache_scheme")
        if groups is None and cache:  # the cache alone is quantised
            groups = {}
        if not isinstance(groups, Mapping) or not (groups or cache):
            raise CheckpointError(
                f"{where}: expected config_groups to say how weights are quantised, "
                f"got {shown(groups)}"
            )
        schemes = []
        for name, group in groups.items():
            place = f"{where}: config_groups {shown(name)}"
            own = Fields(group, place)
            _require_format(own.data.get("format"), place)
            if own.data.get("weights") is not None:
                schemes.append(_scheme(Fields(own.data["weights"], place)))
        ignore = fields.data.get("ignore")
        names = ignore if isinstance(ignore, list) else []
        schemes = [*dict.fromkeys(schemes)]
        if len(schemes) > _MAX_SCHEMES:
            raise CheckpointError(
                f"{where}: expected config_groups to have at most {_MAX_SCHEMES} different ways to "
                f"quantise weights, got {len(schemes)}"
            )
        return cls(
            tuple(schemes),
            frozenset(name for name in names if isinstance(name, str)),
            None if cache is None else Fields(cache, f"{where}: kv_cache_scheme"),
        )

    def describes(self, stored: Scheme, k: int) -> bool:
        """Whether a weight with `k` inputs may be stored like that."""
        ways = {stored}
        if stored.strategy == "channel":  # a group may be as long as the row
            ways.add(Scheme(stored.type, stored.bits, "group", k, zeros=stored.zeros))
        return not ways.isdisjoint(self.schemes)


def _require_format(name: Any, where: str) -> None:
    if name is not None and name not in _ALL_FORMATS:
        raise CheckpointError(
            f"{where}: format {shown(name)} cannot be read; supported: {', '.join(_FORMATS)}; "
            f"{ADVICE}"
        )


def _scheme(weights: Fields) -> Scheme:
    kind, bits = weights.data.get("type") or "int", weights.integer("num_bits", 1, 64, default=8)
    strategy = weights.data.get("strategy")
    nvfp4 = (kind, bits) == ("float", 4)
    if (kind, bits) not in _KINDS or nvfp4 != (strategy == "tensor_group"):
        raise CheckpointError(
            f"{weights.where}: weights of type {shown(kind)} in {bits} bits cannot be read; "
            f"supported: {SUPPORTED}; {ADVICE}"
        )
    group = weights.integer("group_size", -1, 1 << 20, default=None)
    if strategy is None:
        strategy = {None: "tensor", -1: "channel"}.get(group, "group")
    if strategy not in _STRATEGIES or ("group" in str(strategy) and (group or 0) < 1):
        raise CheckpointError(
            f"{weights.where}: expected weights of strategy {', '.join(_STRATEGIES)} (with "
            f"group_size), got strategy {shown(strategy)} with group_size {shown(group)}"
        )
    return Scheme(
        kind,
        bits,
        strategy,
        group if "group" in strategy else 0,
        _block(weights) if strategy == "block" else (0, 0),
        zeros=not weights.boolean("symmetric", default=True),
    )


def _block(weights: Fields) -> tuple[int, int]:
    name = "block_structure"
    value = weights.data.get(name)
    if isinstance(value, str):  # "128x128", as older files have it
        value = [int(side) if side.isdecimal() else side for side in value[:20].split("x")]
    sides = weights.integers(name, value, 1, 1 << 20)
    if len(sides) != 2:
        weights.fail(f"expected {name} to be two sizes, got {shown(value)}")
    return sides[0], sides[1]
