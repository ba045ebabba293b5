"""Tables of text, as the reports and the command print them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence


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
