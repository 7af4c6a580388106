"""Tables as text, for all evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.evaluate.intervals import Difference

Row = list[str | int | float]
"""A line of a table: its label, then its numbers."""


def table(header: Sequence[str], rows: Sequence[Row], digits: int = 2) -> str:
    """Format indented, aligned columns. NaN, a mean over nothing, is shown as `-`."""
    cells = [list(header)]
    for row in rows:
        cells.append(
            [format_number(cell, digits) if isinstance(cell, float) else str(cell) for cell in row]
        )
    return "\n".join(f"  {line}" for line in aligned_lines(cells))


def table_of_differences(
    title: str, differences: Mapping[str, Difference], counted: Sequence[str], digits: int
) -> str:
    """Format a row per metric: the difference, its interval, p-value and verdict; then a footnote.

    differences: with p-values corrected for each other, by `corrected`
    counted:     headers of the counts: items, and also groups of items where items have groups
    """
    rows = [[title, "", "95 % interval", "p", "", *counted]]
    for name, d in differences.items():
        gain = f"{d.gain:+.{digits}f}" if d.count else "-"
        bounds = "-"
        if d.interval is not None:
            bounds = f"[{d.interval[0]:+.{digits}f}, {d.interval[1]:+.{digits}f}]"
        counts = [str(count) for count in (d.count, d.groups)[: len(counted)]]
        rows.append([name, gain, bounds, format_p(d.p_holm), d.verdict, *counts])
    tested = sum(d.p_holm is not None for d in differences.values())
    return "\n".join([*aligned_lines(rows), *footnote(tested)])


def footnote(tested: int) -> list[str]:
    """Say what the column p of a table with so many tested rows is."""
    if tested < 2:
        return []
    return [
        f"p is corrected for the {tested} rows of this table (Holm) and decides the words; "
        "an interval is that of its row alone."
    ]


def format_p(p: float | None) -> str:
    """Format a p-value, or "-" for None."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def aligned_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align cells in columns: the first column to the left, the others to the right."""
    columns = range(max(map(len, rows)))
    widths = [max(len(row[column]) for row in rows if column < len(row)) for column in columns]
    lines = []
    for row in rows:
        first = f"{row[0]:<{widths[0]}}"
        others = [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=False)]
        lines.append("  ".join([first, *others]).rstrip())
    return lines


def format_number(value: float, digits: int = 4) -> str:
    """Format a number, or "-" for NaN and infinity."""
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"
