"""Checkpoints of float tensors: what Meta publishes on Hugging Face in bfloat16."""

from collections.abc import Iterator

import torch
from torch import Tensor

from l4kernels.checkpoint.layout import Shape, Slot, ignored, layout, shapes
from l4kernels.checkpoint.reader import FLOATS, Checkpoint, NamedTensor
from l4kernels.model.config import Llama4Config


class Unquantised:
    """The tensors of an opened checkpoint, checked against the config, ready to be read.

    Other published formats store the same tensors in another way. Each is a subclass in a file of
    its own and a line in `load.CHECKPOINT_FORMATS` (docs/adding-a-checkpoint-format.md).
    """

    def __init__(self, config: Llama4Config, checkpoint: Checkpoint):
        self.config, self.checkpoint = config, checkpoint
        self.slots: dict[str, Slot] = layout(config, checkpoint.entries)
        checkpoint.check(self.expected(), lambda name: ignored(config, name), self.dtypes)

    @classmethod
    def matches(cls, checkpoint: Checkpoint) -> bool:
        """Whether the headers are those of this format."""
        return True

    def expected(self) -> dict[str, Shape]:
        """Every tensor that the files must hold, those that only help to decode others too."""
        return shapes(self.slots)

    def dtypes(self, name: str) -> tuple[str, ...]:
        """How a tensor may be stored, as safetensors spells it."""
        return FLOATS

    def decode(self, name: str, expert: int | None, stored: Tensor) -> Tensor:
        """The floats that a stored tensor, or an expert of a stack, stands for."""
        return stored

    def tensors(self, dtype: torch.dtype) -> Iterator[NamedTensor]:
        """What fills the slots, finite in `dtype`, one tensor in memory at a time."""
        return self.checkpoint.tensors(self.slots, dtype, self.decode)
