"""The operator in torch's terms: autograd, torch.compile, torch.export and torch.vmap see it as one operation.

The backward pass is the same operation on the gradient, with the same mask. For that it saves the seed, 8 bytes, the
scale, and the blocks if they are few. It saves no floating point number that the mask depends on, because
``torch.autograd.graph.saved_tensors_hooks`` may round it.

On small maps most of the time goes to torch's own machinery, so the eager mode uses as little of it as it can.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, library
from torch.autograd import Function, forward_ad

from . import dense, sparse
from .mask_spec import Options, mask_spec

_LIBRARY = library.Library("dropblock_inject", "DEF")
_OPTIONS = "SymInt[] block_size, bool per_channel, str? rescale, bool calibrated, int channel_dim"
# For compiled graphs. keep_prob is a tensor with the bits of a float64. A constant would need a graph for each value.
_LIBRARY.define(f"drop(Tensor input, Tensor seed, Tensor? scale, Tensor keep_prob, {_OPTIONS}) -> (Tensor, Tensor)")
# For the eager mode, below autograd. The output may be the input.
_LIBRARY.define(
    "drop_to(Tensor input, Tensor(a!) output, Tensor seed, Tensor? scale, Tensor? blocks, "
    f"float keep_prob, {_OPTIONS}) -> (Tensor, Tensor)"
)
_DROP_TO = torch.ops.dropblock_inject.drop_to.default
_VMAP_MODE = torch._C.DispatchKeySet(torch._C._dispatch_key_parse("VmapMode"))
_MAX_SAVED_FRACTION = 1 / 32  # of the memory of the output: larger lists of blocks are not saved but drawn again


def drop(input: Tensor, seed: Tensor, keep_prob: float, inplace: bool, options: Options) -> Tensor:
    """The masked and rescaled input.

    Args:
        input: feature maps.
        seed: a random integer, on the device of the input. The mask is a function of it.
        keep_prob: share of the map to keep, in (0, 1).
        inplace: whether to overwrite the input.
        options: the other parameters of the mask.
    """
    if torch.compiler.is_compiling():
        output, _ = torch.ops.dropblock_inject.drop(input, seed, None, _bits(keep_prob), *options)
        output = output.view_as(output)  # Dynamo lets hooks set attributes on this, not on one output of several
    elif inplace and not ((input.requires_grad and input._is_view()) or torch._C._are_functorch_transforms_active()):
        return _apply(input, True, seed, None, None, keep_prob, options)
    else:
        output = _apply(input, False, seed, None, None, keep_prob, options)
    return input.copy_(output) if inplace else output


def _bits(keep_prob: float) -> Tensor:
    """The bits of `keep_prob`. A compiled graph makes a float a constant, unless a tensor is multiplied by it."""
    return (torch.ones((), dtype=torch.float64, device="cpu") * keep_prob).view(torch.int64)


def _mask(
    input: Tensor,
    output: Tensor | None,
    seed: Tensor,
    scale: Tensor | None,
    blocks: Tensor | None,
    keep_prob: float,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Writes the result to `output`, or to a new tensor. Returns it, the scale and the blocks, None unless few."""
    spec = mask_spec(tuple(input.shape), input.dtype, keep_prob, options)
    if input.is_cpu:
        output, scale, blocks = sparse.drop(input, output, seed, scale, blocks, spec)
        return output, scale, blocks if blocks.nbytes <= output.nbytes * _MAX_SAVED_FRACTION else None
    output = torch.empty_like(input) if output is None else output
    return output, _backend(input.device, input.dtype).drop(input, output, seed, scale, spec), None


@lru_cache
def _backend(device: torch.device, dtype: torch.dtype) -> Any:
    """The module that draws masks on a device other than the CPU."""
    if device.type == "cuda" and find_spec("triton"):
        oldest_gpu = (8, 0) if dtype == torch.bfloat16 else (7, 0)  # for the Triton of torch 2.6
        if torch.cuda.get_device_capability(device) >= oldest_gpu:
            return import_module(".triton_kernels", __package__)
    return dense


def _drop_to(
    input: Tensor,
    output: Tensor,
    seed: Tensor,
    scale: Tensor | None,
    blocks: Tensor | None,
    keep_prob: float,
    block_size: Sequence[int],
    *options: Any,
) -> tuple[Tensor, Tensor]:
    arguments = (seed, scale, blocks, keep_prob, Options(tuple(block_size), *options))
    _, new_scale, new_blocks = _mask(input, output, *arguments)
    nothing = torch.empty(0, dtype=torch.int64, device=input.device)
    return new_scale if scale is None else nothing, new_blocks if blocks is None and new_blocks is not None else nothing


def _fake_drop_to(
    input: Tensor, output: Tensor, seed: Tensor, scale: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor]:
    *_, rescale, _, _ = arguments
    nothing = input.new_empty(0, dtype=torch.int64)
    if scale is not None:
        return nothing, nothing
    shape = (input.shape[0], *(1 for _ in input.shape[1:])) if rescale == "sample" else ()
    return input.new_empty(shape, dtype=torch.promote_types(input.dtype, torch.float32)), nothing


