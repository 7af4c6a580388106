"""Tables as text, for all evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trainer.evaluate.bootstrap import Difference

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
    """Format a row per metric: the difference, its interval and the verdict.

    counted: headers of the counts: items, and also groups of items if the bootstrap drew groups
    """
    rows = [[title, "", "95 % interval", "", *counted]]
    for name, d in differences.items():
        gain = f"{d.gain:+.{digits}f}" if d.count else "-"
        bounds = "-"
        if d.interval is not None:
            bounds = f"[{d.interval[0]:+.{digits}f}, {d.interval[1]:+.{digits}f}]"
        counts = [str(count) for count in (d.count, d.groups)[: len(counted)]]
        rows.append([name, gain, bounds, d.verdict, *counts])
    return "\n".join(aligned_lines(rows))


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
