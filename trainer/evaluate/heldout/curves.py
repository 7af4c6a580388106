"""Plot a metric from 0 to 1 over named positions, a curve per model."""

from __future__ import annotations

from collections.abc import Sequence

from manifests import charts


def plot(
    title: str,
    labels: Sequence[str],
    curves: dict[str, list[float]],
    *,
    baselines: Sequence[str] = (),
    unit: str = "",
) -> bytes:
    """Plot curves over labelled positions as a PNG; NaN is a gap, `baselines` are thin and grey.

    unit: what the labels say
    """
    ticks = {float(position): label for position, label in enumerate(labels)}
    series = {name: list(zip(ticks, values, strict=True)) for name, values in curves.items()}
    chart = charts.lines(title, series, unit, ticks=ticks, baselines=baselines, dots=True)
    return charts.png(chart)
