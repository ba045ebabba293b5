"""Masks on a GPU by two Triton kernels. The host does not wait for them.

The first kernel draws the blocks into a mask of one bit per pixel, one thread to a map and one random number to a block
(as in ``sparse.py``), and counts the dropped pixels. The second reads the tensor and writes the result in one pass. The
random numbers are those of Philox (Salmon et al., SC 2011), a function of seed, map and block.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from math import log1p, prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from .mask_spec import MaskSpec, scale_for

_MAPS = 128  # per program of the kernel that draws
_ELEMENTS = 4096  # per program of the kernels that mask


def drop(input: Tensor, output: Tensor, seed: Tensor, scale: Tensor | None, spec: MaskSpec) -> Tensor:
    """Writes the masked and rescaled `input` to `output`, which may be the input. Returns the scale.

    The mask is a function of `seed`. The scale is counted if `scale` is None.
    """
    first, last = (0, spec.channel, *spec.spatial), (0, *spec.spatial, spec.channel)
    channels_last = _is_contiguous(last, input, output) and not _is_contiguous(first, input, output)
    with torch.cuda.device_of(input):
        words, dropped = _draw(seed, spec, channels_last)
        counted = 0  # pixels, of which some are dropped and from which the scale follows; 0 if it does not
        if scale is None and spec.rescale in ("batch", "sample"):
            counted = spec.shape[0] * spec.pixels // len(dropped)
            scale = torch.empty(spec.scale_shape, dtype=spec.precision, device=input.device)
        elif scale is None:
            scale = scale_for(dropped, spec)
        mask = (words, dropped, scale, counted)
        if channels_last:
            _mask_channels_last(input, output, mask, spec)
        elif _is_contiguous(first, input, output):
            _mask_channels_first(input, output, mask, spec)
        else:
            copy = input.permute(first).contiguous()
            _mask_channels_first(copy, copy, mask, spec)
            output.permute(first).copy_(copy)
    return scale


def _is_contiguous(order: tuple[int, ...], *tensors: Tensor) -> bool:
    return all(tensor.permute(order).is_contiguous() for tensor in tensors)


def _draw(seed: Tensor, spec: MaskSpec, channels_last: bool) -> tuple[Tensor, Tensor]:
    """The mask, and the number of pixels that it drops: in each sample for ``rescale="sample"``, else in all.

    The mask has one bit per pixel in words of 32, as a Tensor[N, C, words of a map]. With `channels_last` the channels
    are last in its memory.
    """
    samples, channels, count = spec.shape[0], spec.masks_per_sample, -(-prod(spec.map_size) // 32)
    counters = samples if spec.rescale == "sample" else 1
    start = -(-counters // 2) * 4  # one memory for both, so that it is cleared at once; 16 bytes are aligned
    memory = torch.zeros(start + samples * channels * count, dtype=torch.int32, device=seed.device)
    dropped = memory[: 2 * counters].view(torch.int64)
    strides = (1, channels) if channels_last else (count, 1)
    words = memory.as_strided((samples, channels, count), (channels * count, *strides), start)
    ones = (1,) * (3 - len(spec.block))
    per_miss = 1 / min(log1p(-spec.probability), -1e-30) if spec.probability < 1 else 0.0
    _draw_kernel[(triton.cdiv(samples * channels, _MAPS),)](
        *(words, dropped, seed, samples * channels, channels, per_miss, *words.stride()),
        *(*ones, *spec.valid),
        *(*ones, *spec.block),
        *(*ones, *spec.map_size)[1:],
        *((spec.block[-1] + 30) // 32 + 1, counters > 1, _MAPS),
    )
    return words, dropped


def _mask_channels_first(input: Tensor, output: Tensor, mask: tuple, spec: MaskSpec) -> None:
    words, _, scale, _ = mask
    _mask_channels_first_kernel[(triton.cdiv(input.numel(), _ELEMENTS),)](
        *(input, output, *mask, input.numel()),
        *(spec.shape[spec.channel], prod(spec.map_size), words.shape[2]),
        *(spec.per_channel, scale.dim() > 0, _ELEMENTS),
    )


def _mask_channels_last(input: Tensor, output: Tensor, mask: tuple, spec: MaskSpec) -> None:
    words, _, scale, _ = mask
    channels = spec.shape[spec.channel]
    block = min(triton.next_power_of_2(channels), _ELEMENTS // 32)
    _mask_channels_last_kernel[(spec.shape[0] * words.shape[2], triton.cdiv(channels, block))](
        *(input, output, *mask),
        *(channels, prod(spec.map_size), words.shape[2]),
        *(spec.per_channel, scale.dim() > 0, block),
    )


@triton.jit
def _draw_kernel(
    words_ptr,
    dropped_ptr,
    seed_ptr,
    maps,
    channels,
    per_miss,  # 1 / log(1 - probability)
    stride_sample,
    stride_channel,
    stride_word,
    VALID_D: tl.constexpr,
    VALID_H: tl.constexpr,
    VALID_W: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,  # number of words that a row of a block may reach into
    PER_SAMPLE: tl.constexpr,
    MAPS: tl.constexpr,
):
    """Draws the blocks of MAPS maps in parallel, those of a map one after the other, by the geometric gaps between."""
    POSITIONS: tl.constexpr = VALID_D * VALID_H * VALID_W
    map = tl.program_id(0) * MAPS + tl.arange(0, MAPS)
    sample = map // channels
    of_map = words_ptr + sample.to(tl.int64) * stride_sample + (map % channels) * stride_channel
    seed = tl.load(seed_ptr)
    nothing = tl.zeros([MAPS], tl.int32)
    position, drawn, dropped = nothing - 1, nothing, nothing
    active = map < maps
    while tl.max(active.to(tl.int32), 0) > 0:
        bits, _, _, _ = tl.philox(seed, map, drawn, nothing, nothing)
        gap = tl.minimum(_log_of_rest(bits.to(tl.float32) * 2.0**-32) * per_miss, POSITIONS * 1.0)
        position = tl.minimum(position + 1 + gap.to(tl.int32), POSITIONS)
        active = active & (position < POSITIONS)
        drawn += 1
        x, y, z = position % VALID_W, position // VALID_W % VALID_H, position // (VALID_W * VALID_H)
        for row in range(BLOCK_D * BLOCK_H):
            first = ((z + row // BLOCK_H) * HEIGHT + y + row % BLOCK_H) * WIDTH + x
            for step in tl.static_range(SPAN):
                word = first // 32 + step
                start = tl.maximum(first - word * 32, 0)
                stop = tl.minimum(first + BLOCK_W - word * 32, 32)
                write = active & (start < stop)
                ones = ((nothing + 1).to(tl.int64) << tl.maximum(stop - start, 0).to(tl.int64)) - 1
                ones = (ones << start.to(tl.int64)).to(tl.int32)
                before = tl.atomic_or(of_map + word * stride_word, ones, mask=write, sem="relaxed")
                dropped += tl.where(write, _count_ones(ones & ~before), 0)
    if PER_SAMPLE:
        tl.atomic_add(dropped_ptr + sample, dropped.to(tl.int64), mask=dropped > 0, sem="relaxed")
    else:
        tl.atomic_add(dropped_ptr, tl.sum(dropped.to(tl.int64), 0), sem="relaxed")


@triton.jit
def _log_of_rest(x):
    """log(1 - x) for x in [0, 1]. It is precise for small x, which decide between neighbouring positions."""
    series = -x * (1 + x * (1 / 2 + x * (1 / 3 + x / 4)))
    return tl.where(x < 1 / 64, series, tl.log(tl.maximum(1 - x, 2.0**-32)))


@triton.jit
def _count_ones(bits):
    bits = bits.to(tl.uint32, bitcast=True)
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return ((bits * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _scale(dropped_ptr, scale_ptr, counted, inside, is_first):
    """The scale: from the number of `counted` pixels that are dropped, and stored once; or given, if `counted` is 0."""
    if counted > 0:
        kept = tl.maximum(counted - tl.load(dropped_ptr, mask=inside, other=0), 1)
        dtype = scale_ptr.dtype.element_ty
        scale = tl.full([], 1, dtype) * counted / kept.to(dtype)
        tl.store(scale_ptr, scale, mask=is_first)
    else:
        scale = tl.load(scale_ptr, mask=inside, other=1)
    return scale


@triton.jit
def _mask_channels_first_kernel(
    input_ptr,
    output_ptr,
    words_ptr,
    dropped_ptr,
    scale_ptr,
    counted,
    elements,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    WORDS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    ELEMENTS: tl.constexpr,
):
    """Masks ELEMENTS elements that are contiguous in memory."""
    first = tl.program_id(0).to(tl.int64) * ELEMENTS
    at = first + tl.arange(0, ELEMENTS)
    first_map = first // PIXELS
    pixel = (first - first_map * PIXELS).to(tl.int32) + tl.arange(0, ELEMENTS)  # from the start of the first map on
    map = first_map + pixel // PIXELS
    pixel = pixel % PIXELS
    inside = at < elements
    masked_map = map if PER_CHANNEL else map // CHANNELS
    words = tl.load(words_ptr + masked_map * WORDS + pixel // 32, mask=inside, other=0)
    if PER_SAMPLE:
        sample = map // CHANNELS
        is_first = inside & (map % CHANNELS == 0) & (pixel == 0)
        scale = _scale(dropped_ptr + sample, scale_ptr + sample, counted, inside, is_first)
    else:
        scale = _scale(dropped_ptr, scale_ptr, counted, True, first == 0)
    values = tl.load(input_ptr + at, mask=inside, other=0)
    kept = ((words >> (pixel % 32)) & 1) == 0
    tl.store(output_ptr + at, tl.where(kept, values.to(scale.dtype) * scale, 0).to(values.dtype), mask=inside)


@triton.jit
def _mask_channels_last_kernel(
    input_ptr,
    output_ptr,
    words_ptr,
    dropped_ptr,
    scale_ptr,
    counted,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    WORDS: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    PER_SAMPLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Masks the 32 pixels of one word of the mask, in BLOCK channels."""
    sample = tl.program_id(0) // WORDS
    bit = tl.arange(0, 32)[:, None]
    pixel = tl.program_id(0) % WORDS * 32 + bit
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (pixel < PIXELS) & (channel < CHANNELS)
    if PER_CHANNEL:
        of_word = words_ptr + tl.program_id(0).to(tl.int64) * CHANNELS + channel
        words = tl.load(of_word, mask=channel < CHANNELS, other=0)
    else:
        words = tl.load(words_ptr + tl.program_id(0))
    own = sample if PER_SAMPLE else 0
    is_first = (tl.program_id(0) % WORDS == 0) & (tl.program_id(1) == 0) & (PER_SAMPLE or sample == 0)
    scale = _scale(dropped_ptr + own, scale_ptr + own, counted, True, is_first)
    at = (sample.to(tl.int64) * PIXELS + pixel) * CHANNELS + channel
    values = tl.load(input_ptr + at, mask=inside, other=0)
    kept = ((words >> bit) & 1) == 0
    tl.store(output_ptr + at, tl.where(kept, values.to(scale.dtype) * scale, 0).to(values.dtype), mask=inside)
