"""ModelOpt: e4m3 weights with a scale for all or for each output, and NVFP4."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.files.quantization import ADVICE, Quantization
from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError, Read, Weight
from l4kernels.checkpoint.files.shares import FLOATS, Piece
from l4kernels.checkpoint.formats.kv_scales import kv_scale_names, read_kv_scales
from l4kernels.checkpoint.formats.nvfp4 import GROUP, dequantised
from l4kernels.checkpoint.formats.unquantised import BF16, Unquantised
from l4kernels.inputs.files import shown
from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.layers.weights.codes import Fp8Codes
from l4kernels.model.config import Llama4Config

_FP8, _NVFP4 = "F8_E4M3", "U8"
_CODES = {
    "FP8": (_FP8,),
    "FP8_PER_CHANNEL_PER_TOKEN": (_FP8,),
    "NVFP4": (_NVFP4,),
    "W4A16_NVFP4": (_NVFP4,),
    "MIXED_PRECISION": (_FP8, _NVFP4),
}
"""The types of quantised weights, by `quant_algo`."""


class ModelOpt(Unquantised):
    """`X.weight` in e4m3, or in bytes of two e2m1 codes, and beside it `X.weight_scale` and
    `X.weight_scale_2`; for a stack of experts `Y`, `[E, in, out]`, `Y_weight_scale` and so on.

    Which weights are quantised is what types they have.
    """

    methods = ("modelopt", "modelopt_fp8", "modelopt_fp4")
    supports = "ModelOpt FP8 and NVFP4"

    def __init__(
        self, config: Llama4Config, checkpoint: Checkpoint, quantization: Quantization | None = None
    ):
        assert quantization is not None
        record = quantization.fields
        algorithm, cache = record.data.get("quant_algo"), _cache_algorithm(record.data)
        if algorithm is not None and (not isinstance(algorithm, str) or algorithm not in _CODES):
            record.fail(
                f"weights of quant_algo {shown(algorithm)} cannot be read; supported: "
                f"{', '.join(_CODES)}; {ADVICE}"
            )
        self.codes = _CODES[algorithm] if algorithm else ()
        self._kv = kv_scale_names(checkpoint.entries, config.num_hidden_layers)
        own_cache = cache in (None, "FP8")
        scales = read_kv_scales(checkpoint, self._kv) if own_cache else {}
        static = any(map(_is_input_scale, checkpoint.entries))
        super().__init__(config, checkpoint, quantization)
        self.kv_scales = scales
        stored = [checkpoint.entries[name].dtype for name, p in self.pieces.items() if len(p) > 1]
        if algorithm and not stored:
            raise CheckpointError(
                f"{quantization.file}: says quant_algo {algorithm}, but no weight is of type "
                f"{' or '.join(self.codes)}"
            )
        if static and _FP8 in stored:
            self.notes.append(
                "the static scales of activations (input_scale) are not used: activations are "
                "quantised per token"
            )
        if count := stored.count(_NVFP4):
            self.notes.append(
                f"{count} weights are stored in NVFP4 and dequantised to bf16, with 3.6 times the "
                f"memory: no kernel multiplies by NVFP4; --weights fp8 or int4 quantises again"
            )
        missing = config.num_hidden_layers - len(scales)
        if cache == "FP8" and missing:
            self.notes.append(
                f"{quantization.file} says that the KV cache is FP8, but {missing} layers have no "
                f"scales for it: an fp8 cache has 1 there"
            )
        if not own_cache:
            self.notes.append(f"scales of a KV cache in {shown(cache)} are not used")

    def ignored(self, name: str) -> bool:
        return _is_input_scale(name) or name in self._kv or super().ignored(name)

    def pieces_of(self, name: str, slot: Slot) -> dict[str, Piece]:
        entry = self.checkpoint.entries.get(name)
        if entry is None or entry.dtype not in (_FP8, _NVFP4) or "k" not in slot.axes:
            return super().pieces_of(name, slot)
        if entry.dtype not in self.codes:
            assert self.quantization is not None
            self.refuse(
                name,
                f"expected {' or '.join((*self.codes, 'floats'))}, as {self.quantization.file} "
                f"says, got {entry.dtype}",
            )
        whole, whole_2 = _side(name), _side(name, "_2")
        if entry.dtype == _FP8:
            return {name: Piece(slot.shape, slot.axes, (_FP8,)), whole: self._scale(whole, slot)}
        along_k = slot.axes.index("k")
        if slot.shape[along_k] % GROUP:
            self.refuse(name, f"expected inputs that are a multiple of {GROUP} for NVFP4")

        def each(count: int) -> tuple[int, ...]:
            size = slot.shape[along_k] // count
            return (*slot.shape[:along_k], size, *slot.shape[along_k + 1 :])

        return {
            name: Piece(each(2), slot.axes, (_NVFP4,)),
            whole: Piece(each(GROUP), slot.axes, (_FP8,)),
            whole_2: self._scale(whole_2, slot, by_row=False),
        }

    def form(self, name: str) -> WeightFormat:
        fp8 = len(self.pieces[name]) == 2 and self.slots[name].block
        return FORMATS["fp8"] if fp8 else BF16

    def decode(self, name: str, read: Read) -> Weight:
        pieces, slot = self.pieces[name], self.slots[name]
        if len(pieces) == 1:
            return super().decode(name, read)

        def rows(stored: Tensor) -> Tensor:
            return stored.view(torch.uint8).t().contiguous() if slot.transposed else stored

        data, last = rows(read(name)), [*pieces][-1]
        scale = read(last).float().reshape(-1)
        if not (scale.isfinite() & (scale > 0)).all():
            self.refuse(last, "expected finite scales above 0")
        if len(pieces) == 2:
            q = data.view(torch.float8_e4m3fn)
            return self.kept(name, Fp8Codes(q, scale.expand(len(q)).contiguous()))
        scales = rows(read(_side(name))).view(torch.float8_e4m3fn)
        # Zeros are those of blocks whose scale was too small for e4m3.
        if not (scales.float() >= 0).all():
            self.refuse(_side(name), "expected scales that are numbers and not negative")
        return dequantised(data, scales, scale)

    def refuse(self, stored: str, why: str) -> NoReturn:
        """A stored tensor is not what it should be."""
        raise CheckpointError(f"{self.checkpoint.entries[stored].file}: {stored}: {why}")

    def _scale(self, stored: str, slot: Slot, by_row: bool = True) -> Piece:
        """A scale for all, for each expert, or for each output (of each expert)."""
        axis = slot.axes.replace("k", "")[-1]
        n = slot.shape[slot.axes.index(axis)]
        shapes: dict[tuple[int, ...], str] = {(): "", (1,): "-"}
        if slot.transposed:
            experts = slot.shape[0]
            shapes |= {(experts,): "e", (experts, 1, 1): "e--"}
        lead = {"e": (slot.shape[0],)} if slot.transposed else {"": ()}
        for before, first in lead.items() if by_row else ():
            shapes |= {(*first, n): before + axis, (*first, n, 1): f"{before}{axis}-"}
            shapes |= {(*first, 1, n): f"{before}-{axis}"}
        entry = self.checkpoint.entries.get(stored)
        shape = entry.shape if entry and entry.shape in shapes else ()
        return Piece(shape, shapes[shape], FLOATS)


def _side(name: str, more: str = "") -> str:
    """Of a weight's scale."""
    return f"{name}{'' if name.endswith('.weight') else '_weight'}_scale{more}"


def _is_input_scale(name: str) -> bool:
    return name.endswith((".input_scale", "_proj_input_scale"))


def _cache_algorithm(record: Any) -> Any:
    """How the KV cache was quantised, None where nothing is said."""
    scheme = record.get("kv_cache_quant_algo") or record.get("kv_cache_scheme")
    if isinstance(scheme, dict) and (scheme.get("num_bits"), scheme.get("type")) == (8, "float"):
        return "FP8"
    return scheme or None
