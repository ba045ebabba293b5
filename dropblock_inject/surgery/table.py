"""The table that a plan or a report prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

from .site import Site

_HEADINGS = ("stage", "site", "where", "after", "channels", "map", "block", "keep_prob")
_NUMERIC = frozenset(("stage", "channels", "map", "block", "keep_prob"))


@dataclass(frozen=True)
class TraceSummary:
    """What a table says of the pass its sites were found in.

    Attributes:
        image_size: spatial size of the image, in pixels.
        without_skip: blocks that have a shortcut which no module gives a hold on.
        error: what ended the pass early, if anything did.
    """

    image_size: tuple[int, ...]
    without_skip: tuple[str, ...]
    error: Exception | None


def render(model: str, sites: Sequence[Site], trace: TraceSummary) -> str:
    """The sites of a model as a table, a stage after the other, and a line above it that sums them up."""
    blocks = len({site.block for site in sites})
    pixels = _size(trace.image_size)
    lines = [f"DropBlock in {model}: {len(sites)} sites in {blocks} blocks; maps for an input of {pixels} pixels"]
    if not sites:
        return lines[0]
    rows = [_HEADINGS]
    previous = None
    for site in sites:
        covers = "*" if site.block_size == site.map_size else ""
        stage = "" if site.stage == previous else str(site.stage)
        previous = site.stage
        rows.append(
            (
                stage,
                site.name,
                site.where,
                site.host,
                str(site.channels),
                _size(site.map_size),
                _size(site.block_size) + covers,
                f"{site.keep_prob:.4g}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines.append("")
    for number, row in enumerate(rows):
        if number > 1 and row[0]:
            lines.append("")
        cells = [
            cell.rjust(width) if heading in _NUMERIC else cell.ljust(width)
            for cell, width, heading in zip(row, widths, _HEADINGS, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
        if number == 0:
            lines.append("  ".join("-" * width for width in widths))
    if any(site.block_size == site.map_size for site in sites):
        lines += ["", "* as large as the map: whole channels are dropped, as by Dropout2d"]
    if trace.without_skip:
        lines += ["", f"No module gives a hold on the shortcut of {', '.join(trace.without_skip)}: no skip site there"]
    if trace.error is not None:
        problem = shorten(
            f"{type(trace.error).__name__}: {trace.error}".splitlines()[0].rstrip("."), 120, placeholder=" …"
        )
        lines += ["", f"The pass without data ended early, what comes after is not listed: {problem}"]
    return "\n".join(lines)


def _size(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
