"""The operator as torch knows it: one operation that autograd, torch.compile and torch.export see as a whole.

What is kept for the backward pass is the seed, 8 bytes, and where the blocks are if they are few: the backward pass is
the same operation on the gradient, with the same mask.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, library

from . import dense, sparse
from .mask_spec import Rescale, mask_spec

_LIBRARY = library.Library("dropblock_inject", "DEF")
_ARGUMENTS = (
    "Tensor seed, Tensor keep_prob, Tensor? scale, Tensor? blocks, bool remember, "
    "SymInt[] block_size, bool per_channel, str? rescale, bool calibrated, int channel_dim"
)
_LIBRARY.define(f"drop(Tensor input, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(f"drop_(Tensor(a!) input, {_ARGUMENTS}) -> (Tensor, Tensor)")
_SMALL = 32  # times smaller than the tensor must what is remembered for the backward pass be


@lru_cache
def _backend(device: torch.device) -> Any:
    """The module that draws masks on a device other than the CPU."""
    has_triton = device.type == "cuda" and find_spec("triton") and torch.cuda.get_device_capability(device) >= (7, 0)
    return import_module(".triton_kernels", __package__) if has_triton else dense


def _write(
    input: Tensor,
    output: Tensor,
    seed: Tensor,
    keep_prob: Tensor,
    scale: Tensor | None,
    blocks: Tensor | None,
    remember: bool,
    block_size: Sequence[int],
    per_channel: bool,
    rescale: Rescale,
    calibrated: bool,
    channel_dim: int,
) -> tuple[Tensor, Tensor]:
    """Writes the result to `output`; returns scale and blocks as far as they were not known and are to be."""
    shape, block, kept = tuple(input.shape), tuple(block_size), keep_prob.item()
    spec = mask_spec(shape, input.dtype, channel_dim, block, kept, calibrated, per_channel, rescale)
    nothing = torch.empty(0, dtype=torch.int64, device=input.device)
    if input.device.type != "cpu":
        used = _backend(input.device).drop(input, output, seed, scale, spec)
        return (used if scale is None else nothing), nothing
    if blocks is not None and scale is not None:
        sparse.mask(input, output, blocks, scale, spec)
        return nothing, nothing
    blocks, work_out_scale = sparse.find_blocks(output.stride(), seed, spec)
    new_scale = work_out_scale() if scale is None else nothing
    sparse.mask(input, output, blocks, new_scale if scale is None else scale, spec)
    return new_scale, blocks if remember and blocks.nbytes * _SMALL <= output.nbytes else nothing


def _drop(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    output = torch.empty_like(input)
    return output, *_write(input, output, *arguments)


def _drop_in_place(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return _write(input, input, *arguments)


def _fake_drop(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(input), *_fake_drop_in_place(input, *arguments)


def _fake_drop_in_place(input: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    nothing = input.new_empty(0, dtype=torch.int64)
    _, _, scale, *_, rescale, _, _ = arguments
    if scale is not None:
        return nothing, nothing
    shape = (input.shape[0], *(1 for _ in input.shape[1:])) if rescale == "sample" else ()
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32)), nothing


_LIBRARY.impl("drop", _drop, "CompositeExplicitAutograd")
_LIBRARY.impl("drop_", _drop_in_place, "CompositeExplicitAutograd")
library.register_fake("dropblock_inject::drop", _fake_drop, lib=_LIBRARY)
library.register_fake("dropblock_inject::drop_", _fake_drop_in_place, lib=_LIBRARY)


def drop(input: Tensor, seed: Tensor, keep_prob: float, inplace: bool, *options: Any) -> Tensor:
    """The masked and rescaled input.

    Args:
        input: feature maps.
        seed: a random integer, on the device of the input: what the mask is a function of.
        keep_prob: share of the map to keep, in (0, 1).
        inplace: whether to overwrite the input.
        options: block size per spatial axis, per_channel, rescale, calibrated and channel_dim, in this order.
    """
    # A tensor times a float is the one use of a float that stays data in a compiled graph: with keep_prob as a constant
    # every step of a schedule would compile anew.
    kept = torch.ones((), dtype=torch.float64, device="cpu") * keep_prob
    if not torch.compiler.is_compiling():
        return _EagerDrop.apply(input, seed, kept, None, None, True, inplace, *options)[0]
    # How many blocks there are depends on the data, which would break the graph: they are drawn anew.
    output, _, _ = _Drop.apply(input, seed, kept, None, None, False, False, *options)
    return input.copy_(output) if inplace else output


class _Drop(torch.autograd.Function):
    """Puts out also what its backward pass would have to work out again: the scale, and the blocks if they are few."""

    @staticmethod
    def forward(
        input: Tensor,
        seed: Tensor,
        keep_prob: Tensor,
        scale: Tensor | None,
        blocks: Tensor | None,
        remember: bool,
        inplace: bool,
        *options: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        known = seed, keep_prob, scale, blocks, remember
        if inplace:
            return input, *torch.ops.dropblock_inject.drop_(input, *known, *options)
        return torch.ops.dropblock_inject.drop(input, *known, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        input, seed, keep_prob, scale, blocks, ctx.remember, ctx.inplace, *ctx.options = inputs
        output, new_scale, new_blocks = outputs
        ctx.mark_non_differentiable(new_scale, new_blocks)
        known = seed, keep_prob, new_scale if scale is None else scale, new_blocks if blocks is None else blocks
        ctx.save_for_backward(*known)
        ctx.strides = output.stride()
        if ctx.inplace:
            ctx.mark_dirty(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple:
        seed, keep_prob, scale, blocks = ctx.saved_tensors
        known = blocks if len(blocks) and gradient.stride() == ctx.strides else None
        function = _Drop if torch.compiler.is_compiling() else _EagerDrop
        arguments = seed, keep_prob, scale, known, ctx.remember, False, *ctx.options
        return function.apply(gradient, *arguments)[0], *(None for _ in range(11))


# Autograd looks at the signature whenever it calls forward; working it out anew takes longer than small masks do.
_Drop.forward.__signature__ = inspect.signature(_Drop.forward)  # type: ignore[attr-defined]


class _EagerDrop(_Drop):
    """The same with forward-mode differentiation, which torch.compile cannot trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        _Drop.setup_context(ctx, inputs, outputs)
        ctx.save_for_forward(*inputs[1:3], outputs[1] if inputs[3] is None else inputs[3])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        arguments = *ctx.saved_tensors, None, False, ctx.inplace, *ctx.options
        return _EagerDrop.apply(tangent, *arguments)[0], None, None
