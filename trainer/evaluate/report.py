"""What the results of all public benchmarks have in common: tables and means."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trainer.evaluate.results import aligned, number

Row = list[str | int | float]
"""A line of a table: its name, then its figures."""


def table(header: Sequence[str], rows: Sequence[Row], digits: int = 2) -> str:
    """Aligned columns, indented; NaN, which is a figure of nothing, as `-`."""
    cells = [list(header), *([number(cell, digits) if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    return "\n".join(f"  {line}" for line in aligned(cells))


def mean(values: Sequence[float]) -> float:
    """The mean of the values that are figures; NaN if none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
