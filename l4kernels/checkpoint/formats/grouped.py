"""What AWQ and GPTQ share: `X.qweight`, `X.qzeros` and `X.scales` in place of `X.weight`."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.files.quantization import Quantization
from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError, Read, Weight
from l4kernels.checkpoint.files.shares import FLOATS, Piece
from l4kernels.checkpoint.formats.nibbles import unpacked
from l4kernels.checkpoint.formats.unquantised import BF16, Unquantised
from l4kernels.layers.weights import WeightFormat, int4_format
from l4kernels.layers.weights.codes import Int4Codes, invalid_scales
from l4kernels.model.config import Llama4Config
from l4kernels.ops.quant import BLOCK, INT4_GROUPS

_STORED = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint's config says that its weights are quantised."""

    bits: int
    group: int
    """Inputs that share a scale; -1: all."""
    zeros: bool
    """Whether groups have zero points of their own; else each is the middle code."""
    ordered: bool = True
    """Whether inputs are in groups as they follow each other; else `g_idx` says in which."""

    @property
    def per_word(self) -> int:
        return 32 // self.bits

    @property
    def middle(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def kept_group(self) -> int:
        """That of our codes, in which these fit as they are; 0: of none."""
        if self.bits != 4 or not self.ordered:
            return 0
        if self.group in INT4_GROUPS:
            return self.group
        return BLOCK if self.group == -1 or self.group % BLOCK == 0 else 0


class Grouped(Unquantised, ABC):
    """Codes in 32-bit words, scales (and zero points) `[groups, out]`; which weights are quantised
    is what tensors there are."""

    order: tuple[int, ...] = ()
    """The output that each place of a word of `qzeros` is of, for 4 bits; empty: in turn."""

    def __init__(
        self, config: Llama4Config, checkpoint: Checkpoint, quantization: Quantization | None = None
    ):
        assert quantization is not None
        self.scheme = self.read_scheme(quantization)
        super().__init__(config, checkpoint, quantization)
        stored = [name for name, pieces in self.pieces.items() if name not in pieces]
        self.require_stored(stored, "a qweight")
        kept = [name for name in stored if self.form(name) is not BF16]
        scales = (self.checkpoint.entries[_of(name, "scales")].dtype for name in kept)
        if any(dtype != "BF16" for dtype in scales):
            self.notes.append(
                "int4 weights keep their codes, and their scales are rounded to bfloat16: an error "
                'of at most 2^-9 of each weight; weights="bf16" has none'
            )
        if len(kept) < len(stored):
            self.notes.append(
                f"{len(stored) - len(kept)} weights are stored in {self.said} and dequantised to "
                f"bf16: no kernel multiplies by such codes; --weights int4 or fp8 quantises again"
            )

    @property
    def said(self) -> str:
        scheme = self.scheme
        if scheme.bits != 4:
            return f"{scheme.bits} bits"
        size = "one group" if scheme.group == -1 else f"groups of {scheme.group}"
        return size if scheme.ordered else f"{size} in the order of activations (desc_act)"

    @abstractmethod
    def read_scheme(self, quantization: Quantization) -> Scheme:
        """What the record says; refuses what is not supported."""

    @abstractmethod
    def words_shape(self, n: int, k: int) -> tuple[int, int]:
        """Of `qweight`."""

    @abstractmethod
    def packed(self, words: Tensor) -> Tensor:
        """`qweight` of 4 bits as `ops.pack_int4` has it, int32 `[n, K / 8]`."""

    @abstractmethod
    def codes(self, words: Tensor) -> Tensor:
        """`qweight` unpacked, uint8 `[n, K]`."""

    def zero_points(self, words: Tensor, name: str) -> Tensor:
        """`qzeros` unpacked, uint8 `[groups, n]`."""
        return unpacked(words, self.scheme.bits, self.order)

    def plain_name(self, name: str) -> str:
        stem, _, last = name.rpartition(".")
        return f"{stem}.weight" if last in _STORED else name

    def pieces_of(self, name: str, slot: Slot) -> dict[str, Piece]:
        if _of(name, "qweight") not in self.checkpoint.entries or len(slot.shape) != 2:
            return super().pieces_of(name, slot)
        scheme, (n, k) = self.scheme, slot.shape
        group = k if scheme.group == -1 else scheme.group
        if n % scheme.per_word or k % scheme.per_word or k % group:
            self.refuse(
                name,
                "qweight",
                f"expected a weight [{n}, {k}] to be unquantised: its sizes are no multiples of "
                f"{scheme.per_word}, or groups of {group} do not divide it",
            )
        # Every rank has all groups where they are not its own inputs'.
        axes = "kn" if scheme.ordered and group < k else "-n"
        groups, words = k // group, ("I32",)
        pieces = {
            "qweight": Piece(self.words_shape(n, k), "kn", words),
            "qzeros": Piece((groups, n // scheme.per_word), axes, words),
            "scales": Piece((groups, n), axes, FLOATS),
            "g_idx": Piece((k,), "k", words),
        }
        optional = [*(["g_idx"] if scheme.ordered else []), *([] if scheme.zeros else ["qzeros"])]
        return {
            _of(name, kind): piece
            for kind, piece in pieces.items()
            if kind not in optional or _of(name, kind) in self.checkpoint.entries
        }

    def form(self, name: str) -> WeightFormat:
        slot, scheme = self.slots[name], self.scheme
        quantised = name not in self.pieces[name]
        if not quantised or not slot.block or not scheme.kept_group or slot.shape[1] % BLOCK:
            return BF16
        return int4_format(scheme.kept_group, zeros=scheme.zeros)

    def decode(self, name: str, read: Read) -> Weight:
        if name in self.pieces[name]:
            return super().decode(name, read)
        scales = read(_of(name, "scales")).t()
        if invalid_scales(scales, "int"):
            self.refuse(name, "scales", "expected finite scales other than 0")
        zeros = self._zeros(name, read)
        words = read(_of(name, "qweight"))
        n, count = scales.shape
        k = words.numel() * self.scheme.per_word // n
        groups = self._groups(name, read, k, count)
        if self.form(name) is BF16:
            middle = self.scheme.middle if zeros is None else zeros[:, groups].float()
            return (self.codes(words).float() - middle) * scales[:, groups].float()
        repeats = k // count // self.scheme.kept_group
        scales = scales.repeat_interleave(repeats, 1)
        zeros = None if zeros is None else zeros.repeat_interleave(repeats, 1)
        return Int4Codes(self.packed(words), scales, zeros)

    def refuse(self, name: str, kind: str, why: str) -> NoReturn:
        """`kind` of a weight of the layout is not what it should be."""
        stored = _of(name, kind)
        raise CheckpointError(f"{self.checkpoint.entries[stored].file}: {stored}: {why}")

    def _zeros(self, name: str, read: Read) -> Tensor | None:
        """uint8 `[n, groups]`; None: each is the middle code."""
        stored, scheme = _of(name, "qzeros"), self.scheme
        if stored not in self.pieces[name]:
            return None
        zeros = self.zero_points(read(stored), name)
        if scheme.zeros:
            return zeros.t()
        if not (zeros == scheme.middle).all():
            assert self.quantization is not None
            self.refuse(
                name,
                "qzeros",
                f"expected zero points of {scheme.middle} alone: {self.quantization.file} says "
                f"that codes are symmetric",
            )
        return None

    def _groups(self, name: str, read: Read, k: int, count: int) -> Tensor:
        """The group of each of the inputs that were read, int64 `[k]`."""
        stored = _of(name, "g_idx")
        wanted = torch.arange(k) // (k // count)
        if stored not in self.pieces[name]:
            return wanted
        groups = read(stored).long()
        if not self.scheme.ordered:
            if groups.min() < 0 or groups.max() >= count:
                self.refuse(name, "g_idx", f"expected groups from 0 to {count - 1}")
            return groups
        first = groups[0] if k < self.slots[name].shape[1] else 0  # of a rank's share
        if not torch.equal(groups, wanted + first):
            self.refuse(
                name,
                "g_idx",
                f"expected groups of {k // count} inputs that follow each other, as without "
                f"desc_act; set desc_act in the config if the order is that of activations",
            )
        return wanted


def _of(name: str, kind: str) -> str:
    return f"{name.removesuffix('.weight')}.{kind}"