def _drop(input: Tensor, seed: Tensor, scale: Tensor | None, keep_prob: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    output, new_scale = _fake_drop(input, seed, scale, keep_prob, *options)
    value = keep_prob.view(torch.float64).item()
    if value == 1:
        return output.copy_(input), new_scale.fill_(1)
    return output, _drop_to(input, output, seed, scale, None, value, *options)[0]


def _fake_drop(input: Tensor, seed: Tensor, scale: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), _fake_drop_to(input, input, seed, scale, None, *arguments)[0]


class _Drop(Function):
    """The operator of the eager mode. The transforms of torch.func save outputs only: the scale and the blocks too."""

    @staticmethod
    def forward(input: Tensor, inplace: bool, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = input if inplace else torch.empty_like(input)
        *others, options = arguments
        return output, *_DROP_TO(input, output, *others, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        input, ctx.inplace, seed, scale, blocks, ctx.keep_prob, ctx.options = inputs
        result, new_scale, new_blocks = output
        scale = new_scale if scale is None else scale
        ctx.mark_non_differentiable(new_scale, new_blocks)
        ctx.set_materialize_grads(False)  # autograd would make zeros for the scale and the blocks
        ctx.save_for_backward(seed, scale, new_blocks if blocks is None else blocks)
        ctx.save_for_forward(seed, scale)
        ctx.strides = result.stride()
        if ctx.inplace:
            ctx.mark_dirty(input)

    @staticmethod
    def backward(ctx: Any, gradient: Any, *_: Any) -> tuple:
        if gradient is None:
            return (None,) * 7
        seed, scale, blocks = ctx.saved_tensors
        if torch.compiler.is_compiling():  # compiled autograd
            result, _ = torch.ops.dropblock_inject.drop(gradient, seed, scale, _bits(ctx.keep_prob), *ctx.options)
        elif torch._C._functorch.is_legacy_batchedtensor(gradient):
            # is_grads_batched=True calls operations without side effects for each gradient. It forbids random numbers,
            # but those of a saved seed are right.
            with torch._C._ExcludeDispatchKeyGuard(_VMAP_MODE):
                result, _ = torch.ops.dropblock_inject.drop(gradient, seed, scale, _bits(ctx.keep_prob), *ctx.options)
        else:
            usable = blocks is not None and len(blocks) and gradient.stride() == ctx.strides
            result = _apply(gradient, False, seed, scale, blocks if usable else None, ctx.keep_prob, ctx.options)
        return result, *[None] * 6

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor, None, None]:
        seed, scale = ctx.saved_tensors
        return _apply(tangent, ctx.inplace, seed, scale, None, ctx.keep_prob, ctx.options), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple, tuple]:
        output, scale = _one_by_one(lambda *each: _Drop.apply(*each)[:2], info, in_dims, arguments)
        return (output, scale, scale.new_empty(0)), (0, 0, None)


class _QuickDrop(Function):
    """The same for a plain tensor, outside of these transforms and without the dispatcher, which takes less time."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, inplace: bool, *arguments: Any) -> Tensor:
        seed, _, _, ctx.keep_prob, ctx.options = arguments
        output, scale, blocks = _mask(input, input if inplace else None, *arguments)
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(seed, scale, blocks)
        ctx.save_for_forward(seed, scale)
        ctx.set_materialize_grads(False)  # a gradient that is None stays None
        ctx.inplace, ctx.strides = inplace, output.stride()
        return output

    backward = _Drop.backward

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Any:
        return _Drop.jvp(ctx, tangent)[0]


def _apply(input: Tensor, inplace: bool, *arguments: Any) -> Tensor:
    """The masked and rescaled input. Autograd records the operation if it records anything at all.

    Args:
        arguments: those of :func:`_mask` after the output.
    """
    is_special = type(input) is not Tensor or torch._C._are_functorch_transforms_active()
    if is_special or torch._C._len_torch_dispatch_stack() or torch.jit.is_tracing():
        return _Drop.apply(input, inplace, *arguments)[0]
    if torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return _QuickDrop.apply(input, inplace, *arguments)
    return _mask(input, input if inplace else None, *arguments)[0]


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    _, seed, scale, keep_prob, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(seed, output[1] if scale is None else scale, keep_prob)


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple:
    result, _ = torch.ops.dropblock_inject.drop(gradient, *ctx.saved_tensors, *ctx.options)
    return result, *[None] * 8


def _vmap(info: Any, in_dims: tuple, *arguments: Any) -> tuple[tuple, tuple]:
    return _one_by_one(torch.ops.dropblock_inject.drop, info, in_dims, arguments), (0, 0)


def _one_by_one(function: Callable, info: Any, in_dims: tuple, arguments: tuple) -> tuple[Tensor, ...]:
    """The outputs of `function` for each sample of torch.vmap, stacked along a new first axis.

    With ``randomness="different"`` torch has drawn a seed for each sample, with ``"same"`` one seed for all.
    """
    calls = []
    for index in range(info.batch_size or 1):
        pairs = zip(arguments, in_dims, strict=True)
        calls.append(function(*(_sample(each, dim, index) if isinstance(dim, int) else each for each, dim in pairs)))
    return tuple(torch.stack(each)[: info.batch_size] for each in zip(*calls, strict=True))


def _sample(batched: Tensor, dim: int, index: int) -> Tensor:
    """The part of a batched tensor for one sample; zeros if there is no sample."""
    return batched.select(dim, index) if batched.shape[dim] else batched.sum(dim)


_LIBRARY.impl("drop", _drop, "CompositeExplicitAutograd")
_LIBRARY.impl("drop_to", _drop_to, "CompositeExplicitAutograd")
library.register_fake("dropblock_inject::drop", _fake_drop, lib=_LIBRARY)
library.register_fake("dropblock_inject::drop_to", _fake_drop_to, lib=_LIBRARY)
library.register_autograd("dropblock_inject::drop", _backward, setup_context=_save, lib=_LIBRARY)
library.register_vmap("dropblock_inject::drop", _vmap, lib=_LIBRARY)
