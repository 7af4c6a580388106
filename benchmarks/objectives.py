"""Which objective to train with: `python -m benchmarks.objectives OUT FOLDER [--steps 300] [--seeds 1 2] [key=value ...]`.

Trains one small transformer on the clips of a build, once for each objective and seed, from the same weights on the same samples,
and judges it on held-out sequences at several steps, as `python -m trainer.evaluate labelfree` does: are moving points found again,
are tracks told apart, does their order of similarities stay, have features collapsed. Prints a table (differences from the start
with 95 % intervals over videos) and draws the curves into FOLDER/METRIC.png. Runs stay in FOLDER, and are gone on with.

`key=value` changes a setting of all of them, `model.weights=FILE` for example: from random weights, the default, it shows what an
objective does to features, and not what it would do to DINOv2's.
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
from trainer.evaluate.bootstrap import Difference, difference
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.heldout.breakdown import by_clip
from trainer.evaluate.heldout.canvas import png
from trainer.evaluate.heldout.clips import HeldOutSet, evaluation_settings, read_held_out
from trainer.evaluate.heldout.curves import plot
from trainer.evaluate.heldout.measures import METRICS
from trainer.evaluate.heldout.scoring import Scores, score
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
"""The last is none of 3DPoV's: what plain correspondence gives on the same tracks."""
SHOWN = ("moving_pck@0.1", "track@1", "rank_correlation")


@dataclass(frozen=True)
class Stage:
    """What a run has reached after some steps. `seconds` is the time that the last of them took, judging included."""

    step: int
    scores: Scores
    seconds: float


def settings_of(
    name: str, seed: int, steps: int, total: int, out: str, folder: Path, changes: list[str]
) -> TrainSettings:
    """A run's settings up to `steps` of `total`."""
    values = {
        "data": {"out": out, "size": 96, "frames": 4, "step": 6},
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
            "period": total,
            "clip_norm": 1.0,
        },
        "run": {
            "out": str(folder / f"{name}-{seed}"),
            "seed": seed,
            "steps": steps,
            "batch_size": 8,
            "device": "cpu",
            "workers": 0,
        },
    }
    path = folder / "config.yaml"
    atomic_write(path, yaml.safe_dump(values).encode())
    return load_settings(TrainSettings, path, changes)


def run(
    name: str, seed: int, total: int, out: str, folder: Path, held: HeldOutSet, changes: list[str]
) -> list[Stage]:
    """Trains to the end, stopping four times on the way to be judged."""
    stages = []
    for steps in [0, *(total * part // 4 for part in (1, 2, 3, 4))]:
        settings = settings_of(name, seed, max(1, steps), total, out, folder, changes)
        weights = settings.run.out / "weights" / f"step_{steps:08d}.safetensors"
        begun = time.perf_counter()
        if not weights.is_file():
            train(settings)
        stages.append(
            Stage(
                steps,
                score(held, [load_evaluated_model(name, str(weights))], 12)[name],
                time.perf_counter() - begun,
            )
        )
    return stages


def compared(stages: list[Stage], held: HeldOutSet) -> dict[str, Difference]:
    """The end less the start, clip by clip; intervals are over videos."""
    first, last = stages[0].scores, stages[-1].scores
    return {
        m.name: difference(by_clip(m, first, held), by_clip(m, last, held), m.better, held.videos)
        for m in METRICS
    }


def main() -> None:
    """Prints the table and draws the curves."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives")
    parser.add_argument("out", help="a finished build with a split 'eval'")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--objectives", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES)
    )
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("changes", nargs="*", metavar="key=value")
    a = parser.parse_intermixed_args()
    snapshot = open_snapshot(a.out)
    shown = DataSettings.model_validate(
        evaluation_settings(snapshot, split="eval", where="", frames=4, step=6)
    )
    held = read_held_out(snapshot, shown, TrackFilterSettings(), [96], a.clips)
    print(held)
    titles = {m.name: m.title for m in METRICS}
    print(
        f"\n| objective | seed | {' | '.join(titles[n] for n in SHOWN)} | effective rank | s a step |\n{'|---' * (4 + len(SHOWN))}|"
    )
    curves: dict[str, dict[str, list[float]]] = {name: {} for name in SHOWN}
    for name in a.objectives:
        for seed in a.seeds:
            stages = run(name, seed, a.steps, a.out, a.folder, held, a.changes)
            found = compared(stages, held)
            cells = [cell(found[metric]) for metric in SHOWN]
            ranks = (
                f"{stages[0].scores.effective_rank:.1f} → {stages[-1].scores.effective_rank:.1f}"
            )
            seconds = sum(stage.seconds for stage in stages) / a.steps
            print(
                f"| {name} | {seed} | {' | '.join(cells)} | {ranks} | {seconds:.2f} |", flush=True
            )
            for m in METRICS:
                if m.name in SHOWN:
                    curves[m.name][f"{name}, seed {seed}"] = [
                        finite_mean(by_clip(m, stage.scores, held)) for stage in stages
                    ]
            labels = [str(stage.step) for stage in stages]
    for metric, lines in curves.items():
        atomic_write(
            a.folder / f"{metric}.png",
            png(plot(f"{titles[metric]}, by step", labels, lines)),
        )


def cell(d: Difference) -> str:
    """A difference in a table."""
    bounds = "" if d.interval is None else f" [{d.interval[0]:+.3f}, {d.interval[1]:+.3f}]"
    return f"{d.base:.3f} → {d.model:.3f}{bounds}"


if __name__ == "__main__":
    main()
