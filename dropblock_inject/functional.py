"""drop_block: sample seeds, grow them to blocks, zero the blocks, rescale what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from . import calibration
from .errors import DropBlockTypeError, DropBlockValueError

BlockSize = int | float | Sequence[int]
Rescale = Literal["batch", "sample", "expected"] | None

_RESCALES = ("batch", "sample", "expected", None)


def drop_block(
    input: Tensor,
    keep_prob: float = 0.9,
    block_size: BlockSize = 7,
    *,
    training: bool = True,
    per_channel: bool = True,
    rescale: Rescale = "batch",
    calibrated: bool = True,
    channel_dim: int = 1,
    generator: torch.Generator | None = None,
    inplace: bool = False,
) -> Tensor:
    """DropBlock: zeroes contiguous blocks of a feature map (Ghiasi, Lin and Le, NeurIPS 2018, arXiv 1810.12890).

    Args:
        input (Tensor[N, C, L], Tensor[N, C, H, W] or Tensor[N, C, D, H, W]): feature maps, floating point.
        keep_prob: share of the map to keep, in (0, 1]. At 1 the input itself is returned.
        block_size: size of a block in pixels: an int; a sequence, one per spatial axis; or a float in (0, 1),
            a share of the map. Clipped to the map. Even sizes are as good as odd ones. 1 is Dropout, a block
            as large as the map is Dropout2d.
        training: if False the input itself is returned.
        per_channel: sample the blocks of each channel independently, which the paper found better (section 3);
            otherwise all channels of a sample share theirs.
        rescale: how the expectation is kept: ``"batch"`` divides by the kept share of the whole tensor (the
            paper's Algorithm 1), ``"sample"`` by that of each sample, ``"expected"`` by `keep_prob`; None leaves
            the values as they are. If nothing at all is kept the result is zeros.
        calibrated: choose the seed probability so that the expected kept share is `keep_prob` exactly; otherwise
            by the paper's equation (1), which keeps too much where blocks overlap.
        channel_dim: the axis of the channels; -1 for maps whose channels come last.
        generator: source of the random numbers, on the device of `input`; default is torch's own, which is also the
            one that activation checkpointing rewinds to draw the same mask again.
        inplace: overwrite `input`. Refused where autograd needs it unchanged.

    Returns:
        Tensor of the shape, dtype and memory format of `input`.

    Raises:
        DropBlockTypeError: `input` is not a floating point tensor, or an argument has a wrong type.
        DropBlockValueError: an argument is out of range, the rank of `input` is not 3, 4 or 5, or
            ``inplace=True`` on a tensor that autograd needs.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.ones(64, 16, 14, 14)
    >>> round((drop_block(x, 0.9, 7) > 0).float().mean().item(), 2)
    0.9
    """
    if has_torch_function_unary(input):  # a Proxy of torch.fx, for one: the call stays one node of its graph
        options: dict[str, Any] = {
            "training": training,
            "per_channel": per_channel,
            "rescale": rescale,
            "calibrated": calibrated,
        }
        options |= {"channel_dim": channel_dim, "generator": generator, "inplace": inplace}
        return handle_torch_function(drop_block, (input,), input, keep_prob, block_size, **options)
    check_arguments(keep_prob, block_size, rescale)
    spatial = _spatial_axes(input, channel_dim)
    if not training or keep_prob == 1 or input.numel() == 0:
        return input
    map_size = tuple(input.shape[axis] for axis in spatial)
    if isinstance(block_size, Sequence) and len(block_size) != len(spatial):
        raise DropBlockValueError(
            f"block_size={tuple(block_size)} has {len(block_size)} entries, but the input of shape "
            f"{tuple(input.shape)} has {len(spatial)} spatial axes; give one entry per spatial axis, or one int"
        )
    if inplace:
        _refuse_inplace_if_needed_by_autograd(input)

    block = calibration.block_size_in_force(block_size, map_size)
    seed_shape = list(input.shape)
    for axis, map_length, block_length in zip(spatial, map_size, block, strict=True):
        seed_shape[axis] = map_length - block_length + 1
    if not per_channel:
        seed_shape[channel_dim] = 1
    noise = _noise(seed_shape, input.device, generator)
    dropped = _grow(noise < _gamma(keep_prob, map_size, block, calibrated), spatial, block)

    output = (input if inplace else input.clone()).masked_fill_(dropped, 0)
    if rescale is None:
        return output
    # Counted in integers and scaled in fp32 at least: in half precision both the count and the scale would be wrong.
    precise = torch.promote_types(input.dtype, torch.float32)
    scale = _scale(dropped, rescale, keep_prob, precise)
    if precise == input.dtype:
        return output.mul_(scale)
    scaled = (output.to(precise) * scale).to(input.dtype)
    return output.copy_(scaled) if inplace else scaled


def check_arguments(keep_prob: float, block_size: BlockSize, rescale: Rescale) -> None:
    """Raises if an argument of :func:`drop_block` is wrong whatever the input."""
    if isinstance(keep_prob, bool) or not isinstance(keep_prob, int | float):
        raise DropBlockTypeError(f"keep_prob must be a float in (0, 1], got {keep_prob!r}")
    if not 0 < keep_prob <= 1:
        raise DropBlockValueError(
            f"keep_prob must be in (0, 1], got {keep_prob!r}: it is the share of the feature map that is kept, "
            "1 - drop_prob"
        )
    if isinstance(block_size, float):
        if not 0 < block_size < 1:
            raise DropBlockValueError(
                f"block_size={block_size!r}: a float is a share of the map and must be in (0, 1); "
                "give an int for a size in pixels"
            )
    elif isinstance(block_size, int) and not isinstance(block_size, bool):
        if block_size < 1:
            raise DropBlockValueError(f"block_size must be at least 1, got {block_size!r}")
    elif isinstance(block_size, Sequence) and not isinstance(block_size, str):
        if not block_size or any(isinstance(b, bool) or not isinstance(b, int) or b < 1 for b in block_size):
            raise DropBlockValueError(f"block_size must hold an int of at least 1 per spatial axis, got {block_size!r}")
    else:
        raise DropBlockTypeError(
            f"block_size must be an int, a sequence of ints or a float in (0, 1), got {block_size!r}"
        )
    if rescale not in _RESCALES:
        raise DropBlockValueError(f"rescale must be 'batch', 'sample', 'expected' or None, got {rescale!r}")


def _spatial_axes(input: Tensor, channel_dim: int) -> tuple[int, ...]:
    if not isinstance(input, Tensor):
        raise DropBlockTypeError(f"drop_block expects a torch.Tensor, got {type(input).__name__}")
    if input.dim() not in (3, 4, 5):
        hint = "; add the batch axis with input.unsqueeze(0)" if input.dim() == 2 else ""
        raise DropBlockValueError(
            "drop_block expects an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W), "
            f"got {tuple(input.shape)}{hint}"
        )
    if not input.is_floating_point():
        raise DropBlockTypeError(f"drop_block expects a floating point input, got dtype {input.dtype}")
    channel = channel_dim + input.dim() if channel_dim < 0 else channel_dim
    if not 0 < channel < input.dim():
        raise DropBlockValueError(
            f"channel_dim={channel_dim} is not an axis after the batch of an input of shape {tuple(input.shape)}"
        )
    return tuple(axis for axis in range(1, input.dim()) if axis != channel)


def _noise(shape: Sequence[int], device: torch.device, generator: torch.Generator | None) -> Tensor:
    if generator is None:  # naming none would fix the shapes of a compiled graph
        return torch.rand(shape, device=device, dtype=torch.float32)
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)


def _refuse_inplace_if_needed_by_autograd(input: Tensor) -> None:
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and input.requires_grad):
        return
    if input.is_leaf:
        reason = "it is a leaf that requires grad"
    elif hasattr(input.grad_fn, "_saved_result"):  # ReLU, sigmoid, …: their backward reads their output
        reason = f"it is the output of {type(input.grad_fn).__name__}, which needs it for the backward pass"
    else:
        return
    raise DropBlockValueError(f"inplace=True cannot overwrite this input: {reason}; use inplace=False")


def _grow(seeds: Tensor, axes: Sequence[int], block: Sequence[int]) -> Tensor:
    """Bool mask in which every seed has become a block that starts at it: an OR over windows, axis by axis."""
    for axis, size in zip(axes, block, strict=True):
        padding = [0, 0] * (seeds.dim() - axis - 1) + [size - 1, size - 1]
        seeds = F.pad(seeds, padding) if size > 1 else seeds
        window = 1
        while window < size:  # doubling: the window of 7 takes 3 steps
            shift = min(window, size - window)
            length = seeds.shape[axis] - shift
            seeds = seeds.narrow(axis, 0, length) | seeds.narrow(axis, shift, length)
            window += shift
    return seeds


def _scale(dropped: Tensor, rescale: Rescale, keep_prob: float, dtype: torch.dtype) -> Tensor | float:
    if rescale == "expected":
        return 1 / keep_prob
    if rescale == "batch":
        total, lost = dropped.numel(), dropped.sum()
    else:
        axes = tuple(range(1, dropped.dim()))
        total, lost = prod(dropped.shape[1:]), dropped.sum(axes, keepdim=True)
    return total / (total - lost).clamp(min=1).to(dtype)


def _gamma(keep_prob: float, map_size: tuple[int, ...], block: tuple[int, ...], calibrated: bool) -> float | Tensor:
    if not torch.compiler.is_compiling():
        return calibration.gamma(float(keep_prob), map_size, block, calibrated)
    # A tensor times a float is the one use of a float that stays data in the graph: with keep_prob as a constant
    # every step of a schedule would compile anew.
    kept = torch.ones((), dtype=torch.float64) * keep_prob
    return _gamma_op(kept, map_size, block, calibrated)


@torch.library.custom_op("dropblock_inject::gamma", mutates_args=())
def _gamma_op(keep_prob: Tensor, map_size: Sequence[int], block_size: Sequence[int], calibrated: bool) -> Tensor:
    solved = calibration.gamma(keep_prob.item(), tuple(map_size), tuple(block_size), calibrated)
    return torch.tensor(solved, dtype=torch.float64)


@_gamma_op.register_fake
def _(keep_prob: Tensor, map_size: Sequence[int], block_size: Sequence[int], calibrated: bool) -> Tensor:
    return torch.empty((), dtype=torch.float64)
