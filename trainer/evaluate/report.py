"""What all evaluations print: tables, and means of what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.bootstrap import Difference
from trainer.evaluate.results import aligned, number

Row = list[str | int | float]
"""A line of a table: its name, then its figures."""


def table(header: Sequence[str], rows: Sequence[Row], digits: int = 2) -> str:
    """Aligned columns, indented; NaN, which is a figure of nothing, as `-`."""
    cells = [
        list(header),
        *(
            [number(cell, digits) if isinstance(cell, float) else str(cell) for cell in row]
            for row in rows
        ),
    ]
    return "\n".join(f"  {line}" for line in aligned(cells))


def table_of_differences(
    title: str, found: Mapping[str, Difference], of: Sequence[str], digits: int
) -> str:
    """Differences by what they are of, each with its interval and what that says. `of` names what they were taken over: items, and
    groups of these if the bootstrap had any."""
    rows = [[title, "", "95 % interval", "", *of]]
    for name, d in found.items():
        bounds = (
            "-"
            if d.interval is None
            else f"[{d.interval[0]:+.{digits}f}, {d.interval[1]:+.{digits}f}]"
        )
        counts = [str(count) for count in (d.count, d.groups)[: len(of)]]
        rows.append([name, f"{d.gain:+.{digits}f}" if d.count else "-", bounds, d.verdict, *counts])
    return "\n".join(aligned(rows))


def mean(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of the values that are figures; NaN if none is."""
    found = np.array(values, np.float64)
    known = found[np.isfinite(found)]
    return float(known.mean()) if len(known) else math.nan
