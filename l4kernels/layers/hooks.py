"""Whether a module is what this package made it, and nobody looks into it."""

from torch import nn
from torch.nn.modules import module as everywhere

_OWN = "l4kernels.layers."


def is_plain(*modules: nn.Module) -> bool:
    """Whether a call of each of the modules runs code of `l4kernels.layers` and no hook.

    An op that computes what several modules do never calls them. Where one of them has a hook, or
    is somebody else's (a wrapper, a subclass with a `forward` of its own), they are called instead.

    >>> import torch
    >>> from l4kernels.layers.norm import RMSNorm
    >>> from l4kernels.layers.options import ModelOptions
    >>> norm = RMSNorm(2, 1e-5, ModelOptions(torch.float32, torch.device("cpu")))
    >>> is_plain(norm), is_plain(norm, nn.LayerNorm(2))
    (True, False)
    >>> handle = norm.register_forward_hook(print)
    >>> is_plain(norm)
    False
    """
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return False
    return not any(
        m._forward_hooks
        or m._forward_pre_hooks
        or "forward" in vars(m)
        or not type(m).forward.__module__.startswith(_OWN)
        for m in modules
    )
