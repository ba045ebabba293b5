"""The part of a network before its first site. It is the same in every Monte Carlo pass, and is computed once.

A trace tells which tensors cross from there to the rest. Where each of them is a feature map that only modules of the
rest are given, hooks repeat it along the batch when these modules are called. So one call of the model computes the
beginning for N images and the rest for N times as many, and each has masks of its own. A second trace shows whether
each image is on its own in the rest.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..anatomy.feature_maps import Geometry
from ..errors import TraceError
from ..surgery.hook import with_entry
from ..surgery.owner_hook import OwnerHook
from ..surgery.splice import dropping_layers, find_hooks
from ..tracing.recorder import trace_forward, unwrapped
from ..tracing.trace import Call, Op, Trace, Value
from .row_wise import numbers_in, stay_apart


@dataclass(frozen=True)
class Entry:
    """An argument by which a tensor of the beginning comes to the rest: the module's dotted name, and the argument."""

    module: str
    argument: int | str


@dataclass(frozen=True)
class SharedBeginning:
    """Where the beginning ends.

    Attributes:
        entries: the arguments that are repeated.
        largest: the number of elements of the largest tensor of the rest, for one image.
        largest_of_all: the same of the whole network.
    """

    entries: tuple[Entry, ...]
    largest: int
    largest_of_all: int


class StaleError(RuntimeError):
    """A model does not run as it did when its beginning was found."""


_Key = tuple[Any, ...]
_found: weakref.WeakKeyDictionary[nn.Module, tuple[_Key, SharedBeginning | None]] = weakref.WeakKeyDictionary()


def shared_beginning(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], pick: Callable[[Any], Tensor]
) -> SharedBeginning | None:
    """The beginning that a model's passes share; None if it cannot be told from the rest. The last one is remembered.

    Args:
        args, kwargs: what the model is called with.
        pick: the function that takes the output in question out of what the model returns.
    """
    if any(hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None for m in model.modules()):
        return None  # compiled code runs no hooks that are added later
    key = (
        tuple(map(id, model.modules())),
        tuple(found.hook.place.key for found in find_hooks(model)),
        [_described(entry) for entry in args],
        {name: _described(entry) for name, entry in kwargs.items()},
    )
    remembered = _found.get(model)
    if remembered is None or remembered[0] != key:
        trace = _traced(model, args, kwargs)
        found = None if trace is None else _find(model, trace, batch_size(args, kwargs))
        if (
            trace is not None
            and found is not None
            and not _repeats(model, found, args, kwargs, pick, numbers_in(trace))
        ):
            found = None
        _found[model] = remembered = key, found
    return remembered[1]


def forget(model: nn.Module) -> None:
    """Forgets the beginning that is remembered of a model."""
    _found.pop(model, None)


def _described(entry: Any) -> Any:
    if isinstance(entry, Tensor):
        return tuple(entry.shape), entry.dtype
    return entry if isinstance(entry, bool | int | float | str | None) else type(entry)


