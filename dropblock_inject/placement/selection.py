"""What the arguments of a request mean in a model: which stages and sites, and the keep_prob of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from torch import nn

from ..anatomy.stages import Stage
from ..errors import DropBlockTypeError, DropBlockValueError, NoMatchError
from ..ops.functional import BlockSize, check_arguments
from ..surgery.site import Site, Where
from .patterns import Pattern, closest, entries_of, matches

PLACES: dict[str, tuple[Where, ...]] = {
    "paper": ("branch", "skip"),
    "branch": ("branch",),
    "skip": ("skip",),
    "output": ("output",),
    "end": ("end",),
}
# The other arguments of inject_dropblock, to be offered for a misspelt one.
_ARGUMENTS = (
    *("keep_prob", "block_size", "where", "include", "exclude", "layer", "depth_scaling", "example_input", "strict"),
)
_DROP_PER_STAGE = 4  # the authors' rule: each stage further up drops a quarter as much


def check_layer_options(keep_prob: Any, block_size: BlockSize, options: dict[str, Any]) -> None:
    """Raises if the arguments for the layers are wrong whatever the model."""
    allowed = ("per_channel", "rescale", "calibrated", "generator", "inplace")
    for name in options:
        if name not in allowed:
            close = get_close_matches(name, [*allowed, *_ARGUMENTS], n=1)
            advice = f", did you mean {close[0]}?" if close else ""
            raise DropBlockTypeError(
                f"unknown argument {name!r}{advice}; the layer options are {', '.join(allowed)}"
                + (" (channel_dim is found by itself)" if name == "channel_dim" else "")
            )
    for value in keep_prob.values() if isinstance(keep_prob, Mapping) else [keep_prob]:
        check_arguments(value, block_size, options.get("rescale", "batch"))


def kinds_of(where: str | Sequence[str]) -> set[Where]:
    """The kinds of sites that `where` asks for."""
    asked = [where] if isinstance(where, str) else where
    if not isinstance(asked, Sequence) or not asked or not all(kind in PLACES for kind in asked):
        raise DropBlockValueError(f"where must be {', '.join(map(repr, PLACES))} or a sequence of them, got {where!r}")
    return {kind for entry in asked for kind in PLACES[entry]}


def choose_stages(
    stages: list[Stage], asked: int | Sequence[int] | None, image_size: tuple[int, ...], strict: bool
) -> list[Stage]:
    """The stages asked for, shallow to deep; negative numbers count from the deepest. None asks for all."""
    if asked is None:
        return stages
    by_index = {stage.index: stage for stage in stages}
    wanted = [asked] if isinstance(asked, int) else asked
    if not isinstance(wanted, Sequence) or not wanted or any(type(index) is not int for index in wanted):
        raise DropBlockTypeError(f"stages must be an int, a sequence of ints, or None for every block, got {asked!r}")
    missing = [i for i in wanted if (i not in by_index if i >= 0 else -i > len(stages))]
    if missing and strict:
        lines = "\n".join(
            f"  {stage.index}: reduction {stage.reduction}, {stage.channels} channels, {stage.blocks[0].name} to "
            f"{stage.blocks[-1].name}"
            for stage in stages
        )
        pixels = "x".join(map(str, image_size))
        last = stages[-1]
        advice = f"stages -2 and -1 are its last two, {stages[-2].index} and {last.index}" if len(stages) > 1 else ""
        if min(last.map_size) < 4:
            advice += "; a map of a single pixel makes no stage: where images are small, try a larger input"
        raise NoMatchError(
            f"no stage {', '.join(map(str, missing))} in the model; for an input of {pixels} pixels it has\n{lines}\n"
            f"({advice.removeprefix('; ')})"
        )
    chosen = {i if i >= 0 else stages[i].index for i in wanted if i not in missing}
    return [stage for stage in stages if stage.index in chosen]


def by_stage(keep_prob: Mapping[int | None, float], stages: list[Stage]) -> dict[int | None, float]:
    """The mapping with negative stages counted from the deepest; None stands for what is off the trunk."""
    indices: list[int | None] = [stage.index for stage in stages] + [None]
    from_deepest: dict[int | None, int] = {number - len(stages): stage.index for number, stage in enumerate(stages)}
    unknown = [key for key in keep_prob if key not in indices and key not in from_deepest]
    if unknown:
        raise DropBlockValueError(
            f"keep_prob={dict(keep_prob)!r} speaks of stage {', '.join(map(str, unknown))}, but the model has stages "
            f"{', '.join(map(str, indices[:-1]))} (None stands for what is off the trunk)"
        )
    return {key if key in indices else from_deepest[key]: value for key, value in keep_prob.items()}


def targets_of(
    keep_prob: float | Mapping[int | None, float], stages: Iterable[int | None], deepest: int, depth_scaling: bool
) -> dict[int | None, float]:
    """The target keep_prob of each chosen stage; a float is that of everything off the trunk too."""
    if isinstance(keep_prob, Mapping):
        stages = list(stages)
        absent = [stage for stage in stages if stage not in keep_prob]
        if absent:
            raise DropBlockValueError(
                f"keep_prob={dict(keep_prob)!r} says nothing of stage {', '.join(map(str, absent))}, which is among "
                "those asked for"
            )
        return {stage: float(keep_prob[stage]) for stage in stages}
    if not depth_scaling:
        return dict.fromkeys(stages, float(keep_prob))
    return {
        stage: keep_prob if stage is None else 1 - (1 - keep_prob) / _DROP_PER_STAGE ** (deepest - stage)
        for stage in stages
    }


def choose_sites(
    model: nn.Module, sites: list[Site], include: Pattern, exclude: Pattern, strict: bool, elsewhere: Sequence[str]
) -> list[Site]:
    """The sites that `include` names, or all, without those that `exclude` names.

    Args:
        elsewhere: names of what is in other stages, or off the trunk, to be spoken of if a pattern matches nothing.
    """

    def fits(site: Site, pattern: Pattern) -> bool:
        if pattern is not None and callable(pattern):
            return any(
                pattern(name, model.get_submodule(site.host if name == site.name else name)) for name in site.names
            )
        return any(matches(entry, name) for entry in entries_of(pattern) for name in site.names)

    if strict:
        names = [name for site in sites for name in site.names]
        for argument, pattern in (("include", include), ("exclude", exclude)):
            for entry in entries_of(pattern):
                if not any(matches(entry, name) for name in names):
                    advice = f"Plan without {argument} to see them all"
                    if any(matches(entry, name) for name in elsewhere):
                        advice = "stages=None reaches what it matches outside of these stages"
                    raise NoMatchError(
                        f"{argument}={entry!r} matches none of the {len(sites)} sites in the chosen stages; closest: "
                        f"{', '.join(closest(entry, names))}. {advice}"
                    )
    kept = [
        s for s in sites if (include is None or fits(s, include)) and not (exclude is not None and fits(s, exclude))
    ]
    if not kept and strict:
        raise NoMatchError(f"include={include!r} and exclude={exclude!r} together leave none of the {len(sites)} sites")
    return kept
