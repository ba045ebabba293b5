"""The table that a plan or a report prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

from ..surgery.site import Site
from ..surgery.text_table import text_table

_HEADINGS = ("stage", "site", "where", "after", "channels", "map", "keep_prob")


@dataclass(frozen=True)
class TraceSummary:
    """What a table says of the pass its sites were found in.

    Attributes:
        image_size: spatial size of the image, in pixels.
        without_skip: blocks with a shortcut that no hook can mask.
        without_end: blocks with a branch of which no module gives the end.
        additions: for each addition of maps that may be a shortcut and has no skip site, its block.
        sums: for each addition of maps outside of the blocks, the module that adds.
        shared: modules that run in one of these blocks and outside of it too.
        without_site: convolutions in these blocks that have no site.
        off_trunk: how many blocks there are at each place off the trunk.
        results: convolutions that put out a result of the network, where the plan goes beyond the trunk.
        error: what ended the pass early, if anything did.
    """

    image_size: tuple[int, ...]
    without_skip: tuple[str, ...]
    without_end: tuple[str, ...]
    additions: tuple[str, ...]
    sums: tuple[str, ...]
    shared: tuple[str, ...]
    without_site: tuple[str, ...]
    off_trunk: dict[str, int]
    results: tuple[str, ...]
    error: Exception | None


def render(model: str, sites: Sequence[Site], trace: TraceSummary, layers: Sequence[str]) -> str:
    """The sites of a model as a table, a stage after the other, and a line above it that sums them up.

    Args:
        layers: the class of the layer at each site. Where any is no DropBlock, they are shown in place of the blocks.
    """
    lines = [heading(model, sites, trace, layers)]
    if not sites:
        return lines[0]
    has_blocks = set(layers) <= {"DropBlock"}
    rows = [(*_HEADINGS[:6], "block" if has_blocks else "layer", _HEADINGS[6])]
    previous = None
    for site, layer in zip(sites, layers, strict=True):
        covers = "*" if site.covers_map else ""
        group = site.part if site.stage is None else str(site.stage)
        stage = "" if group == previous else group
        previous = group
        rows.append(
            (
                stage,
                site.name,
                site.where,
                _behind(site),
                str(site.channels),
                size_text(site.map_size),
                size_text(site.block_size) + covers if has_blocks else layer,
                f"{site.keep_prob:.4g}",
            )
        )
    headings, rule, *body = text_table(rows, right={0, 4, 5, 7} | ({6} if has_blocks else set()))
    lines += ["", headings, rule]
    for number, (row, line) in enumerate(zip(rows[1:], body, strict=True)):
        lines += ["", line] if number and row[0] else [line]
    return "\n".join([*lines, *notes(sites, trace, layers)])


def heading(model: str, sites: Sequence[Site], trace: TraceSummary, layers: Sequence[str]) -> str:
    """The line above a table."""
    kinds = " and ".join(sorted(set(layers) or {"DropBlock"}))
    return f"{kinds} in {model}: {totals(sites, trace.image_size)}"


def totals(sites: Sequence[Site], image_size: tuple[int, ...]) -> str:
    """How many sites there are in how many blocks, and the size of the image that the sizes of the maps are for."""
    blocks = len({site.block for site in sites})
    counts = f"{len(sites)} site{'s' * (len(sites) != 1)} in {blocks} block{'s' * (blocks != 1)}"
    return f"{counts}; maps for an input of {size_text(image_size)} pixels"


def notes(sites: Sequence[Site], trace: TraceSummary, layers: Sequence[str]) -> list[str]:
    """The lines below a table: what a reader should know of the sites, and of what has no site."""
    lines: list[str] = []
    has_blocks = set(layers) <= {"DropBlock"}
    whole_maps = sum(site.covers_map for site in sites)
    if whole_maps and has_blocks:
        lines += [
            "",
            f"* {whole_maps} of {len(sites)} sites drop whole channels, as Dropout2d does, because the block is as "
            "large as the map",
            "  (block_size=0.5 makes it half of each map)",
        ]
    on_layers = [site.name for site in sites if site.splice.owner == site.splice.convolution]
    if on_layers:
        lines += ["", f"Registered on a convolution, which is then no leaf module: {', '.join(on_layers)}"]
    if trace.without_skip:
        without = ", ".join(dict.fromkeys(trace.without_skip))
        lines += ["", f"The shortcut of {without} cannot be masked alone: no skip site there"]
    if trace.without_end:
        without = ", ".join(dict.fromkeys(trace.without_end))
        lines += ["", f"No module gives the end of a branch of {without}: no end site there"]
    if unused := _unused(trace):
        lines += ["", unused]
    if trace.error is not None:
        problem = shorten(
            f"{type(trace.error).__name__}: {trace.error}".splitlines()[0].rstrip("."), 120, placeholder=" …"
        )
        lines += [
            "",
            "The pass without data ended early. That is normal for a detector; for another network pass an "
            f"example_input of the right size. Sites behind that point are not listed: {problem}",
        ]
    return lines


def _unused(trace: TraceSummary) -> str:
    """A line on what the walker saw and did not use; a stem and transitions alone are not worth one."""
    parts = []
    if trace.additions:
        parts.append(f"additions without a skip site: {len(trace.additions)} (in {_some(trace.additions)})")
    if trace.sums:
        adding = [name or "the code of the model" for name in trace.sums]
        parts.append(f"additions outside of the blocks: {len(adding)} (in {_some(adding)})")
    if trace.shared:
        parts.append(f"modules shared beyond their block: {len(trace.shared)} ({_some(trace.shared)})")
    if trace.without_site:
        parts.append(f"convolutions without a site: {len(trace.without_site)} ({_some(trace.without_site)})")
    if trace.results:
        parts.append(f"convolutions that put out a result: {len(trace.results)} ({_some(trace.results)})")
    if trace.off_trunk.keys() - {"stem", "transition"}:
        places = ", ".join(f"{place} {count}" for place, count in trace.off_trunk.items())
        parts.append(f"blocks off the trunk: {places} (stages=None reaches them)")
    return f"Not used: {'; '.join(parts)}" if parts else ""


def _some(names: Sequence[str]) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different[:3]) + (", …" if len(different) > 3 else "")


def _behind(site: Site) -> str:
    """The layers that a site stands behind, by their names in the block; or the module."""
    return " ".join(name.removeprefix(f"{site.block}.") for name in site.layers) or site.host


def size_text(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
