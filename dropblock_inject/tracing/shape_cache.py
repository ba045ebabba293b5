"""Operations on tensors without data: the shapes that they put out, worked out once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class ShapeCache:
    """Runs operations on meta tensors, and one like one before by making tensors of the shapes that that one gave.

    Most of a pass without data is spent in working out shapes, and networks repeat their blocks.
    """

    def __init__(self) -> None:
        self._seen: dict[Any, _Shapes | None] = {}

    def __call__(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if func not in _CACHEABLE:
            _CACHEABLE[func] = _gives_new_tensors(func)
        if not _CACHEABLE[func]:
            return func(*args, **kwargs)
        try:
            key = func, tuple(map(_key, args)), tuple((name, _key(entry)) for name, entry in kwargs.items())
            seen = self._seen.get(key)
        except TypeError:  # something that has no hash
            return func(*args, **kwargs)
        if seen is not None:
            return seen.make()
        output = func(*args, **kwargs)
        self._seen[key] = _Shapes.of(output)
        return output


class _Shapes(NamedTuple):
    """Shape, strides and dtype of each tensor that an operation puts out."""

    tensors: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
    is_tuple: bool

    @classmethod
    def of(cls, output: Any) -> _Shapes | None:
        outputs = output if isinstance(output, tuple) else (output,)
        if not all(isinstance(tensor, Tensor) and tensor.is_meta for tensor in outputs):
            return None
        return cls(tuple((t.shape, t.stride(), t.dtype) for t in outputs), isinstance(output, tuple))

    def make(self) -> Any:
        made = [torch.empty_strided(size, strides, dtype=t, device="meta") for size, strides, t in self.tensors]
        return tuple(made) if self.is_tuple else made[0]


def _gives_new_tensors(func: Any) -> bool:
    """Whether an operation neither writes its arguments nor returns views of them, and is the same each time."""
    schema = func._schema
    return (
        any(isinstance(argument.type, torch.TensorType) for argument in schema.arguments)
        and not any(argument.alias_info for argument in (*schema.arguments, *schema.returns))
        and all(isinstance(result.type, torch.TensorType) for result in schema.returns)
    )


_CACHEABLE: dict[Any, bool] = {}


def _key(argument: Any) -> Any:
    """What the shapes that an operation puts out depend on."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.stride(), argument.dtype, argument.device
    if isinstance(argument, list | tuple):
        return type(argument), tuple(map(_key, argument))
    return type(argument), argument
