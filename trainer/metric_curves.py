"""Read metrics that runs logged to TensorBoard, and draw them over the steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from manifests import charts
from manifests.charts import Chart
from shards.errors import PretrackError


def read_curve(run: Path, metric: str = "loss") -> list[tuple[int, float]]:
    """Return the logged values of a metric as (step, value). Raises PretrackError if it has none.

    run: the run's folder, `run.out`
    """
    if not (run / "tensorboard").is_dir():
        raise PretrackError(f"{run} holds no run that logged to TensorBoard: check the name")
    # 0: all values. By default, 10,000 of them are drawn at random.
    events: Any = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    logged = events.Tags()["scalars"]
    if metric not in logged:
        raise PretrackError(
            f"{run} has no metric '{metric}': it logged {', '.join(sorted(logged)) or 'none'}"
        )
    return [(event.step, event.value) for event in events.Scalars(metric)]


def draw_curves(title: str, runs: Mapping[str, Path], metric: str = "loss") -> Chart:
    """Draw a metric that is never negative over the steps of each run: name → run's folder."""
    curves = {name: read_curve(run, metric) for name, run in runs.items()}
    steps = sorted({step for curve in curves.values() for step, _ in curve})
    ticks = {float(step): str(step) for step in (steps[0], steps[len(steps) // 2], steps[-1])}
    highest = max(value for curve in curves.values() for _, value in curve) or 1.0
    series = {name: [(float(step), value) for step, value in it] for name, it in curves.items()}
    return charts.lines(title, series, "steps", ticks=ticks, highest=highest, form=".2g")
