"""Ops are for inference: where a gradient is asked for, they say so by name."""

from typing import Any

from torch.autograd import forward_ad

from l4kernels.ops.check import NAMESPACE, describe, tensors_in


def refuse_gradients(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Called where gradients are recorded: whatever differentiates would go on without the op."""
    dual = forward_ad._current_level >= 0
    for value in tensors_in((*args, *kwargs.values()) if kwargs else args):
        if value.requires_grad or (dual and forward_ad.unpack_dual(value).tangent is not None):
            raise RuntimeError(
                f"{NAMESPACE}.{op} is for inference only and has no gradient, but got "
                f"{describe(value)} that requires one: call it under torch.no_grad(), or detach() "
                "the tensor"
            )
