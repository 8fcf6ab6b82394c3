"""int4 weights, unquantised activations."""

from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.layers.weights.codes import Codes, Int4Codes
from l4kernels.layers.weights.linear import Activations, Linear, Place, unquantised
from l4kernels.ops.int4_tiles import TILE_ROWS, tile_words
from l4kernels.ops.quant import BLOCK


class Int4Linear(Linear):
    """Tiles of 16 rows by 128 of K, which kernels read as they are: codes, and for each group along
    K a bfloat16 scale, and a zero point if the format has them."""

    name = "int4"

    def allocate(self, *rows: int) -> None:
        *experts, n = rows
        tiles = *experts, n // TILE_ROWS, self.in_features // BLOCK
        words = tile_words(BLOCK // self.form.group, self.form.zeros)
        self.tiles = self.empty(*tiles, words, dtype=torch.int32)

    def write(self, weight: Tensor, place: Place) -> None:
        codes = Int4Codes(*ops.quantize_int4(weight.contiguous()))
        self.write_codes(codes.in_tiles_of(self.form), place)

    def write_codes(self, codes: Codes, place: Place) -> None:
        assert isinstance(codes, Int4Codes)
        first = place.first // TILE_ROWS
        tiles = place.of(self.tiles)[first : -(-place.end // TILE_ROWS)]
        rows = ops.untile_int4(tiles)  # those beside the new ones stay as they are
        begin = first * TILE_ROWS
        inside = Place(place.first - begin, place.end - begin, place.half)
        inside.fill(rows.packed, codes.packed)
        inside.fill(rows.scales, codes.group_scales)  # in bfloat16
        if rows.zeros is not None and codes.zeros is not None:
            rows.zeros.clamp_(max=15)  # those of rows that are still to come are not initialised
            inside.fill(rows.zeros, codes.zeros)
        tiles.copy_(ops.tile_int4(*rows))

    def multiply(self, x: Activations, epilogue: dict[str, Any]) -> Tensor:
        # Nothing writes weights once a model is loaded, and loading waits for what does.
        return ops.w4_gemm(unquantised(x), self.tiles, static_weights=True, **epilogue)
