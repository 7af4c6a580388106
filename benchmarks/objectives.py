"""Compare training objectives.

    python -m benchmarks.objectives OUT FOLDER [--steps 300] [--seeds 1 2] [key=value ...]

Trains one small transformer on the clips of a build, once per objective and seed, from the same
weights on the same samples. Scores it on held-out sequences at several steps, as
`python -m trainer.evaluate labelfree` does: whether moving points are found again, whether tracks
are told apart, whether their order of similarities stays, and whether features have collapsed.
Prints a table (differences from the start with 95 % intervals over videos) and draws the curves to
FOLDER/METRIC.png. Runs are kept in FOLDER, and the same command resumes them.

`key=value` changes a setting of all runs, for example `model.weights=FILE`. With random weights,
the default, the comparison shows what an objective does to features, not what it would do to
DINOv2's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from manifests.settings import load_settings
from manifests.snapshot import open_snapshot
from shards.files import atomic_write
from trainer.config import DataSettings, TrackFilterSettings, TrainSettings
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.heldout.breakdown import by_clip
from trainer.evaluate.heldout.clips import HeldOutSet, evaluation_settings, read_held_out
from trainer.evaluate.heldout.curves import plot
from trainer.evaluate.heldout.measures import METRICS
from trainer.evaluate.heldout.scoring import Scores, score
from trainer.evaluate.intervals import LEVEL, Difference, corrected, difference
from trainer.evaluate.results import finite_mean
from trainer.train import train

OBJECTIVES: dict[str, dict[str, Any]] = {
    "spearman": {"objective": "spearman", "sorter": "torchsort"},
    "published": {"objective": "published", "sorter": "bitonic", "detach_teacher": False},
    "teacher_student": {
        "objective": "teacher_student",
        "sorter": "bitonic",
        "student_steepness": 100,
        "teacher_steepness": 100,
    },
    "info_nce": {"sorting": 0, "info_nce": {}},
}
"""Settings of each objective's losses. `info_nce` is not 3DPoV's: it shows what plain
correspondence gives on the same tracks."""
SHOWN_METRICS = ("moving_pck@0.1", "track@1", "rank_correlation")


@dataclass(frozen=True)
class ScoredStep:
    """A run's scores after some steps."""

    step: int
    scores: Scores
    seconds: float
    """Time since the scored step before, for training and scoring."""


@dataclass(frozen=True)
class Comparison:
    """What all runs share."""

    out: str
    folder: Path
    steps: int
    changes: list[str]
    held_out: HeldOutSet


def settings_of_run(comparison: Comparison, name: str, seed: int, steps: int) -> TrainSettings:
    """Return the settings that train a run up to `steps`."""
    values = {
        "data": {"out": comparison.out, "size": 96, "frames": 4, "step": 6},
        "model": {
            "backbone": "vit_tiny_patch16_224",
            "weights": "random",
            "options": {"depth": 4, "patch_size": 8},
            "trainable_blocks": 4,
            "head": [256, 128],
        },
        "loss": OBJECTIVES[name],
        "references": {"count": 3},
        "optim": {
            "lr": 5e-4,
            "backbone_ratio": 1.0,
            "warmup": 20,
            "period": comparison.steps,
            "clip_norm": 1.0,
        },
        "run": {
            "out": str(comparison.folder / f"{name}-{seed}"),
            "seed": seed,
            "steps": steps,
            "batch_size": 8,
            "device": "cpu",
            "workers": 0,
        },
    }
    path = comparison.folder / "config.yaml"
    atomic_write(path, yaml.safe_dump(values).encode())
    return load_settings(TrainSettings, path, comparison.changes)


