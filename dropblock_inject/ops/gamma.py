"""gamma: the probability that a position of the feature map is the seed of a dropped block.

Plain Python on plain numbers, exact to double precision, cached. Nothing here needs torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from math import prod

_BISECTIONS = 60  # halvings of [0, 1]: past double precision


def block_size_in_force(block_size: int | float | Sequence[int], map_size: Sequence[int]) -> tuple[int, ...]:
    """Block size per spatial axis on a map of `map_size`.

    An int serves every axis, a tuple gives one per axis, a float in (0, 1) is a share of the map
    (rounded, at least 1). A block larger than the map is clipped to it.

    >>> block_size_in_force(7, (14, 5)), block_size_in_force(0.5, (14, 7)), block_size_in_force((3, 4), (9, 9))
    ((7, 5), (7, 4), (3, 4))
    """
    if isinstance(block_size, float):
        return tuple(max(1, round(block_size * size)) for size in map_size)
    if isinstance(block_size, int):
        return tuple(min(block_size, size) for size in map_size)
    return tuple(min(block, size) for block, size in zip(block_size, map_size, strict=True))


@lru_cache(maxsize=4096)
def gamma(keep_prob: float, map_size: tuple[int, ...], block_size: tuple[int, ...], calibrated: bool = True) -> float:
    """Seed probability for which a share `keep_prob` of the map is kept.

    Seeds lie in the valid region, ``map - block + 1`` positions per axis, so that no block is cut off.

    Args:
        keep_prob: share of the map to keep, in (0, 1].
        map_size: spatial size of the feature map, in pixels per axis.
        block_size: size of a block, in pixels per axis, none larger than the map.
        calibrated: if True, solve ``mean((1 - gamma) ** n) == keep_prob``, where ``n`` is how many seed
            positions have a block that covers a given pixel: the kept share is then exact in expectation.
            If False, equation (1) of the DropBlock paper (arXiv 1810.12890, section 3), which takes blocks
            never to overlap and so keeps too much.

    >>> round(gamma(0.9, (14, 14), (7, 7), calibrated=False), 6), round(gamma(0.9, (14, 14), (7, 7)), 6)
    (0.00625, 0.006764)
    """
    if not calibrated:
        dropped = (1 - keep_prob) / prod(block_size)
        valid = prod(size - block + 1 for size, block in zip(map_size, block_size, strict=True))
        return min(1.0, dropped * prod(map_size) / valid)
    low, high = 0.0, 1.0  # brackets 1 - gamma; the kept share grows with it
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _kept_share(middle, map_size, block_size) < keep_prob:
            low = middle
        else:
            high = middle
    return 1 - (low + high) / 2


def expected_share(
    keep_prob: float, map_size: tuple[int, ...], block_size: tuple[int, ...], calibrated: bool = True
) -> float:
    """The share of the map that is really kept, in expectation; the arguments are those of :func:`gamma`.

    >>> round(expected_share(0.5, (14, 14), (7, 7)), 6), round(expected_share(0.5, (14, 14), (7, 7), False), 6)
    (0.5, 0.641816)
    """
    return _kept_share(1 - gamma(keep_prob, map_size, block_size, calibrated), map_size, block_size)


def _kept_share(no_seed: float, map_size: tuple[int, ...], block_size: tuple[int, ...]) -> float:
    """The share kept where each position is no seed with probability `no_seed`."""
    return sum(share * no_seed**seeds for seeds, share in _coverage(map_size, block_size))


@lru_cache(maxsize=1024)
def _coverage(map_size: tuple[int, ...], block_size: tuple[int, ...]) -> tuple[tuple[int, float], ...]:
    """How many seed positions can cover a pixel, and the share of the pixels for which it is that many."""
    pixels = Counter({1: 1})
    for size, block in zip(map_size, block_size, strict=True):
        valid = size - block + 1
        along_axis = Counter(min(i + 1, size - i, block, valid) for i in range(size))
        grown: Counter[int] = Counter()
        for seeds, count in pixels.items():
            for axis_seeds, axis_count in along_axis.items():
                grown[seeds * axis_seeds] += count * axis_count
        pixels = grown
    total = prod(map_size)
    return tuple((seeds, count / total) for seeds, count in sorted(pixels.items()))
