"""The operator as torch knows it: one operation that autograd, torch.compile and torch.export see as a whole.

All that is kept for the backward pass is the seed, 8 bytes: the backward pass is the same operation on the gradient,
with the same mask drawn anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from . import dense, sparse
from .spec import Rescale, mask_spec

_LIBRARY = torch.library.Library("dropblock_inject", "DEF")
_ARGUMENTS = (
    "Tensor seed, Tensor keep_prob, Tensor? scale, "
    "SymInt[] block_size, bool per_channel, str? rescale, bool calibrated, int channel_dim"
)
_LIBRARY.define(f"drop(Tensor input, {_ARGUMENTS}) -> (Tensor, Tensor)")
_LIBRARY.define(f"drop_(Tensor(a!) input, {_ARGUMENTS}) -> Tensor")


@lru_cache
def _backend(device: torch.device) -> Any:
    """The module that draws masks on a device."""
    if device.type == "cpu":
        return sparse
    has_triton = device.type == "cuda" and find_spec("triton") and torch.cuda.get_device_capability(device) >= (7, 0)
    return import_module(".kernels", __package__) if has_triton else dense


def _write(
    input: Tensor,
    output: Tensor,
    seed: Tensor,
    keep_prob: Tensor,
    scale: Tensor | None,
    block_size: Sequence[int],
    per_channel: bool,
    rescale: Rescale,
    calibrated: bool,
    channel_dim: int,
) -> Tensor:
    shape, block, kept = tuple(input.shape), tuple(block_size), keep_prob.item()
    spec = mask_spec(shape, input.dtype, channel_dim, block, kept, calibrated, per_channel, rescale)
    used = _backend(input.device).drop(input, output, seed, scale, spec)
    return used if scale is None else used.clone()  # an output of an operation must not be an input of it


def _drop(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    output = torch.empty_like(input)
    return output, _write(input, output, *arguments)


def _drop_in_place(input: Tensor, *arguments: Any) -> Tensor:
    return _write(input, input, *arguments)


def _fake_drop(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), _fake_drop_in_place(input, *arguments)


def _fake_drop_in_place(input: Tensor, *arguments: Any) -> Tensor:
    rescale = arguments[-3]
    shape = (input.shape[0], *(1 for _ in input.shape[1:])) if rescale == "sample" else ()
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32))


_LIBRARY.impl("drop", _drop, "CompositeExplicitAutograd")
_LIBRARY.impl("drop_", _drop_in_place, "CompositeExplicitAutograd")
torch.library.register_fake("dropblock_inject::drop", _fake_drop, lib=_LIBRARY)
torch.library.register_fake("dropblock_inject::drop_", _fake_drop_in_place, lib=_LIBRARY)


def drop(input: Tensor, seed: Tensor, keep_prob: float, inplace: bool, *options: Any) -> Tensor:
    """The masked and rescaled input.

    Args:
        input: feature maps.
        seed: 64 random bits, on the device of the input: what the mask is a function of.
        keep_prob: share of the map to keep, in (0, 1).
        inplace: whether to overwrite the input.
        options: block size per spatial axis, per_channel, rescale, calibrated and channel_dim, in this order.
    """
    # A tensor times a float is the one use of a float that stays data in a compiled graph: with keep_prob as a constant
    # every step of a schedule would compile anew.
    kept = torch.ones((), dtype=torch.float64, device="cpu") * keep_prob
    if not torch.compiler.is_compiling():
        return _EagerDrop.apply(input, seed, kept, None, inplace, *options)[0]
    output, _ = _Drop.apply(input, seed, kept, None, False, *options)
    return input.copy_(output) if inplace else output


class _Drop(torch.autograd.Function):
    """Puts out the scale as well, so that the backward pass need not count again what is dropped."""

    @staticmethod
    def forward(
        input: Tensor, seed: Tensor, keep_prob: Tensor, scale: Tensor | None, inplace: bool, *options: Any
    ) -> tuple[Tensor, Tensor]:
        if inplace:
            return input, torch.ops.dropblock_inject.drop_(input, seed, keep_prob, scale, *options)
        return torch.ops.dropblock_inject.drop(input, seed, keep_prob, scale, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
        input, seed, keep_prob, _, inplace, *ctx.options = inputs
        scale = outputs[1]
        ctx.mark_non_differentiable(scale)
        ctx.save_for_backward(seed, keep_prob, scale)
        ctx.inplace = inplace
        if inplace:
            ctx.mark_dirty(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple:
        function = _Drop if torch.compiler.is_compiling() else _EagerDrop
        passed_on, _ = function.apply(gradient, *ctx.saved_tensors, False, *ctx.options)
        return passed_on, *(None for _ in range(9))


# Autograd looks at the signature whenever it calls forward; working it out anew takes longer than small masks do.
_Drop.forward.__signature__ = inspect.signature(_Drop.forward)  # type: ignore[attr-defined]


class _EagerDrop(_Drop):
    """The same with forward-mode differentiation, which torch.compile cannot trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
        _Drop.setup_context(ctx, inputs, outputs)
        ctx.save_for_forward(*inputs[1:3], outputs[1])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None]:
        return _EagerDrop.apply(tangent, *ctx.saved_tensors, ctx.inplace, *ctx.options)[0], None
