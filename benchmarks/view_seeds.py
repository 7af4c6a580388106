"""Put `pretrack evaluate views` of several seeds of one experiment together.

    python -m benchmarks.view_seeds eval1/views.json eval2/views.json --model mv

Prints, by the angle between the optical axes, the location error of every row of the files as mean
and standard deviation over seeds, and the differences of the model from its controls: means over
seeds, with 95 % intervals over clips (`trainer.evaluate.intervals`). A clip has the mean of its
views in the bin.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.evaluate.intervals import MIN_GROUPS, compare_means

BINS = {
    "all": (0.0, 181.0),
    "below 45°": (0.0, 45.0),
    "45-60°": (45.0, 60.0),
    "60-90°": (60.0, 90.0),
}


def errors_by_clip(row: dict[str, Any], angles: tuple[float, float]) -> NDArray[np.float64]:
    """Return the mean error of each clip's views within the angles, NaN without any: [clips]."""
    errors: dict[int, list[float]] = {}
    for view in row["views"]:
        of_clip = errors.setdefault(view["clip"], [])
        if angles[0] <= view["angle"] < angles[1]:
            of_clip.append(view["error"])
    return np.array([np.mean(errors[clip]) if errors[clip] else np.nan for clip in sorted(errors)])


def mean_and_spread(seeds: list[dict[str, Any]], row: str, angles: tuple[float, float]) -> str:
    """Return the mean over clips as mean and standard deviation over seeds."""
    means = np.array([np.nanmean(errors_by_clip(seed[row], angles)) for seed in seeds])
    spread = f" ± {means.std(ddof=1):.3f}" if len(means) > 1 else ""
    return f"{means.mean():.3f}{spread}"


def difference(
    seeds: list[dict[str, Any]], model: str, control: str, angles: tuple[float, float]
) -> str:
    """Return model less control, the mean over seeds and clips; its interval if clips suffice."""
    paired = [errors_by_clip(s[model], angles) - errors_by_clip(s[control], angles) for s in seeds]
    clips = np.mean(paired, axis=0)
    clips = clips[~np.isnan(clips)]
    if len(clips) < MIN_GROUPS:
        return f"{clips.mean():+.3f}"
    interval = compare_means(clips[None], np.ones(len(clips)))
    return f"{clips.mean():+.3f} [{interval.low[0]:+.3f}, {interval.high[0]:+.3f}]"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.view_seeds")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="mv")
    a = parser.parse_args()
    seeds = [json.loads(path.read_bytes())["rows"] for path in a.files]
    header = f"| {' | '.join(BINS)} |\n|---|{'---|' * len(BINS)}"
    print(f"| location error {header}")
    for row in seeds[0]:
        cells = [mean_and_spread(seeds, row, angles) for angles in BINS.values()]
        print(f"| {row} | {' | '.join(cells)} |")
    print(f"\n| {a.model} less {header}")
    for row in seeds[0]:
        if row != a.model:
            cells = [difference(seeds, a.model, row, angles) for angles in BINS.values()]
            print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
