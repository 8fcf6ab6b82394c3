"""Tensors that tests write out."""

import torch


def i32(*values: int) -> torch.Tensor:
    """Lengths, offsets and indices, as the ops take them: int32."""
    return torch.tensor(values, dtype=torch.int32)
