"""drop_block: checks its arguments and calls the operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.overrides import handle_torch_function, has_torch_function_unary

from ..errors import DropBlockTypeError, DropBlockValueError
from .gamma import block_size_in_force
from .mask_spec import Options, Rescale
from .operator import drop

BlockSize = int | float | Sequence[int]

_RESCALES = ("batch", "sample", "expected", None)
_RANK_FACTOR = 0x9E3779B97F4A7C15  # odd and without a pattern, so that the seeds of ranks differ in many bits


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
        block_size: size of a block: an int in pixels; a sequence of ints, one per spatial axis; or a float in
            (0, 1), a share of the map. Clipped to the map. Sizes may be even. Blocks of 1 are Dropout, blocks as
            large as the map are Dropout2d.
        training: if False the input itself is returned, whatever it is.
        per_channel: draw the blocks of each channel independently, which the paper found better (section 3).
            If False all channels of a sample share their blocks.
        rescale: how the expectation is kept. ``"batch"`` divides by the kept share of the whole tensor (the
            paper's Algorithm 1), ``"sample"`` by the kept share of each sample, ``"expected"`` by `keep_prob`. None
            leaves the values as they are. If nothing is kept the result is zeros.
        calibrated: choose the seed probability so that the expected kept share is exactly `keep_prob`. If False it
            is that of the paper's equation (1), which keeps too much where blocks overlap.
        channel_dim: axis of the channels, -1 for maps with the channels last.
        generator: source of the random numbers, on the device of `input`. The default is that of torch, which
            activation checkpointing rewinds to draw the same mask again. The ranks of torch.distributed draw
            different masks, also from generators with the same seed.
        inplace: overwrite `input`. Refused if autograd needs it unchanged.

    Returns:
        Tensor of the shape, dtype and memory format of `input`.

    Raises:
        DropBlockTypeError: `input` is not a floating point tensor, or an argument has a wrong type.
        DropBlockValueError: an argument is out of range, `input` has not 3, 4 or 5 axes, or ``inplace=True`` on a
            tensor that cannot be overwritten.

    >>> _ = torch.manual_seed(0)
    >>> x = torch.ones(64, 16, 14, 14)
    >>> round((drop_block(x, 0.9, 7) > 0).float().mean().item(), 2)
    0.9
    """
    if has_torch_function_unary(input):  # such as a Proxy of torch.fx: the call becomes one node of its graph
        return handle_torch_function(drop_block, (input,), **locals())
    check_arguments(keep_prob, block_size, rescale)
    if not training:
        return input
    channel = _channel_axis(input, channel_dim)
    if _is_one(keep_prob) or input.numel() == 0:
        return input
    map_size = input.shape[1:channel] + input.shape[channel + 1 :]
    if isinstance(block_size, Sequence) and len(block_size) != len(map_size):
        raise DropBlockValueError(
            f"block_size={tuple(block_size)} has {len(block_size)} entries, but the input of shape "
            f"{tuple(input.shape)} has {len(map_size)} spatial axes; give one entry per spatial axis, or one int"
        )
    if inplace:
        _refuse_inplace(input)

    if torch.jit.is_tracing():  # it makes tensors of sizes
        map_size = torch.Size(map(int, map_size))
    block = block_size_in_force(block_size, map_size)
    seed = _random_seed(input.device, generator)
    return drop(input, seed, keep_prob, inplace, Options(block, per_channel, rescale, calibrated, channel_dim))


def _is_one(keep_prob: float) -> bool:
    """Whether nothing is dropped.

    In a compiled graph a symbol is not asked: the answer would make it a constant, and torch would then make constants
    of the symbols in later graphs too. So one graph is good for every value.
    """
    if torch.compiler.is_compiling():
        return torch.fx.experimental.symbolic_shapes.statically_known_true(keep_prob == 1)
    return keep_prob == 1


def check_arguments(keep_prob: float, block_size: BlockSize, rescale: Rescale) -> None:
    """Raises if an argument of :func:`drop_block` is wrong for every input."""
    if isinstance(keep_prob, bool) or not isinstance(keep_prob, (int, float)):
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


def _channel_axis(input: Tensor, channel_dim: int) -> int:
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
    return channel


def _random_seed(device: torch.device, generator: torch.Generator | None) -> Tensor:
    if generator is None:  # the argument generator=None would make the shapes of a compiled graph constants
        seed = torch.randint(2**63 - 1, (), device=device)
    else:
        seed = torch.randint(2**63 - 1, (), generator=generator, device=device)
    # Trainers give every process the same seed, but the processes have different samples.
    rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    return seed ^ (rank * _RANK_FACTOR % 2**63) if rank else seed


def _refuse_inplace(input: Tensor) -> None:
    """Raises if `input` cannot be overwritten."""
    if torch.compiler.is_compiling():
        return
    base = input._base  # of a view
    whole, name = (input, "") if base is None else (base, "a view of ")
    if any(size > 1 and stride == 0 for size, stride in zip(input.shape, input.stride(), strict=True)):
        reason = "several of its elements share their memory, as expand() makes them"
    elif input.is_inference() and not torch.is_inference_mode_enabled():
        reason = "it was made in inference mode"
    elif not (torch.is_grad_enabled() and input.requires_grad):
        return
    elif name and torch._C._autograd._get_creation_meta(input) != torch._C._autograd.CreationMeta.DEFAULT:
        reason = "it is one of several views, as chunk() and unbind() make them, or a view that autograd did not record"
    elif whole.is_leaf:
        reason = f"it is {name}a leaf that requires grad"
    elif hasattr(whole.grad_fn, "_saved_result"):  # the backward pass of ReLU, sigmoid, … reads their output
        reason = f"it is {name}the output of {type(whole.grad_fn).__name__}, which needs it for the backward pass"
    else:
        return
    raise DropBlockValueError(f"inplace=True cannot overwrite this input: {reason}; use inplace=False")
