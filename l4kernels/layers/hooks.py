"""Whether somebody looks into a module: hooks of `torch.nn`."""

from torch import nn
from torch.nn.modules import module as everywhere


def has_hooks(*modules: nn.Module) -> bool:
    """Whether a call of one of the modules calls a hook. An op that computes what several modules
    do passes over their hooks; where there are some, the modules are called instead.

    >>> norm = nn.LayerNorm(2)
    >>> has_hooks(norm)
    False
    >>> handle = norm.register_forward_hook(print)
    >>> has_hooks(norm)
    True
    """
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return True
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)
