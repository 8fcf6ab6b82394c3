"""What captured steps have taken from a model, and whether the model still has it.

A replay runs no code of a module. It sees values that are changed in place; another tensor or
module, and a hook, it would pass over in silence.
"""

import itertools
from operator import is_
from typing import Any

from torch import nn
from torch.nn.modules import module as everywhere


class Taken:
    """The tensors, modules and hooks of a model. Both questions are asked before every step.

    Keeps the tensors, so that a replay under way never reads memory of somebody else.

    >>> model = nn.Sequential(nn.Linear(2, 2))
    >>> taken = Taken(model)
    >>> handle = model[0].register_forward_hook(print)
    >>> taken.is_hooked(), taken.is_current()
    (True, True)
    >>> model[0] = nn.Linear(2, 2)
    >>> taken.is_current()
    False
    """

    def __init__(self, model: nn.Module):
        modules = [*model.modules()]
        self._parts: list[dict[str, Any]] = [
            part for m in modules for part in (m._parameters, m._buffers, m._modules) if part
        ]
        self._values = self._now()
        self._hooks: list[Any] = [
            hooks for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks)
        ]
        self._hooks += everywhere._global_forward_pre_hooks, everywhere._global_forward_hooks

    def _now(self) -> list[Any]:
        return [*itertools.chain.from_iterable(map(dict.values, self._parts))]

    def is_current(self) -> bool:
        """Whether the model has the same tensors and modules; values may have changed."""
        now = self._now()
        return len(now) == len(self._values) and all(map(is_, now, self._values))

    def is_hooked(self) -> bool:
        """Whether a call of the model calls hooks, too."""
        return any(self._hooks)
