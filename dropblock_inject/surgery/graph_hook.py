"""The hook that shows a DropBlock to torch.fx where the module that it masks is a leaf of the graph.

A torch.fx graph holds the layers of a network with their hooks, and not its blocks. Without this hook the graph module
would run the hook of a layer, and would not have the DropBlock that the hook looks up.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from .hook import ArgumentHook
from .place import Place, _in_graph


class ShowInGraph(ArgumentHook):
    """Puts a reference to the DropBlock into the graph, on the module that the DropBlock is registered on.

    When the graph runs, the module that stands there in the graph module is the one that acts.

    Args:
        host: the module whose output or argument is masked.
    """

    def __init__(self, place: Place, host: nn.Module) -> None:
        super().__init__(place, None)
        self.host = host

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict | None = None) -> Any:
        if _in_graph:  # of a graph that did not come to its end
            _in_graph.pop((threading.get_ident(), self.place.key), None)
        for number, argument in enumerate(args):
            if isinstance(argument, torch.fx.Proxy):
                shown = (*args[:number], self.change(argument, module), *args[number + 1 :])
                return shown if kwargs is None else (shown, kwargs)
        return None

    def change(self, tensor: Any, module: nn.Module) -> Any:
        tracer, standing = tensor.tracer, self.place.module
        if standing is None or not tracer.is_leaf_module(self.host, tracer.path_of_module(self.host)):
            return tensor
        reference = tracer.create_proxy("get_attr", tracer.path_of_module(standing), (), {})
        return tracer.create_proxy("call_function", _stands_at, (tensor, self.place.key, reference), {})


def _stands_at(tensor: Tensor, key: str, module: nn.Module) -> Tensor:
    _in_graph[threading.get_ident(), key] = module
    return tensor
