"""One shape-only forward pass of a copy of the model, recorded.

The copy has the structure of the model and parameters and buffers without data ("meta" tensors), so the pass costs
neither memory nor arithmetic and the model itself is never touched.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import CompiledModelError
from .constants import Constants, tensors_in
from .meta_copy import meta_copy, to_meta
from .shape_cache import ShapeCache
from .trace import SHARED_WRITE, Call, Op, Trace, Value


class _Wrapper(NamedTuple):
    """A kind of module that only calls another one, and cannot be copied or run on its own."""

    kind: type[nn.Module]
    attribute: str


_WRAPPERS = (_Wrapper(nn.DataParallel, "module"), _Wrapper(nn.parallel.DistributedDataParallel, "module"))


def trace_forward(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Trace:
    """Runs `model` once in eval mode on `args` and `kwargs` (tensors in them give shape and dtype only).

    Raises:
        TraceError: the model cannot be copied.
    """
    model, prefix = unwrapped(model)
    with torch.inference_mode(False):  # which would hide operations inside compound ones
        meta_model = meta_copy(model).eval()
        constants = Constants(ShapeCache(), zip(meta_model.buffers(), model.buffers(), strict=True))
        return _record(meta_model, prefix, to_meta(args), to_meta(kwargs), constants)


def refuse_scripted(model: nn.Module) -> None:
    """Raises CompiledModelError if a part of a model is compiled by torch.jit: it takes no hooks."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise CompiledModelError(
                f"{type(model).__name__} holds a module compiled by torch.jit{f', {name!r}' if name else ''}; nothing "
                "can be put into it and its operations are not seen; use the original module"
            )


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The model inside of DataParallel and DistributedDataParallel, and the prefix of its modules' names."""
    prefix = ""
    while (wrapper := next((w for w in _WRAPPERS if isinstance(model, w.kind)), None)) is not None:
        model, prefix = getattr(model, wrapper.attribute), f"{prefix}{wrapper.attribute}."
    return model, prefix


