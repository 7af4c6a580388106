"""Figures of an evaluation as a table for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Row = list[str | int | float]
"""A line of a table: its name, then its figures."""


def table(header: Sequence[str], rows: Sequence[Row], digits: int = 2) -> str:
    """Aligned columns: the first to the left, the others to the right; NaN, which is a figure of nothing, as `-`."""
    cells = [list(header), *([_shown(cell, digits) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        aligned = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(aligned).rstrip())
    return "\n".join(lines)


def _shown(cell: str | int | float, digits: int) -> str:
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:.{digits}f}"
    return str(cell)


def plain(value: Any) -> Any:
    """The same as JSON has it: lists for tuples, null for NaN."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def mean(values: Sequence[float]) -> float:
    """The mean of the values that are figures; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
