"""A plan in a line per stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from ..surgery.site import Site, Where
from ..surgery.text_table import text_table
from .plan_table import TraceSummary, heading, notes, size_text


@dataclass(frozen=True)
class StageSummary:
    """The sites of one stage, or of one part of the network off the trunk.

    Attributes:
        stage: its index, or the part, such as ``"decoder"``.
        blocks: number of blocks with a site.
        sites: number of sites.
        by_kind: number of sites of each kind that there is (branch, skip, output, end).
        whole_maps: number of sites where the block is as large as the map.
        map_sizes: the different map sizes in pixels, the largest first.
        block_sizes: the different block sizes in force, in pixels, the largest first.
        keep_prob: the target keep_prob.
    """

    stage: int | str
    blocks: int
    sites: int
    by_kind: dict[str, int]
    whole_maps: int
    map_sizes: tuple[tuple[int, ...], ...]
    block_sizes: tuple[tuple[int, ...], ...]
    keep_prob: float


def summarize(sites: Iterable[Site]) -> list[StageSummary]:
    """The sites of a plan, stage by stage in the order of the plan."""
    groups: dict[int | str, list[Site]] = {}
    for site in sites:
        groups.setdefault(site.part if site.stage is None else site.stage, []).append(site)
    return [
        StageSummary(
            stage,
            len({site.block for site in group}),
            len(group),
            _kinds(group),
            sum(site.covers_map for site in group),
            tuple(sorted({site.map_size for site in group}, reverse=True)),
            tuple(sorted({site.block_size for site in group}, reverse=True)),
            group[0].keep_prob,
        )
        for stage, group in groups.items()
    ]


def render_summary(model: str, sites: Sequence[Site], trace: TraceSummary, layers: Sequence[str]) -> str:
    """A table with a line per stage and one for all of them, between the lines that stand around the table of sites."""
    kinds = _kinds(sites)
    rows = [("stage", "blocks", "sites", *kinds, "map", "block", "keep_prob")]
    for one in summarize(sites):
        counts = one.blocks, one.sites, *(one.by_kind.get(kind, 0) for kind in kinds)
        covers = "*" if one.whole_maps else ""
        sizes = _sizes(one.map_sizes), _sizes(one.block_sizes) + covers
        rows.append((str(one.stage), *map(str, counts), *sizes, f"{one.keep_prob:.4g}"))
    total = len({site.block for site in sites}), len(sites), *kinds.values()
    rows.append(("all", *map(str, total), "", "", ""))
    table = text_table(rows, right=range(len(rows[0])))
    return "\n".join([heading(model, sites, trace, layers), "", *table, *notes(sites, trace, layers)])


def _kinds(sites: Iterable[Site]) -> dict[str, int]:
    counts = Counter(site.where for site in sites)
    return {kind: counts[kind] for kind in get_args(Where) if counts[kind]}


def _sizes(sizes: Sequence[tuple[int, ...]]) -> str:
    """One size, two, or the largest and the smallest."""
    between = " to " if len(sizes) > 2 else ", "
    return between.join(map(size_text, dict.fromkeys((sizes[0], sizes[-1]))))