@contextmanager
def repeating(model: nn.Module, beginning: SharedBeginning) -> Iterator[Callable[[int], None]]:
    """Within this context each image comes out of the model several times in a row; sets how many times.

    A layer that drops something before the tensors are repeated raises :class:`StaleError`.
    """
    times, has_repeated = 1, False

    def set_times(number: int) -> None:
        nonlocal times, has_repeated
        times, has_repeated = number, False

    def hook_for(key: int | str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            nonlocal has_repeated
            has_repeated = True
            if isinstance(key, int):
                return with_entry(args, key, _repeated(args[key], times)), kwargs
            return args, {**kwargs, key: _repeated(kwargs[key], times)}

        return hook

    def check(module: nn.Module, args: tuple) -> None:
        if not has_repeated:
            raise StaleError(f"a {type(module).__name__} runs before the part that is repeated")

    modules = dict(model.named_modules())
    handles: list[RemovableHandle] = []
    try:
        for entry in beginning.entries:
            # Before the hooks of a site, which may be on the same module.
            hook = hook_for(entry.argument)
            handles.append(modules[entry.module].register_forward_pre_hook(hook, with_kwargs=True, prepend=True))
        handles += [layer.register_forward_pre_hook(check) for layer in dropping_layers(model).values()]
        yield set_times
    finally:
        for handle in handles:
            handle.remove()


def _repeated(tensor: Tensor, times: int) -> Tensor:
    """Each image several times in a row, in the same memory format."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(tensor.dim(), torch.contiguous_format)
    keep = last if tensor.is_contiguous(memory_format=last) else torch.contiguous_format
    rows = torch.arange(len(tensor), device=tensor.device).repeat_interleave(times)
    return tensor.index_select(0, rows).contiguous(memory_format=keep)


def batch_size(args: tuple, kwargs: dict[str, Any]) -> int:
    """The length of the first axis of the first tensor that a model is called with; 0 if there is none."""
    tensors = [entry for entry in (*args, *kwargs.values()) if isinstance(entry, Tensor) and entry.dim() > 1]
    return len(tensors[0]) if tensors else 0


def _traced(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Trace | None:
    try:
        trace = trace_forward(model, args, kwargs)
    except TraceError:
        return None
    return trace if trace.error is None else None


def _find(model: nn.Module, trace: Trace, batch: int) -> SharedBeginning | None:
    geometry = Geometry.of(trace)
    if geometry is None or batch == 0:
        return None
    first = _first_site(model, trace)
    for start in sorted({call.first for call in trace.calls if call.first <= first}, reverse=True):
        entries = _entries(trace, geometry, start, batch)
        if entries:
            sizes = [(op.index, prod(value.shape) // batch) for op in trace.ops for value in op.outputs]
            largest = max((size for index, size in sizes if index >= start), default=1)
            return SharedBeginning(tuple(entries), largest, max(size for _, size in sizes))
    return None


_TIMES = 3  # images are repeated so often in a pass without data that shows whether they can be
_RANDOM = ("bernoulli", "exponential", "multinomial", "native_dropout", "normal", "rand", "uniform")


def _first_site(model: nn.Module, trace: Trace) -> int:
    """The operation before which no site has any part in the pass."""
    layers = set(map(id, dropping_layers(model).values()))
    layers |= {id(found.module) for found in find_hooks(model) if not isinstance(found.hook, OwnerHook)}
    names = {name for name, module in model.named_modules() if id(module) in layers}
    random = [op.index for op in trace.ops if op.kind.startswith(_RANDOM)]  # of the network itself, in eval mode too
    return min([call.first for call in trace.calls if call.name in names] + random, default=0)


def _entries(trace: Trace, geometry: Geometry, start: int, batch: int) -> list[Entry]:
    """The arguments by which all that is computed before an operation comes to the rest; empty if it does otherwise."""
    entries: dict[Entry, None] = {}
    for value in (*trace.inputs, *(value for op in trace.ops[:start] for value in op.outputs)):
        readers = [op for op in value.readers if op.index >= start]
        if readers and (value.shape[0] != batch or geometry.map_of(value) is None):
            return []
        for op in readers:
            call = _outermost_given(value, op, start)
            if call is None or len(trace.calls_of[call.name]) != 1:
                return []
            entries |= {Entry(call.name, key): None for key, given in call.arguments.items() if given is value}
    return list(entries)


def _outermost_given(value: Value, op: Op, start: int) -> Call | None:
    """The outermost call around an operation that is given a tensor, of those that begin with the rest or in it."""
    found = None
    call: Call | None = op.call
    while call is not None and call.first >= start:
        if any(given is value for given in call.arguments.values()):
            found = call
        call = call.parent
    return found


def _repeats(
    model: nn.Module,
    beginning: SharedBeginning,
    args: tuple,
    kwargs: dict[str, Any],
    pick: Callable[[Any], Tensor],
    numbers: list[Any],
) -> bool:
    """Whether a pass without data gives each image as often as it is repeated, and keeps the images apart.

    Args:
        numbers: those in the arithmetic of a pass that repeats nothing: one that is another now is the batch size.
    """
    returned: list[Any] = []
    inner, _ = unwrapped(model)
    last = inner.register_forward_hook(lambda module, args, output: returned.append(output))
    try:
        with repeating(model, beginning) as repeat:
            repeat(_TIMES)
            trace = _traced(model, args, kwargs)
    finally:
        last.remove()
    if trace is None or numbers_in(trace) != numbers:
        return False
    rows = _TIMES * batch_size(args, kwargs)
    try:
        output = pick(returned[-1])
    except Exception:  # the output is looked at again where it has values
        return False
    if output.dim() == 0 or len(output) != rows:
        return False
    return stay_apart(trace.ops, lambda op: op.kind == "index_select" and op.inputs[0].shape[0] * _TIMES == rows, rows)
