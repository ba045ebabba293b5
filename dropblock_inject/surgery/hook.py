"""The forward hooks of a site: small picklable objects that know their place and which tensor of a call is meant."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import CompiledModelError
from ..ops.layer import NOT_SCRIPTABLE
from .place import Place

Key = int | str | None  # position or name of an argument; place in a tuple of outputs, None for the output itself


class _NotScriptableError(CompiledModelError, AttributeError):
    """To whom only asks whether there is a name, there is none."""


class Hook(ABC):
    """A hook that changes one tensor of a module's call.

    Attributes:
        place: the place of the site.
        key: which argument or output of the call is meant.
        masks: whether it sends a tensor through the module at the place.
        id: its key among the hooks of the module.
        planned_module: dotted name of the module that the plan puts it on.
    """

    masks = False

    def __init__(self, place: Place, key: Key) -> None:
        self.place = place
        self.key = key
        self.id = -1
        self.planned_module = ""

    def register(self, name: str, module: nn.Module) -> None:
        """Puts the hook on the module that has this dotted name in the model."""
        self.planned_module = name
        self.id = self._register_on(module).id

    @property
    def __name__(self) -> str:
        """Asked for by torch.jit.script alone, which compiles hooks that are functions."""
        raise _NotScriptableError(NOT_SCRIPTABLE)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # In another process the ids start anew. The next hook on the same module would silently take the place of this.
        RemovableHandle.next_id = max(RemovableHandle.next_id, self.id + 1)

    def is_on(self, module: nn.Module) -> bool:
        """Whether the hook is on a module."""
        return any(self is hook for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))

    @abstractmethod
    def _register_on(self, module: nn.Module) -> RemovableHandle: ...

    @abstractmethod
    def change(self, tensor: Tensor, module: nn.Module) -> Tensor:
        """The tensor that takes the place of the given one."""


class ArgumentHook(Hook):
    """A hook that changes what a module is given."""

    def _register_on(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> Any:
        if kwargs is None:  # torch.ao.quantization hands hooks on to the modules it makes, as hooks without kwargs
            return self._changed(module, args, {})[0]
        return self._changed(module, args, kwargs)

    def _changed(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments of the call, however the one that is meant is passed in it."""
        key = self.key
        if isinstance(key, int) and key < len(args):
            return with_entry(args, key, self.change(args[key], module)), kwargs
        if key in kwargs:
            return args, {**kwargs, key: self.change(kwargs[key], module)}
        names = list(inspect.signature(module.forward).parameters)
        if isinstance(key, int):
            return args, {**kwargs, names[key]: self.change(kwargs[names[key]], module)}
        position = names.index(str(key))
        return with_entry(args, position, self.change(args[position], module)), kwargs


class OutputHook(Hook):
    """A hook that changes what a module returns."""

    def _register_on(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(self)

    def __call__(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if self.key is None:
            return self.change(output, module)
        return with_entry(output, self.key, self.change(output[self.key], module))


def with_entry(entries: Any, key: int | str, entry: Any) -> Any:
    """A copy of a tuple, list, dict or namedtuple with one entry replaced."""
    if isinstance(entries, dict):
        return type(entries)({**entries, key: entry})
    changed = [entry if i == key else old for i, old in enumerate(entries)]
    return type(entries)(*changed) if hasattr(entries, "_fields") else type(entries)(changed)


def recorded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function. In a torch.fx trace the call becomes one node of the graph instead."""
    for argument in arguments:
        if isinstance(argument, torch.fx.Proxy):
            return argument.tracer.create_proxy("call_function", function, arguments, {})
    return function(*arguments)
