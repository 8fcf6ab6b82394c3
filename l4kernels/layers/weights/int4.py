"""int4 weights, unquantised activations."""

from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.layers.weights.linear import Activations, Linear, Place, unquantised
from l4kernels.ops.int4_tiles import TILE_ROWS, tile_words
from l4kernels.ops.quant import BLOCK


class Int4Linear(Linear):
    """Tiles of 16 rows by 128 of K, which kernels read as they are: codes, and one bfloat16 scale
    per group of 128 along K."""

    name = "int4"

    def allocate(self, *rows: int) -> None:
        *experts, n = rows
        tiles = *experts, n // TILE_ROWS, self.in_features // BLOCK
        self.tiles = self.empty(*tiles, tile_words(), dtype=torch.int32)

    def write(self, weight: Tensor, place: Place) -> None:
        first = place.first // TILE_ROWS
        tiles = place.of(self.tiles)[first : -(-place.end // TILE_ROWS)]
        rows = ops.untile_int4(tiles)  # those beside the new ones stay as they are
        begin = first * TILE_ROWS
        inside = Place(place.first - begin, place.end - begin, place.half)
        packed, scales = ops.quantize_int4(weight.contiguous())
        inside.fill(rows.packed, packed)
        inside.fill(rows.scales, scales)
        tiles.copy_(ops.tile_int4(*rows))

    def multiply(self, x: Activations, epilogue: dict[str, Any]) -> Tensor:
        # Nothing writes weights once a model is loaded, and loading waits for what does.
        return ops.w4_gemm(unquantised(x), self.tiles, static_weights=True, **epilogue)
