"""A format of checkpoints that nobody publishes: e4m3 with a float32 scale for every row.

The smallest that the readers of published formats have in common: codes that the model keeps,
experts one by one, a scale beside each weight.
"""

import torch

from l4kernels.checkpoint.files.shares import Piece
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.layers.weights import FORMATS
from l4kernels.layers.weights.codes import Fp8Codes
from tests.support.checkpoints import unfused

SAID = {"quantization_config": {"quant_method": "row-fp8", "ignore": ["re:.*norm"], "bits": 8}}
SCALE = "_scale"


class RowFp8(Unquantised):
    methods = ("row-fp8",)
    supports = "row-fp8"

    def pieces_of(self, name, slot):
        if name + SCALE not in self.checkpoint.entries:
            return super().pieces_of(name, slot)
        scale = Piece((slot.shape[0], 1), "n-", ("F32",))
        return {name: Piece(slot.shape, slot.axes, ("F8_E4M3",)), name + SCALE: scale}

    def form(self, name):
        return FORMATS["fp8" if len(self.pieces[name]) == 2 else "bf16"]

    def decode(self, name, read):
        if len(self.pieces[name]) == 1:
            return super().decode(name, read)
        return Fp8Codes(read(name), read(name + SCALE).flatten())


def quantised(tensors: dict) -> dict:
    """Tensors of a checkpoint in this format."""
    stored = {}
    for name, data in unfused(tensors).items():
        stored[name] = data
        if "_proj" in name:
            scale = data.float().abs().amax(1, keepdim=True) / 448
            stored[name] = (data / scale).to(torch.float8_e4m3fn)
            stored[name + SCALE] = scale
    return stored
