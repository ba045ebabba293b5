"""gamma: the probability that a position of the feature map is the seed of a dropped block.

Plain Python, without torch; exact to double precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import exp, expm1, log, log1p, prod
from operator import itemgetter


def block_size_in_force(block_size: int | float | Sequence[int], map_size: Sequence[int]) -> tuple[int, ...]:
    """Block size per spatial axis on a map of `map_size`.

    Args:
        block_size: an int for every axis, a sequence of one int per axis, or a float in (0, 1), a share of the map,
            rounded to at least 1. A block larger than the map is clipped to it.
        map_size: in pixels per axis.

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
        calibrated: if True, solve ``mean((1 - gamma) ** n) == keep_prob``, where ``n`` is the number of seed
            positions whose block covers a given pixel. The expected kept share is then exactly `keep_prob`.
            If False, equation (1) of the DropBlock paper (arXiv 1810.12890, section 3), which assumes that blocks
            do not overlap and so keeps too much.

    >>> round(gamma(0.9, (14, 14), (7, 7), calibrated=False), 6), round(gamma(0.9, (14, 14), (7, 7)), 6)
    (0.00625, 0.006764)
    """
    if not calibrated:
        dropped = (1 - keep_prob) / prod(block_size)
        valid = prod(size - block + 1 for size, block in zip(map_size, block_size, strict=True))
        return min(1.0, dropped * prod(map_size) / valid)
    # The secant method on the logarithm of the kept share, a convex function of decay = -log(1 - gamma). It approaches
    # the root from the left and does not pass it.
    axes = _axes(map_size, block_size)
    mean_seeds = prod(block * (size - block + 1) / size for size, block in zip(map_size, block_size, strict=True))
    before, excess_before = 0.0, -log(keep_prob)
    decay = excess_before / mean_seeds
    while (kept := _kept_share(decay, axes)) > keep_prob and (excess := log(kept) - log(keep_prob)) < excess_before:
        step = excess * (decay - before) / (excess_before - excess)
        before, excess_before, decay = decay, excess, decay + step
    return abs(expm1(-decay))


def expected_share(
    keep_prob: float, map_size: tuple[int, ...], block_size: tuple[int, ...], calibrated: bool = True
) -> float:
    """The expected share of the map that is kept. The arguments are those of :func:`gamma`.

    >>> round(expected_share(0.5, (14, 14), (7, 7)), 6), round(expected_share(0.5, (14, 14), (7, 7), False), 6)
    (0.5, 0.641816)
    """
    probability = gamma(keep_prob, map_size, block_size, calibrated)
    return _kept_share(-log1p(-probability), _axes(map_size, block_size)) if probability < 1 else 0.0


def _axes(map_size: Sequence[int], block_size: Sequence[int]) -> list[tuple[int, int]]:
    """For each axis its size, and the number of seed positions whose block covers a pixel in its middle."""
    axes = [(size, min(block, size - block + 1)) for size, block in zip(map_size, block_size, strict=True)]
    return sorted(axes, key=itemgetter(1))  # the last axis costs the least


def _kept_share(decay: float, axes: Sequence[tuple[int, int]]) -> float:
    """The mean over the pixels of ``exp(-decay * n)``, ``n`` being the number of seed positions that cover the pixel.

    ``n`` is a product of one number per axis. From both ends of an axis it is 1, 2, ..., `most`; between, `most`.
    """
    (size, most), *others = axes
    if others:
        ends = sum(_kept_share(decay * seeds, others) for seeds in range(1, most))
        between = _kept_share(decay * most, others)
    elif decay == 0:
        ends, between = most - 1.0, 1.0
    else:  # a geometric series
        ends = exp(-decay) * expm1(-decay * (most - 1)) / expm1(-decay)
        between = exp(-decay * most)
    return (2 * ends + (size - 2 * (most - 1)) * between) / size