@contextmanager
def without_data() -> Iterator[None]:
    """The context of a pass without data: nothing is drawn, and what the model has to say of it is for nobody."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=()), torch.no_grad(), torch.device("meta"):
        warnings.simplefilter("ignore")
        yield


def _record(meta_model: nn.Module, prefix: str, args: tuple, kwargs: dict[str, Any], constants: Constants) -> Trace:
    recorder = _Recorder(constants)
    for tensor in tensors_in((args, kwargs)):
        recorder.add_input(tensor)
    iterated: set[str] = set()
    modules = {f"{prefix}{name}".removesuffix("."): module for name, module in meta_model.named_modules()}
    for name, module in modules.items():
        module._modules = _WatchedChildren(module._modules, name, iterated)
        module.register_forward_pre_hook(recorder.entering(name), with_kwargs=True)
        module.register_forward_hook(recorder.leaving, with_kwargs=True)
    iterated.clear()
    error = None
    with without_data(), constants, recorder:
        try:
            meta_model(*args, **kwargs)
        except Exception as problem:  # whatever the model's own code raises on tensors without data
            error = problem
    ended_in = recorder.close()
    return Trace(recorder.calls, recorder.ops, recorder.inputs, modules, iterated, error, ended_in)


class _WatchedChildren(dict):
    """The children of a module; notes it when they are gone through, other than in search of parameters and buffers."""

    def __init__(self, children: dict[str, nn.Module | None], name: str, iterated: set[str]) -> None:
        super().__init__(children)
        self._name, self._iterated = name, iterated

    def _note(self, asked_by: FrameType) -> None:
        if asked_by.f_code is not nn.Module.named_modules.__code__:
            self._iterated.add(self._name)

    def __iter__(self) -> Iterator[str]:
        self._note(sys._getframe(1))
        return super().__iter__()

    def keys(self) -> Any:
        self._note(sys._getframe(1))
        return super().keys()

    def values(self) -> Any:
        self._note(sys._getframe(1))
        return super().values()

    def items(self) -> Any:
        self._note(sys._getframe(1))
        return super().items()


class _Recorder(TorchDispatchMode):
    """Sees every operation, down to those inside compound functions, and the module calls around them."""

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.ops: list[Op] = []
        self.inputs: list[Value] = []
        self._stack: list[Call] = []
        self._tensors: dict[int, tuple[Tensor, Value]] = {}  # holds the tensors, so that ids stay unique
        self._by_storage: dict[int, list[Tensor]] = defaultdict(list)
        self._run = constants.run

    def add_input(self, tensor: Tensor) -> None:
        self.inputs.append(self._new_value(tensor, None))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(tensors_in((args, kwargs)))
        inputs = [self._tensors[id(t)][1] for t in tensors if id(t) in self._tensors]
        output = self._run(func, args, kwargs, tensors)
        if inputs and self._stack:
            arguments = tuple((self._value(a) or a) if isinstance(a, Tensor) else a for a in args)
            kind = func._schema.name.partition("::")[2].rstrip("_")
            op = Op(
                len(self.ops), kind, tuple(inputs), [], self._stack[-1], _aliases(func), bool(_written(func)), arguments
            )
            self.ops.append(op)
            for value in inputs:
                value.readers.append(op)
            written = [t for index in _written(func) if index < len(args) for t in tensors_in((args[index],))]
            for tensor in written:
                self._rewrite(tensor, op)
            for tensor in tensors_in((output,)):
                if not any(tensor is t for t in written):
                    op.outputs.append(self._new_value(tensor, op))
        return output

    def _new_value(self, tensor: Tensor, producer: Op | None) -> Value:
        if id(tensor) not in self._tensors:
            self._by_storage[tensor.untyped_storage()._cdata].append(tensor)
        value = Value(tuple(tensor.shape), producer)
        self._tensors[id(tensor)] = tensor, value
        return value

    def _rewrite(self, tensor: Tensor, op: Op) -> None:
        """A tensor is written in place: it and all that share its memory have new values."""
        written = self._new_value(tensor, op)
        op.outputs.append(written)
        for other in self._by_storage[tensor.untyped_storage()._cdata]:
            if other is not tensor:
                # An operation that the model did not ask for, so that it does not count among the readers.
                through = Op(
                    len(self.ops), SHARED_WRITE, (self._tensors[id(other)][1], written), [], op.call, True, False, ()
                )
                self.ops.append(through)
                through.outputs.append(self._new_value(other, through))

    def entering(self, name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            for entry in (*args, *kwargs.values()):
                if isinstance(entry, list):
                    self._tell_apart(entry, (*args, *kwargs.values()))
            call = Call(name, module, self._stack[-1] if self._stack else None, len(self.ops))
            self.calls.append(call)
            self._stack.append(call)
            entries: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
            for key, entry in entries.items():
                if isinstance(entry, Tensor) and self._value(entry) in call.arguments.values():
                    entries[key] = torch.ops.aten.alias(entry)  # given twice: to tell one from the other
                call.arguments |= self._known({key: entries[key]})
            return tuple(entries[i] for i in range(len(args))), {key: entries[key] for key in kwargs}

        return hook

    def _tell_apart(self, entries: list, arguments: tuple) -> None:
        """What a module is given both as an argument and within a list, it may read without that argument."""
        for index, entry in enumerate(entries):
            if isinstance(entry, Tensor) and any(entry is argument for argument in arguments):
                entries[index] = torch.ops.aten.alias(entry)

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        call = self._stack[-1]
        if isinstance(output, Tensor) and self._value(output) in call.arguments.values():
            # An identity module: what it hands on gets a value of its own, to tell it from what it was given.
            output = torch.ops.aten.alias(output)
        self._stack.pop()
        call.last = len(self.ops)
        if isinstance(output, Tensor):
            call.outputs = self._known({None: output})
        elif isinstance(output, dict):
            call.outputs = self._known(output)
        elif isinstance(output, tuple | list):
            call.outputs = self._known(dict(enumerate(output)))
        return output

    def close(self) -> tuple[Call, ...]:
        """Ends the calls that an error left open, and returns them."""
        left_open = tuple(self._stack)
        for call in left_open:
            call.last = len(self.ops)
        return left_open

    def _value(self, tensor: Tensor) -> Value | None:
        return self._tensors[id(tensor)][1] if id(tensor) in self._tensors else None

    def _known(self, entries: dict) -> dict:
        values = {key: self._value(entry) for key, entry in entries.items() if isinstance(entry, Tensor)}
        return {key: value for key, value in values.items() if value is not None}


_WRITTEN: dict[Any, tuple[int, ...]] = {}


def _written(func: Any) -> tuple[int, ...]:
    """Positions of the arguments that an operation writes in place."""
    if func not in _WRITTEN:
        arguments = func._schema.arguments
        _WRITTEN[func] = tuple(i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write)
    return _WRITTEN[func]


def _aliases(func: Any) -> bool:
    """Whether an operation returns a view of what it is given."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
