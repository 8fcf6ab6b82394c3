"""Checkpoints of float tensors: what Meta publishes on Hugging Face in bfloat16."""

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import ClassVar

import torch
from torch import Tensor

from l4kernels.checkpoint.files.layout import Slot, ignored, layout
from l4kernels.checkpoint.files.quantization import Quantization
from l4kernels.checkpoint.files.reader import (
    Checkpoint,
    CheckpointError,
    NamedTensor,
    Read,
    Weight,
    require_valid,
)
from l4kernels.checkpoint.files.shares import WHOLE, Piece, Share
from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.layers.weights.codes import Codes
from l4kernels.model.config import Llama4Config

BF16 = FORMATS["bf16"]
KvScales = Mapping[int, tuple[float, float]]
"""By layer: what the codes of keys and of values in an e4m3 cache are multiplied by."""

EditTensor = Callable[[Tensor, int | None, torch.dtype], Tensor]
"""Rows of floats, expert of a stack or None, dtype of the model -> the tensor in their place."""


class Unquantised:
    """The tensors of an opened checkpoint, checked against the config, ready to be read.

    Other published formats store the same weights in another way. Each is a subclass in a file of
    its own and a line in `formats.READERS` (docs/adding-a-checkpoint-format.md).

    Attributes:
        slots: what of the model each tensor of the layout fills, by its name there.
        pieces: the stored tensors that make up each of them; the first one's file says when it is
            read.
        kv_scales: of the layers that have them.
        notes: what a user should know of how it is read, a line each.
        edits: what is done to tensors of the layout after they are read (`lora.merge`).
    """

    methods: ClassVar[tuple[str, ...]] = ()
    """What `quant_method` of the config calls this format."""
    supports: ClassVar[str] = "unquantised safetensors (bf16, fp16, fp32, fp64)"
    """For messages: the kinds of this format that are read."""

    def __init__(
        self, config: Llama4Config, checkpoint: Checkpoint, quantization: Quantization | None = None
    ):
        self.config, self.checkpoint, self.quantization = config, checkpoint, quantization
        self.kv_scales: KvScales = {}
        self.notes: list[str] = []
        self.edits: dict[str, list[EditTensor]] = {}
        self.slots: dict[str, Slot] = layout(config, {*map(self.plain_name, checkpoint.entries)})
        self.pieces: dict[str, dict[str, Piece]] = {}
        for name, slot in self.slots.items():
            heads = config.num_key_value_heads if slot.of_keys else 0
            pieces = self.pieces_of(name, slot)
            self.pieces[name] = {
                n: piece._replace(split=slot.split, heads=heads) for n, piece in pieces.items()
            }
        checkpoint.check(
            {name: piece for pieces in self.pieces.values() for name, piece in pieces.items()},
            self.ignored,
        )

    def plain_name(self, name: str) -> str:
        """The name in the layout of the weight that a stored tensor belongs to."""
        return name

    def pieces_of(self, name: str, slot: Slot) -> dict[str, Piece]:
        """The stored tensors that make up a tensor of the layout, by their names."""
        return {name: Piece(slot.shape, slot.axes)}

    def ignored(self, name: str) -> bool:
        """Whether a stored tensor may be there without being a piece; it is not read."""
        return ignored(self.config, name)

    def form(self, name: str) -> WeightFormat:
        """The format of weights that keeps a tensor of the layout exactly as it is stored; bf16 for
        floats, and for codes that no kernel multiplies by."""
        return BF16

    def decode(self, name: str, read: Read) -> Weight:
        """A tensor of the layout, or an expert of a stack: floats, or codes that `form` holds.

        `read` gives a piece by its name, and of a stack the expert in question. The result is what
        the slot takes: rows `[out, in]` for a product's weight.
        """
        data = read(name)
        return data.t() if self.slots[name].transposed else data

    def kept(self, name: str, codes: Codes) -> Weight:
        """Codes; of a weight that no model quantises the values that they stand for."""
        if self.slots[name].block:
            return codes
        self.require_valid(name, codes.invalid())
        return codes.dequantized()

    def require_valid(self, name: str, count: int) -> None:
        """Refuses a tensor of the layout of which so many codes and scales are no numbers."""
        stored = next(iter(self.pieces[name]))
        require_valid(self.checkpoint.entries[stored].file, stored, count)

    def tensors(self, dtype: torch.dtype, share: Share = WHOLE) -> Iterator[NamedTensor]:
        """What fills the slots, finite in `dtype`, one tensor in memory at a time; of one rank of
        several, its share of each.

        Raises:
            CheckpointError: a tensor that so many ranks cannot share; nothing is read.
        """
        self._check_share(share)
        return self._tensors(dtype, share)

    def _tensors(self, dtype: torch.dtype, share: Share) -> Iterator[NamedTensor]:
        for name, expert, data in self.checkpoint.tensors(self.pieces, self.decode, dtype, share):
            for edit in self.edits.get(name, ()):
                data = edit(data.dequantized() if isinstance(data, Codes) else data, expert, dtype)
            yield name, expert, data
            del data  # the last reference to a mapped file would keep it beside the next one

    def _check_share(self, share: Share) -> None:
        folder, heads = self.checkpoint.folder, self.config.num_key_value_heads
        if share.ranks == 1:
            return
        if self.edits:
            raise CheckpointError(f"{folder}: adapters are not merged into shares of {share.ranks}")
        queries = self.config.num_attention_heads
        if queries % share.ranks or (heads % share.ranks and share.ranks % heads):
            # Rows would divide, but a query's head needs the whole of its key's.
            raise CheckpointError(
                f"{folder}: expected a number of ranks that divides the {queries} heads of queries "
                f"and divides the {heads} heads of keys or is a multiple of them, "
                f"got {share.ranks}"
            )
        for pieces in self.pieces.values():
            for name, piece in pieces.items():
                try:
                    share.of(piece)
                except ValueError as problem:
                    file = self.checkpoint.entries[name].file
                    raise CheckpointError(f"{file}: {name}: {problem}") from None

    def require_stored(self, found: Sized, what: str) -> None:
        """Refuses a record of quantised weights where none are found."""
        if not found and self.quantization is not None:
            raise CheckpointError(
                f"{self.quantization.file}: says that weights are quantised by "
                f"{self.quantization.method}, but no file of the checkpoint holds {what}; "
                f"one of the two is wrong"
            )

    def held(self, name: str) -> WeightFormat:
        """`form`, where the sizes of the weight allow it."""
        form, shape = self.form(name), self.slots[name].rows_shape
        fits = len(shape) == 2 and shape[0] % 8 == 0 and shape[1] % form.k_multiple == 0
        return form if fits else BF16
