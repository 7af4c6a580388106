"""Evaluate models without labels: do features follow the tracked points of held-out clips?

`evaluate_label_free` reads the clips, scores the models, and writes tables, JSON and pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.settings import check_settings
from manifests.snapshot import open_snapshot
from manifests.wording import pluralise
from shards.errors import SettingsError
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.evaluate.evaluated_model import EvaluatedModel, load_evaluated_models
from trainer.evaluate.heldout.breakdown import (
    bins,
    by_clip,
    by_sequence,
    differences,
    differences_by_viewing_angle,
    interval_at,
)
from trainer.evaluate.heldout.clips import HeldOutSet, evaluation_settings, read_held_out
from trainer.evaluate.heldout.measures import (
    BY_VIEWING_ANGLE,
    ENDPOINT,
    METRICS,
    MOVING_DISTANCE,
    PCK_THRESHOLDS,
    FramePair,
)
from trainer.evaluate.heldout.pictures import choose_clips, draw_pictures
from trainer.evaluate.heldout.report import report
from trainer.evaluate.heldout.scoring import CHANCE, REFERENCES, Scores, score
from trainer.evaluate.intervals import RESAMPLES, Difference
from trainer.evaluate.overlap import check_overlap
from trainer.evaluate.results import finite_mean, versions, write_results


@dataclass(frozen=True)
class HeldOutOptions:
    """The options of evaluations on held-out clips. Raises SettingsError for too small a value.

    build:         output folder of a build, or its URL
    snapshot:      a snapshot's name; None for the current one
    split, where:  take only clips of this split for which this condition holds
    clips:         take at most this many clips
    frames, step:  frames per clip, and stored frames from one of them to the next
    grid:          patches along a side of the image
    pictures:      number of clips to draw
    """

    build: str
    snapshot: str | None = None
    split: str = "eval"
    where: str = ""
    clips: int = 32
    frames: int = 4
    step: int = 10
    grid: int = 16
    pictures: int = 3

    def __post_init__(self) -> None:
        for option, least in {"clips": 1, "step": 1, "grid": 2, "pictures": 0}.items():
            if getattr(self, option) < least:
                raise SettingsError(f"'--{option}' should be at least {least}")


def evaluate_label_free(
    options: HeldOutOptions,
    models: Sequence[str],
    *,
    device: str | None,
    out: Path,
    allow_overlap: bool = False,
) -> None:
    """Print the tables and write OUT/labelfree.json and pictures. Raises PretrackError.

    models:        the values of `--model`; the first is the base of the comparison
    allow_overlap: evaluate models on clips that they were trained on, too
    """
    evaluated = load_evaluated_models(models, device)
    held_out = read_clips(options, evaluated)
    overlaps = check_overlap(
        {model.name: model.trained_on for model in evaluated},
        held_out.footage,
        allow=allow_overlap,
    )
    drawn = choose_clips(held_out.clips, options.pictures)
    scores = score(held_out, evaluated, options.grid, drawn)
    pictures = dict(draw_pictures(held_out, evaluated, scores, drawn))
    print(report(held_out, evaluated, scores))
    for overlap in overlaps:
        print(overlap.sentence)
    results = _results(options, held_out, evaluated, scores)
    results["training_overlap"] = {overlap.model: overlap.to_json() for overlap in overlaps}
    written = write_results(out, "labelfree", results, pictures)
    print(f"\nresults: {written}, and {pluralise(len(pictures), 'picture')} beside it")


def read_clips(options: HeldOutOptions, models: Sequence[EvaluatedModel]) -> HeldOutSet:
    """Read the clips, at the image sizes that give every model the same grid of patches."""
    snapshot = open_snapshot(options.build, options.snapshot)
    values = evaluation_settings(
        snapshot,
        split=options.split,
        where=options.where,
        frames=options.frames,
        step=options.step,
    )
    settings = check_settings(DataSettings, values, "options")
    sides = [options.grid * model.patch for model in models]
    return read_held_out(snapshot, settings, TrackFilterSettings(), sides, options.clips)


def _results(
    options: HeldOutOptions,
    held_out: HeldOutSet,
    models: Sequence[EvaluatedModel],
    scores: dict[str, Scores],
) -> dict[str, Any]:
    """Collect the content of labelfree.json."""
    base, *others = models
    return {
        "data": held_out.to_json() | {"clips": _clips_json(held_out, scores[CHANCE].pairs)},
        "settings": {
            "grid": options.grid,
            "bank": REFERENCES,
            "moving": MOVING_DISTANCE,
            "near": PCK_THRESHOLDS,
            "resamples": RESAMPLES,
            "resampled": "videos (a clip's `sequence`), each with all its clips",
            "features": "patch tokens of the last block after the final norm",
            "metrics": [asdict(metric) for metric in METRICS],
        },
        "versions": versions(),
        "models": {
            model.name: model.to_json() | {"shown_at": options.grid * model.patch}
            for model in models
        },
        "figures": {name: _figures_json(of_model, held_out) for name, of_model in scores.items()},
        "endpoint": ENDPOINT.name,
        "differences": {
            model.name: _differences_json(
                differences(scores[base.name], scores[model.name], held_out)
            )
            for model in others
        },
        "differences_by_viewing_angle": {
            model.name: {
                metric.name: _differences_json(
                    differences_by_viewing_angle(
                        metric, scores[base.name], scores[model.name], held_out
                    )
                )
                for metric in BY_VIEWING_ANGLE
            }
            for model in others
        },
    }


def _figures_json(scores: Scores, held_out: HeldOutSet) -> dict[str, Any]:
    """Collect all metrics of a model: the mean over clips, values per clip, and means per bin."""
    figures: dict[str, Any] = {}
    for metric in METRICS:
        values = by_clip(metric, scores, held_out)
        figures[metric.name] = {
            **_summary(values),
            "by_clip": values,
            "by_sequence": by_sequence(metric, scores, held_out),
        }
        for kind, labels in bins(held_out).items():
            figures[metric.name][f"by_{kind}"] = {
                label: _summary(by_clip(metric, scores, held_out, kind, label)) for label in labels
            }
    for metric in BY_VIEWING_ANGLE:
        for label, figure in figures[metric.name]["by_viewing_angle"].items():
            figure["interval"] = interval_at(metric, scores, held_out, label)
    return figures | {
        "effective_rank": scores.effective_rank,
        "mean_cosine": scores.mean_cosine,
        "drift": scores.drift,
    }


def _differences_json(by_name: Mapping[str, Difference]) -> dict[str, Any]:
    return {name: d.to_json() for name, d in by_name.items()}


def _summary(values: NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean over the clips that have a value, and their number."""
    return {"mean": finite_mean(values), "clips": int(np.isfinite(values).sum())}


def _clips_json(held_out: HeldOutSet, pairs: Sequence[FramePair]) -> list[dict[str, Any]]:
    """List the clips, their frames, and the points and moving points of each pair of frames."""
    moving = {(pair.clip, pair.gap): pair.moving for pair in pairs}
    none = np.zeros(0, np.bool_)
    clips = []
    for i, clip in enumerate(held_out.clips):
        masks = [moving.get((i, gap), none) for gap in range(1, len(clip.frame_numbers))]
        clips.append(
            {
                "key": clip.info.key,
                "source": clip.info.source,
                "sequence": clip.info.sequence,
                "xxh3_64": clip.checksum,
                "frames": clip.frame_numbers,
                "points": [len(mask) for mask in masks],
                "moving_points": [int(mask.sum()) for mask in masks],
                "angles": clip.angles[1:],
            }
        )
    return clips
