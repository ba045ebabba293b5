"""The table that a plan or a report prints."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten

from .site import Site

_HEADINGS = ("stage", "site", "where", "after", "channels", "map", "block", "keep_prob")
_NUMERIC = {0, 4, 5, 6, 7}  # columns


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
    headings, rule, *body = text_table(rows, _NUMERIC)
    lines += ["", headings, rule]
    for number, (row, line) in enumerate(zip(rows[1:], body, strict=True)):
        lines += ["", line] if number and row[0] else [line]
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


def text_table(rows: Sequence[Sequence[str]], right: Container[int]) -> list[str]:
    """The lines of a table: the headings, a rule, the other rows.

    Args:
        rows: the cells, row by row; the first row holds the headings.
        right: the numbers of the columns that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Iterable[str]) -> str:
        columns = enumerate(zip(cells, widths, strict=True))
        return "  ".join(text.rjust(w) if i in right else text.ljust(w) for i, (text, w) in columns).rstrip()

    return [line(rows[0]), line("-" * width for width in widths), *map(line, rows[1:])]


def _size(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))
