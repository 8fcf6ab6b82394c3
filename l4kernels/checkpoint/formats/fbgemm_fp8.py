"""Checkpoints of transformers' `FbgemmFp8Config`: e4m3 with a scale per output channel.

Routed experts stay fused `[E, in, out]`, with their scales in `gate_up_proj_scale`
`[E, 1, out]` and `down_proj_scale` `[E, out, 1]`; a linear layer has `weight_scale` `[out, 1]`.
"""

import re
from typing import ClassVar

from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.files.quantization import Quantization
from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError, Read, Weight
from l4kernels.checkpoint.files.shares import Piece
from l4kernels.checkpoint.formats.unquantised import BF16, Unquantised
from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.layers.weights.codes import Fp8Codes
from l4kernels.model.config import Llama4Config

_CODES = ("F8_E4M3",)
_BOUND = re.compile(r"(^|\.)input_scale_ub$")
"""A buffer that older files hold: the record's activation_scale_ub."""


class FbgemmFp8(Unquantised):
    """e4m3 codes as they are; activations are quantised per token, without an upper bound."""

    methods: ClassVar[tuple[str, ...]] = ("fbgemm_fp8",)
    supports: ClassVar[str] = "fbgemm_fp8"

    def __init__(
        self, config: Llama4Config, checkpoint: Checkpoint, quantization: Quantization | None = None
    ):
        assert quantization is not None
        bound = quantization.fields.number("activation_scale_ub", 0.0, 1e30, default=1200.0)
        excluded = quantization.fields.data.get("modules_to_not_convert")
        names = excluded if isinstance(excluded, list) else []
        self._excluded = {name for name in names if isinstance(name, str)}
        super().__init__(config, checkpoint, quantization)
        stored = [name for name, pieces in self.pieces.items() if f"{name}_scale" in pieces]
        self.require_stored(stored, "e4m3 codes and their scales")
        for name in self.slots:
            self._check_excluded(name)
        self.notes.append(
            f"activations are not clipped at activation_scale_ub = {bound:g}: their scales are "
            f"those of each token"
        )

    def plain_name(self, name: str) -> str:
        return name.removesuffix("_scale") if name.endswith(".weight_scale") else name

    def ignored(self, name: str) -> bool:
        return super().ignored(name) or _BOUND.search(name) is not None

    def pieces_of(self, name: str, slot: Slot) -> dict[str, Piece]:
        scale, entries = f"{name}_scale", self.checkpoint.entries
        stored = entries.get(name)
        if len(slot.shape) < 2 or stored is None:
            return super().pieces_of(name, slot)
        if stored.dtype not in _CODES and scale not in entries:
            return super().pieces_of(name, slot)
        if not slot.transposed:
            side = Piece((slot.shape[0], 1), "n-")
        elif slot.rows == "gate_up":
            side = Piece((slot.shape[0], 1, slot.shape[2]), "e-g")
        else:
            side = Piece((slot.shape[0], slot.shape[2], 1), "en-")
        return {name: Piece(slot.shape, slot.axes, _CODES), scale: side}

    def form(self, name: str) -> WeightFormat:
        return FORMATS["fp8"] if f"{name}_scale" in self.pieces[name] else BF16

    def decode(self, name: str, read: Read) -> Weight:
        scale = f"{name}_scale"
        if scale not in self.pieces[name]:
            return super().decode(name, read)
        q, slot = read(name), self.slots[name]
        rows = q.t() if slot.transposed else q
        return self.kept(name, Fp8Codes(rows, read(scale).float().flatten()))

    def _check_excluded(self, name: str) -> None:
        module = name.removesuffix(".weight")
        if module in self._excluded and f"{name}_scale" in self.pieces[name]:
            raise CheckpointError(
                f"{self.checkpoint.entries[name].file}: {name} is stored in e4m3, but "
                f"modules_to_not_convert of the config excludes {module}; one of the two is wrong"
            )
