"""The numbers of the stages: stage k is the level at reduction 2^(k+1), as in a ResNet."""

from __future__ import annotations

_DEEPEST_STAGE = 4
_DEEPEST_LEVEL = 5  # log2 of reduction 32


def stage_numbers(levels: list[int]) -> list[int]:
    """The stage numbers of the levels of a trunk.

    If the deepest level is at reduction 32, each level has its own number: /4 is stage 1, /32 is stage 4. If the
    deepest level is lower, or if there are four levels or more, the deepest is stage 4 and the others count back from
    it. Otherwise they count 1, 2, 3 from the shallowest.

    No number is below 0, because -1 means the deepest stage wherever stages are asked for: all levels above that of
    stage 0 have its number.

    Args:
        levels: log2 of the reductions, from the shallowest to the deepest.

    >>> stage_numbers([2, 3, 4, 5]), stage_numbers([1, 2, 3, 4]), stage_numbers([0, 1, 2])
    ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3])
    >>> stage_numbers([0, 1, 2, 3, 4, 5]), stage_numbers([0, 1, 2, 3, 4, 5, 6])
    ([0, 0, 1, 2, 3, 4], [0, 0, 0, 1, 2, 3, 4])
    """
    if levels[-1] == _DEEPEST_LEVEL:
        numbers = [level - 1 for level in levels]
    elif levels[-1] > _DEEPEST_LEVEL or len(levels) >= _DEEPEST_STAGE:
        numbers = list(range(_DEEPEST_STAGE + 1 - len(levels), _DEEPEST_STAGE + 1))
    else:
        numbers = list(range(1, len(levels) + 1))
    return [max(0, number) for number in numbers]
