"""The values of small tensors that depend on no input, for code that asks for them in a pass without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_MOST_ELEMENTS = 1024
_MOST_IN_A_BUFFER = 16  # a stride, a padding
_FROM_NUMBERS = (torch.tensor, torch.as_tensor)
_WITHOUT_VALUES = ("empty", "new_empty")  # operations whose names begin like these


class Constants(TorchFunctionMode):
    """Knows the values of meta tensors that were made of numbers, such as ``torch.arange(3)``, and of such tensors.

    Within it, ``item()``, ``tolist()``, ``numpy()`` and ``cpu()`` of such a tensor answer as if it had data.

    Args:
        run: what runs an operation on meta tensors.
        known: meta tensors and their values.
    """

    def __init__(
        self, run: Callable[[Any, tuple, dict[str, Any]], Any], known: Iterable[tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self._run = run
        self._values: dict[int, tuple[Tensor, Tensor]] = {}  # holds the meta tensors, so that ids stay unique
        for tensor, value in known:
            if value.numel() <= _MOST_IN_A_BUFFER and not value.is_meta:
                self._note(tensor, value.detach().to("cpu", copy=True))

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.numpy and id(args[0]) in self._values:
            return self._values[id(args[0])][1].numpy()
        output = func(*args, **kwargs)
        is_of_numbers = func in _FROM_NUMBERS and next(tensors_in((args, kwargs)), None) is None
        if is_of_numbers and output.is_meta and _is_small(output):
            self._note(output, func(*args, **{**kwargs, "device": "cpu"}))
        return output

    def run(self, func: Any, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]) -> Any:
        """What an operation puts out: meta tensors, or numbers and tensors with data if that is what it asks for.

        Args:
            tensors: those among its arguments.
        """
        known = [tensor for tensor in tensors if id(tensor) in self._values]
        if tensors and not known:
            return self._run(func, args, kwargs)
        if any(tensor.is_meta and id(tensor) not in self._values for tensor in tensors) or _has_no_values(func):
            output = self._run(func, args, kwargs)
            self._forget(output, known)
            return output
        if known and (func is torch.ops.aten._local_scalar_dense.default or _goes_to_cpu(kwargs)):
            return func(*self._with_values(args), **self._with_values(kwargs))
        output = self._run(func, args, kwargs)
        made = list(tensors_in(output))
        if made and all(tensor.is_meta and _is_small(tensor) for tensor in made):
            on_cpu = {"device": "cpu"} if kwargs.get("device") is not None else {}
            values = func(*self._with_values(args), **{**self._with_values(kwargs), **on_cpu})
            for tensor, value in zip(made, tensors_in(values), strict=True):
                self._note(tensor, value)
        return output

    def _note(self, tensor: Tensor, value: Tensor) -> None:
        self._values[id(tensor)] = tensor, value

    def _forget(self, output: Any, known: list[Tensor]) -> None:
        """A tensor that an operation has written into has other values now, and so have the views of its memory."""
        written = [tensor for tensor in tensors_in(output) if any(tensor is other for other in known)]
        memory = {self._values[id(tensor)][1].untyped_storage().data_ptr() for tensor in written}
        for key, (_, value) in list(self._values.items()) if memory else ():
            if value.untyped_storage().data_ptr() in memory:
                del self._values[key]

    def _with_values(self, nested: Any) -> Any:
        if isinstance(nested, Tensor):
            return self._values[id(nested)][1] if id(nested) in self._values else nested
        if isinstance(nested, dict):
            return {key: self._with_values(entry) for key, entry in nested.items()}
        if isinstance(nested, list | tuple):
            return type(nested)(map(self._with_values, nested))
        return nested


def _is_small(tensor: Tensor) -> bool:
    return tensor.numel() <= _MOST_ELEMENTS


def _has_no_values(func: Any) -> bool:
    """Whether an operation makes a tensor whose values are drawn, or are whatever the memory has."""
    name = func._schema.name.partition("::")[2]
    return name.startswith(_WITHOUT_VALUES) or torch.Tag.nondeterministic_seeded in func.tags


def _goes_to_cpu(kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device).type == "cpu"


def tensors_in(nested: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        for entry in nested.values():
            yield from tensors_in(entry)
    elif isinstance(nested, tuple | list):
        for entry in nested:
            yield from tensors_in(entry)
