"""Checkpoints of the compressed-tensors library: Meta's Maverick-17B-128E-Instruct-FP8, and what
llm-compressor writes.

A weight `x` is e4m3 or int8 beside `x_scale`, or packed in `x_packed` beside `x_scale`: which of
them are there says how it is stored, and the config has to agree.
"""

import math
import re
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.files.quantization import Quantization
from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError, Read, Weight
from l4kernels.checkpoint.files.shares import Piece
from l4kernels.checkpoint.formats.compressed_schemes import SUPPORTED, Record, Scheme
from l4kernels.checkpoint.formats.kv_scales import kv_scale_names, scales_of_scheme
from l4kernels.checkpoint.formats.nibbles import reorder, unpacked
from l4kernels.checkpoint.formats.nvfp4 import GROUP, dequantised
from l4kernels.checkpoint.formats.unquantised import BF16, Unquantised
from l4kernels.inputs.files import shown
from l4kernels.layers.weights import FORMATS, WeightFormat, int4_format
from l4kernels.layers.weights.codes import Fp8Codes, Int4Codes, invalid_scales
from l4kernels.model.config import Llama4Config
from l4kernels.ops.quant import BLOCK, INT4_GROUPS

_PARTS = re.compile(r"\.weight_(packed|scale|global_scale|shape|zero_point|g_idx)$")
_UNREAD = re.compile(r"\.(input|output|q|k|v|input_global)_(scale|zero_point)$")
"""Static scales of activations, which are quantised per token here, or of a KV cache."""
_CODES = {"F8_E4M3": ("float", 8), "I8": ("int", 8)}
_INTEGERS = ("I32", "I64")


