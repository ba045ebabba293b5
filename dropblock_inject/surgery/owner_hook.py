"""The hook on the module that a DropBlock is registered on. It runs whenever that module does, and has two tasks.

It notices in training that a hook of the site is lost, because a module was replaced, wrapped or fused.

It shows the DropBlock to torch.fx. A graph holds the layers of a network with their hooks, and not its blocks: without
this hook the graph module would run the hook of a layer, and would not have the DropBlock that the hook looks up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DeadSiteError
from .hook import ArgumentHook, Hook
from .place import Place, _in_graph, thread

# Children by which torch's own wrappers hold the module that they wrap: checkpoint_wrapper, torch.compile, FSDP.
WRAPPED_AS = ("_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module")


class OwnerHook(ArgumentHook):
    """Watches the hooks of a site, and shows its DropBlock in graphs.

    Args:
        hooks: the hooks of the site, the one that masks first.
    """

    def __init__(self, place: Place, hooks: Sequence[Hook]) -> None:
        super().__init__(place, None)
        inside = f"{place.site.splice.owner}.".lstrip(".")
        self.hooks = [
            (tuple(hook.planned_module.removeprefix(inside).split(".")), hook)
            for hook in hooks
            if hook.planned_module.startswith(inside) and hook.planned_module != place.site.splice.owner
        ]

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> Any:
        for number, argument in enumerate(args):
            if isinstance(argument, torch.fx.Proxy):
                shown = (*args[:number], self.change(argument, module), *args[number + 1 :])
                return shown if kwargs is None else (shown, kwargs)
        if _in_graph:  # of a graph that did not run to its end
            _in_graph.pop((thread(), self.place.key), None)
        if not torch.compiler.is_compiling() and self.place.drops:
            for path, hook in self.hooks:
                found = _module_at(module, path)
                if found is None or not hook.is_on(found):
                    self._raise(found, hook)
        return None

    def _raise(self, found: nn.Module | None, hook: Hook) -> None:
        site, kind = self.place.site, "gone" if found is None else f"another module now: a {type(found).__name__}"
        raise DeadSiteError(
            f"{site.name}, after {site.host}, no longer takes part in the forward pass: "
            f"{hook.planned_module} is {kind}. Call remove_dropblock(model), then inject_dropblock(model, ...) again "
            "after such a change"
        )

    def change(self, tensor: Any, module: nn.Module) -> Any:
        """The input of the owner in a torch.fx trace, with a reference to the DropBlock in the graph."""
        tracer, standing = tensor.tracer, self.place.module
        path, first = self.hooks[0]
        host = _module_at(module, path) if first.masks else None
        if standing is None or host is None or not tracer.is_leaf_module(host, tracer.path_of_module(host)):
            return tensor
        reference = tracer.create_proxy("get_attr", tracer.path_of_module(standing), (), {})
        return tracer.create_proxy("call_function", _stands_at, (tensor, self.place.key, reference), {})


def _module_at(module: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """The module at a path of names below another one, inside of torch's own wrappers."""
    for name in path:
        child = module._modules.get(name)
        while child is None and (wrapped := _wrapped(module)) is not None:
            module, child = wrapped, wrapped._modules.get(name)
        if child is None:
            return None
        module = child
    while (wrapped := _wrapped(module)) is not None:
        module = wrapped
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    return next((child for name in WRAPPED_AS if (child := module._modules.get(name)) is not None), None)


def _stands_at(tensor: Tensor, key: str, module: nn.Module) -> Tensor:
    """In a running graph module: the module that stands at a site, for the hook that follows."""
    _in_graph[thread(), key] = module
    return tensor
