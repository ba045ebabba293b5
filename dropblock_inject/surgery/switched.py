"""Layers that are switched on or off for a while. Afterwards they are as before, and so are copies made meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from .keep_prob import ATTRIBUTES, can_be_set

_SETTINGS = ("training", "enabled", "rescale", *ATTRIBUTES)
_REDUCE = "__reduce_ex__"
_MISSING = object()


@contextmanager
def switched(layers: Sequence[nn.Module], change: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within this context `change` has been called with each layer; afterwards the settings of each are as before.

    A setting that other code gives another value meanwhile keeps that value. A copy or pickle that is made meanwhile
    has the settings from before.
    """
    modules = list(dict.fromkeys(module for layer in layers for module in layer.modules()))
    before = [_Settings(module) for module in modules]
    try:
        for layer in layers:
            change(layer)
        for settings in before:
            settings.keep_out_of_copies()
        yield
    finally:
        for settings in before:
            settings.put_back()


class _Settings:
    """The settings of a module before a change."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.before = _values(module)
        self.within: dict[str, Any] | None = None

    def keep_out_of_copies(self) -> None:
        """To be called after the change: copy.deepcopy and pickle will get the attributes from before it."""
        self.within = _values(self.module)
        own = vars(self.module)
        before = {name: self.attributes.get(name, _MISSING) for name in {**own, **self.attributes}}
        changed = {name: value for name, value in before.items() if own.get(name, _MISSING) is not value}
        outer = self.attributes.get(_REDUCE)
        own[_REDUCE] = _ReduceAsBefore(self.module, {**changed, **(outer.before if outer else {})})

    def put_back(self) -> None:
        own = vars(self.module)
        own.pop(_REDUCE, None)
        if _REDUCE in self.attributes:
            own[_REDUCE] = self.attributes[_REDUCE]
        now = _values(self.module)
        within = now if self.within is None else self.within
        for name in [name for name in _SETTINGS if now[name] == within[name] != self.before[name]]:
            if name in own and name not in self.attributes:
                del own[name]
            elif can_be_set(self.module, name):
                setattr(self.module, name, self.before[name])


class _ReduceAsBefore:
    """The `__reduce_ex__` of a module, which copy.deepcopy and pickle call, with some attributes from before."""

    def __init__(self, module: nn.Module, before: dict[str, Any]) -> None:
        self.module = module
        self.before = before

    def __call__(self, protocol: Any) -> Any:
        reduced = type(self.module).__reduce_ex__(self.module, protocol)
        if not (isinstance(reduced, tuple) and len(reduced) > 2 and isinstance(reduced[2], dict)):
            return reduced  # by the class's own code
        state = {name: value for name, value in {**reduced[2], **self.before}.items() if value is not _MISSING}
        state.pop(_REDUCE, None)
        return *reduced[:2], state, *reduced[3:]


def _values(module: nn.Module) -> dict[str, Any]:
    return {name: getattr(module, name, _MISSING) for name in _SETTINGS}