class CompressedTensors(Unquantised):
    """float-quantized, int-quantized and pack-quantized, decided weight by weight.

    Attributes:
        record: what the config says.
        stored: the weights that are quantised, and how.
    """

    methods: ClassVar[tuple[str, ...]] = ("compressed-tensors",)
    supports: ClassVar[str] = f"compressed-tensors with {SUPPORTED}"

    def __init__(
        self, config: Llama4Config, checkpoint: Checkpoint, quantization: Quantization | None = None
    ):
        assert quantization is not None
        self.record = Record.of(quantization)
        self.stored: dict[str, Scheme] = {}
        self._disordered: set[str] = set()
        """Those whose columns are in groups that do not lie side by side."""
        static = any(name.endswith(".input_scale") for name in checkpoint.entries)
        kv = kv_scale_names(checkpoint.entries, config.num_hidden_layers)
        scales, said = scales_of_scheme(checkpoint, kv, self.record.cache)
        super().__init__(config, checkpoint, quantization)
        if self.record.schemes:
            self.require_stored(self.stored, "codes and their scales")
        self.kv_scales, self.notes = scales, said
        orders = {f"{name}_g_idx": name for name in self.stored}
        there = [order for order, name in orders.items() if order in self.pieces[name]]
        for order, index in checkpoint.read_all(there):
            self._read_order(orders[order], order, index.long())
        if static:
            self.notes.append(
                "static scales of activations are not used: activations are quantised per token"
            )
        self._say_what_is_dequantised()

    def plain_name(self, name: str) -> str:
        return _PARTS.sub(".weight", name)

    def ignored(self, name: str) -> bool:
        return super().ignored(name) or _UNREAD.search(name) is not None

    def pieces_of(self, name: str, slot: Slot) -> dict[str, Piece]:
        if len(slot.shape) != 2 or not name.endswith(".weight"):
            return super().pieces_of(name, slot)
        entries = self.checkpoint.entries
        plain, packed, (n, k) = entries.get(name), entries.get(f"{name}_packed"), slot.shape
        if packed is not None and packed.dtype == "U8":
            own = self._nvfp4_pieces(name, n, k)
        elif packed is not None:
            # Of the two that are read the one that it can be; `check` says what it is not.
            bits = 8 if packed.shape == (n, math.ceil(k / 4)) else 4
            own = {f"{name}_packed": Piece((n, math.ceil(k * bits / 32)), "nk", ("I32",))}
            own |= self._side_pieces(name, slot, "int", bits, packed=True)
        elif plain is not None and (plain.dtype in _CODES or f"{name}_scale" in entries):
            kind, bits = _CODES.get(plain.dtype, ("float", 8))
            own = {name: Piece((n, k), "nk", ("I8",) if kind == "int" else ("F8_E4M3",))}
            own |= self._side_pieces(name, slot, kind, bits, packed=False)
        else:
            own = super().pieces_of(name, slot)
        return own

    def form(self, name: str) -> WeightFormat:
        stored = self.stored.get(name)
        if stored is None or name in self._disordered:
            return BF16
        if stored.type == "float":
            return FORMATS["fp8"] if stored.by_row else BF16
        group = stored.group or self.slots[name].shape[1]
        if stored.bits == 4 and stored.strategy in ("channel", "group"):
            # The scale of a longer group is that of each of its parts.
            group = BLOCK if group % BLOCK == 0 else group
            if group in INT4_GROUPS:
                return int4_format(group, zeros=stored.zeros)
        return BF16

    def decode(self, name: str, read: Read) -> Weight:
        stored, pieces = self.stored.get(name), self.pieces[name]
        if stored is None:
            return super().decode(name, read)
        if f"{name}_shape" in pieces:
            self._check_shape(name, read(f"{name}_shape"))
        if stored.strategy == "tensor_group":
            return self._nvfp4(name, read)
        # bfloat16 and float16 are exact in float32.
        scale = read(f"{name}_scale")
        scale = scale.reshape(scale.shape[0] if scale.dim() else 1, -1)  # it may have one dimension
        zeros = self._zeros(name, read, len(scale))
        if f"{name}_packed" in pieces:
            packed = read(f"{name}_packed")
            form, k = self.form(name), 8 * packed.shape[1]
            if form is not BF16 and k % BLOCK == 0:
                scale = scale.float() if scale.dtype == torch.float64 else scale
                times = k // form.group // scale.shape[1]
                scale = scale.repeat_interleave(times, 1)
                zeros = None if zeros is None else zeros.repeat_interleave(times, 1)
                return self.kept(name, Int4Codes(reorder(packed), scale, zeros))
            q = unpacked(packed, stored.bits)[:, : self.slots[name].shape[1]]
        else:
            q = read(name)
            if stored.type == "float" and stored.by_row:
                return self.kept(name, Fp8Codes(q, scale[:, 0].float().expand(len(q))))
            if stored.type == "int":
                q = q.view(torch.uint8) ^ 0x80  # code + 128, as packed ones are
        return self._values(name, q, scale.float(), zeros, read)

    def _side_pieces(
        self, name: str, slot: Slot, kind: str, bits: int, *, packed: bool
    ) -> dict[str, Piece]:
        """Scales, and what else lies beside codes; notes how the weight is stored."""
        entries, (n, k) = self.checkpoint.entries, slot.shape
        scale, zeros = f"{name}_scale", f"{name}_zero_point"
        if scale not in entries:
            return {scale: Piece((n, 1), "n-")}  # `check` says that it is missing
        shape = entries[scale].shape
        spread, axes = self._spread(name, n, k, kind, bits)
        own = {scale: Piece(shape, axes)}
        if kind == "int" and zeros in entries:
            rows = math.ceil(n * bits / 32)
            own[zeros] = (
                Piece((rows, *shape[1:]), axes, ("I32",))
                if packed and entries[zeros].dtype == "I32"
                else Piece(shape, axes, ("I8",))
            )
        if packed and f"{name}_shape" in entries:
            own[f"{name}_shape"] = Piece((2,), "-", _INTEGERS)
        if packed and f"{name}_g_idx" in entries:
            own[f"{name}_g_idx"] = Piece((k,), "k", _INTEGERS)
        stored = replace(spread, zeros=zeros in own)
        self._check_record(name, stored, k)
        self.stored[name] = stored
        return own

    def _nvfp4_pieces(self, name: str, n: int, k: int) -> dict[str, Piece]:
        whole = self.checkpoint.entries.get(f"{name}_global_scale")
        shape = whole.shape if whole and math.prod(whole.shape) == 1 else (1,)
        own = {
            f"{name}_packed": Piece((n, math.ceil(k / 2)), "nk", ("U8",)),
            f"{name}_scale": Piece((n, math.ceil(k / GROUP)), "nk", ("F8_E4M3",)),
            f"{name}_global_scale": Piece(shape, "-" * len(shape)),
        }
        self.stored[name] = Scheme("float", 4, "tensor_group", GROUP)
        if f"{name}_scale" in self.checkpoint.entries:
            self._check_record(name, self.stored[name], k)
        return own

    def _nvfp4(self, name: str, read: Read) -> Tensor:
        """The scale of a group is stored times the one of the whole weight."""
        scales, whole = read(f"{name}_scale"), read(f"{name}_global_scale").float().reshape(())
        # Zeros are those of groups whose scale was too small for e4m3.
        bad = (~(scales.float() >= 0)).sum() + ~(whole.isfinite() & (whole > 0))
        self.require_valid(name, int(bad))
        return dequantised(read(f"{name}_packed"), scales, 1 / whole)

    def _spread(self, name: str, n: int, k: int, kind: str, bits: int) -> tuple[Scheme, str]:
        """What shares a scale, by the shape of the scales; and the axes of these."""
        entry = self.checkpoint.entries[f"{name}_scale"]
        shape = entry.shape
        # First: blocks may be as wide as a group is long, or as large as the weight.
        for scheme in self.record.schemes:
            rows, columns = scheme.block
            if (scheme.type, scheme.bits, scheme.strategy) != (kind, bits, "block"):
                continue
            if shape == (-(-n // rows), -(-k // columns)):
                even = n % rows == 0 and k % columns == 0
                return replace(scheme, zeros=False), "nk" if even else "--"
        if shape in ((n,), (n, 1)):
            return Scheme(kind, bits, "channel"), "n-"[: len(shape)]
        if math.prod(shape) == 1:
            return Scheme(kind, bits, "tensor"), "-" * len(shape)
        if len(shape) == 2 and shape[0] == n and shape[1] and k % shape[1] == 0:
            return Scheme(kind, bits, "group", k // shape[1]), "nk"
        ways = ", ".join(map(str, self.record.schemes))
        raise CheckpointError(
            f"{entry.file}: expected {name}_scale to fit a weight {[n, k]} in {ways or 'a scheme'} "
            f"as config_groups says, got {shown(list(shape))}"
        )

    def _check_record(self, name: str, stored: Scheme, k: int) -> None:
        module = name.removesuffix(".weight")
        file = self.checkpoint.entries[f"{name}_scale"].file
        if not self.record.describes(stored, k):
            ways = ", ".join(map(str, self.record.schemes)) or "no quantised weights"
            raise CheckpointError(
                f"{file}: {name} is stored as {stored}, but config_groups of the config says "
                f"{ways}; one of the two is wrong"
            )
        if module in self.record.ignore:
            raise CheckpointError(
                f"{file}: {name} is stored as {stored}, but the config's quantisation ignores "
                f"{module}; one of the two is wrong"
            )

    def _read_order(self, name: str, order: str, index: Tensor) -> None:
        """Which group each column is in: mostly those side by side, as where it says -1."""
        k = self.slots[name].shape[1]
        groups = k // (self.stored[name].group or k)
        if (index == -1).any() or torch.equal(index, torch.arange(k) // (k // groups)):
            return
        if int(index.min()) < 0 or int(index.max()) >= groups:
            raise CheckpointError(
                f"{self.checkpoint.entries[order].file}: expected {order} to name groups from 0 to "
                f"{groups - 1}, got {int(index.min())} to {int(index.max())}"
            )
        self._disordered.add(name)
        own = self.pieces[name]
        for part in (f"{name}_scale", f"{name}_zero_point"):
            if part in own:  # a rank's columns may be in any group
                own[part] = own[part]._replace(axes="n-")

    def _say_what_is_dequantised(self) -> None:
        counts: Counter[str] = Counter()
        rounded: Counter[str] = Counter()
        for name, stored in self.stored.items():
            form = self.held(name) if self.slots[name].block else BF16
            dtype = self.checkpoint.entries[f"{name}_scale"].dtype
            if form is BF16:
                ordered = " by act-order" if name in self._disordered else ""
                counts[f"{stored}{ordered}"] += 1
            elif stored.type == "int" and dtype != "BF16":
                rounded[dtype] += 1
        for kind, count in counts.items():
            self.notes.append(
                f"{count} weights are stored as {kind}, which no kernel multiplies by: they are "
                f"dequantised"
            )
        for dtype, count in rounded.items():
            self.notes.append(
                f"{count} weights have int4 scales in {dtype}, which kernels hold in BF16: rounded"
            )

    def _check_shape(self, name: str, shape: Tensor) -> None:
        want = list(self.slots[name].shape)
        if shape.tolist() != want:
            place = f"{name}_shape"
            raise CheckpointError(
                f"{self.checkpoint.entries[place].file}: expected {place} to hold {want}, "
                f"got {shown(shape.tolist())}"
            )

    def _zeros(self, name: str, read: Read, rows: int) -> Tensor | None:
        """uint8 `[rows, groups]`: what is taken off code + 8, or off code + 128."""
        part, stored = f"{name}_zero_point", self.stored[name]
        if part not in self.pieces[name]:
            return None
        data = read(part)
        data = data.reshape(data.shape[0] if data.dim() else 1, -1)
        if data.dtype == torch.int32:
            return unpacked(data.t(), stored.bits)[:, :rows].t().contiguous()
        half = 1 << stored.bits - 1
        zeros = data.int() + half
        if zeros.numel() and (int(zeros.min()) < 0 or int(zeros.max()) >= 2 * half):
            raise CheckpointError(
                f"{self.checkpoint.entries[part].file}: expected {part} from {-half} to {half - 1},"
                f" got {int(data.min())} to {int(data.max())}"
            )
        return zeros.to(torch.uint8)

    def _values(
        self, name: str, q: Tensor, scale: Tensor, zeros: Tensor | None, read: Read
    ) -> Tensor:
        """What codes stand for that no format of ours holds, float32."""
        stored, (n, k) = self.stored[name], q.shape
        self.require_valid(name, invalid_scales(scale, stored.type))
        order = read(f"{name}_g_idx").long() if name in self._disordered else None

        def spread(x: Tensor) -> Tensor:
            if order is not None:
                return x[:, order]
            if stored.strategy == "group":
                return x.repeat_interleave(k // x.shape[1], 1)
            if stored.strategy != "block":
                return x
            rows, columns = stored.block
            return x.repeat_interleave(rows, 0)[:n].repeat_interleave(columns, 1)[:, :k]

        values = q.float()
        if zeros is not None:
            values -= spread(zeros)
        elif stored.type == "int":
            values -= 1 << stored.bits - 1
        return values.mul_(spread(scale))