def train_and_score(comparison: Comparison, name: str, seed: int) -> list[ScoredStep]:
    """Train a run to its end, and score it at the start, the end and three steps between."""
    scored = []
    for quarter in range(5):
        steps = comparison.steps * quarter // 4
        settings = settings_of_run(comparison, name, seed, max(1, steps))
        weights = settings.run.out / "weights" / f"step_{steps:08d}.safetensors"
        started = time.perf_counter()
        if not weights.is_file():
            train(settings)
        model = load_evaluated_model(name, str(weights))
        scores = score(comparison.held_out, [model], 12)[name]
        scored.append(ScoredStep(steps, scores, time.perf_counter() - started))
    return scored


def differences(scored: list[ScoredStep], held_out: HeldOutSet) -> dict[str, Difference]:
    """Compare the shown metrics of a run's end with its start, clip by clip, over videos."""
    first, last = scored[0].scores, scored[-1].scores
    shown = [m for m in METRICS if m.name in SHOWN_METRICS]
    compared = {
        m.name: difference(
            by_clip(m, first, held_out), by_clip(m, last, held_out), m.better, held_out.videos
        )
        for m in shown
    }
    return corrected(compared, {m.name: m.better for m in shown})


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives")
    parser.add_argument("out", help="the output folder of a build with a split 'eval'")
    parser.add_argument("folder", type=Path, help="where runs and curves go")
    parser.add_argument("--steps", type=int, default=300, help="training steps per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES)
    )
    parser.add_argument("--clips", type=int, default=64, help="held-out clips to score on")
    parser.add_argument("changes", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args()


def main() -> None:
    """Print the table and draw the curves."""
    a = parse_arguments()
    snapshot = open_snapshot(a.out)
    data = DataSettings.model_validate(
        evaluation_settings(snapshot, split="eval", where="", frames=4, step=6)
    )
    held_out = read_held_out(snapshot, data, TrackFilterSettings(), [96], a.clips)
    comparison = Comparison(a.out, a.folder, a.steps, a.changes, held_out)
    print(held_out)
    titles = {m.name: m.title for m in METRICS if m.name in SHOWN_METRICS}
    heads = ["objective", "seed", *(titles[name] for name in SHOWN_METRICS)]
    heads += ["effective rank", "seconds per step"]
    print(f"\n| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    curves: dict[str, dict[str, list[float]]] = {name: {} for name in SHOWN_METRICS}
    for name in a.objectives:
        for seed in a.seeds:
            scored = train_and_score(comparison, name, seed)
            print(table_row(name, seed, scored, held_out), flush=True)
            for m in METRICS:
                if m.name in SHOWN_METRICS:
                    curves[m.name][f"{name}, seed {seed}"] = [
                        finite_mean(by_clip(m, step.scores, held_out)) for step in scored
                    ]
            labels = [str(step.step) for step in scored]
    for metric, lines in curves.items():
        chart = plot(f"{titles[metric]}, by step", labels, lines)
        atomic_write(a.folder / f"{metric}.png", chart)
    print("\n* different from the start, with p-values corrected for the metrics of a row (Holm)")


def table_row(name: str, seed: int, scored: list[ScoredStep], held_out: HeldOutSet) -> str:
    """Format a run as a row of the table: start → end of each metric."""
    changes = differences(scored, held_out)
    cells = [name, str(seed), *(cell(changes[metric]) for metric in SHOWN_METRICS)]
    first, last = scored[0].scores, scored[-1].scores
    cells.append(f"{first.effective_rank:.1f} → {last.effective_rank:.1f}")
    cells.append(f"{sum(step.seconds for step in scored) / scored[-1].step:.2f}")
    return f"| {' | '.join(cells)} |"


def cell(d: Difference) -> str:
    """Format a difference: start → end [95 % interval], with a star if it is not 0 after Holm."""
    bounds = "" if d.interval is None else f" [{d.interval[0]:+.3f}, {d.interval[1]:+.3f}]"
    star = "*" if d.p_holm is not None and d.p_holm <= LEVEL else ""
    return f"{d.base:.3f} → {d.model:.3f}{star}{bounds}"


if __name__ == "__main__":
    main()
