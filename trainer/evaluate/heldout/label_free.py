"""Without labels: do a backbone's features follow the tracked points of held-out clips?

    python -m trainer.evaluate labelfree out/mixed --model base=runs/a:first --model trained=runs/a --out runs/a/evaluation

Every model sees the same frames and the same points, at as many pixels as give it the same grid of patches: 224 for patches of 14,
256 for patches of 16. Figures (`trainer/evaluate/heldout/measures.py` says of what) are means over clips, and so are those by frame
gap, by viewpoint where poses are stored, and by source. The first model is the base that the others are compared with, by a paired
bootstrap over videos, each with all its clips. Two further columns say what these clips are worth: the answer "it has not moved",
and chance.

The tracks are a tracker's, which training on the same tracker's may learn: a gain here wants an independent check. Clips of the
source `synthetic` have exact tracks.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from manifests.settings import check_settings
from manifests.snapshot import open_snapshot
from manifests.wording import pluralise
from shards.errors import SettingsError
from trainer.config import DataSettings, TrackFilterSettings
from trainer.evaluate.bootstrap import RESAMPLES, Difference, difference
from trainer.evaluate.evaluated_model import (
    EvaluatedModel,
    load_evaluated_models,
)
from trainer.evaluate.features import patch_features
from trainer.evaluate.heldout import measures, pictures
from trainer.evaluate.heldout.clips import HeldOut, HeldOutClip, read_held_out, still_settings
from trainer.evaluate.heldout.measures import (
    METRICS,
    FramePair,
    Measures,
    Metric,
    effective_rank,
    figure,
    mean_cosine,
)
from trainer.evaluate.report import mean, table_of_differences
from trainer.evaluate.results import aligned, number, versions, write_results

BANK = 320
"""Patches of other clips that a point's similarities are ordered against."""
FRAMES_AT_ONCE = 32
FEW = 20
"""Videos: with fewer nothing is called better."""
LEAST_RANK = 0.8
"""A model whose effective rank falls below this part of the base's has paid for its gains with its features."""
ANGLES = (0, 15, 30, 60)
"""Degrees at which bins of viewpoints begin."""
STILL, CHANCE = "never moves", "chance"
HEADLINE, TRACK = METRICS[0], next(metric for metric in METRICS if metric.name == "track@1")


@dataclass(frozen=True, eq=False)
class Scores:
    """What was found of one model (or of an answer that needs none, which has no features).

    effective_rank, mean_cosine: of the patches of all anchor frames
    drift:                       from the base model, over the patches of all frames
    kept:                        by clip, its features [T, h, w, D], of the clips that are drawn
    """

    pairs: list[FramePair]
    effective_rank: float = float("nan")
    mean_cosine: float = float("nan")
    drift: float = float("nan")
    kept: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelFreeOptions:
    """What the command line of `labelfree` asks for. Raises SettingsError for a value that is too small.

    build:    output folder of a build, or its URL
    snapshot: a snapshot's name; None for the current one
    split, where: only clips of this split, and for which this condition holds
    clips:    at most this many clips
    frames, step: frames per clip, and stored frames from one of them to the next
    grid:     patches along a side of the image
    pictures: clips to draw
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
    a: LabelFreeOptions, models: Sequence[str], *, device: str | None, out: Path
) -> None:
    """Print the tables and write OUT/labelfree.json and pictures. Raises PretrackError.

    models: the values of `--model`; the first is the base of the comparison
    """
    base, *others = subjects = load_evaluated_models(models, device)
    snapshot = open_snapshot(a.build, a.snapshot)
    settings = check_settings(
        DataSettings, still_settings(snapshot, a.split, a.where, a.frames, a.step), "options"
    )
    held = read_held_out(
        snapshot,
        settings,
        TrackFilterSettings(),
        [a.grid * subject.patch for subject in subjects],
        a.clips,
    )
    drawn = clips_to_draw(held.clips, a.pictures)
    scores = score(held, subjects, a.grid, drawn)
    results = {
        "data": held.described() | {"clips": _clip_list(held, scores[CHANCE].pairs)},
        "settings": {
            "grid": a.grid,
            "bank": BANK,
            "moving": measures.MOVING,
            "near": measures.NEAR,
            "resamples": RESAMPLES,
            "resampled": "videos (a clip's `sequence`), each with all its clips",
            "features": "patch tokens of the last block after the final norm",
            "metrics": [asdict(metric) for metric in METRICS],
        },
        "versions": versions(),
        "models": {
            subject.name: subject.described() | {"shown_at": a.grid * subject.patch}
            for subject in subjects
        },
        "figures": {name: _figures(found, held) for name, found in scores.items()},
        "differences": {
            subject.name: {
                name: d.to_json()
                for name, d in differences(scores[base.name], scores[subject.name], held).items()
            }
            for subject in others
        },
    }
    images = dict(draw(held, subjects, scores, drawn))
    print(report(held, subjects, scores))
    written = write_results(out, "labelfree", results, images)
    print(f"\nresults: {written}, and {pluralise(len(images), 'picture')} beside it")


def clips_to_draw(clips: Sequence[HeldOutClip], count: int) -> list[int]:
    """Some clips, evenly from those whose points move most of the way: the choice knows no model."""
    moved = [
        sum(int(measures.moving(*clip.points(t)).sum()) for t in range(1, len(clip.numbers)))
        for clip in clips
    ]
    ranked = [i for i in np.argsort(moved, kind="stable")[::-1].tolist() if moved[i]] or list(
        range(len(clips))
    )
    half = sorted(ranked[: max(count, -(-len(ranked) // 2))])
    return [
        half[i]
        for i in np.unique(
            np.linspace(0, len(half) - 1, min(count, len(half))).round().astype(int)
        ).tolist()
    ]


def score(
    held: HeldOut, subjects: Sequence[EvaluatedModel], grid: int, keep: Sequence[int] = ()
) -> dict[str, Scores]:
    """What each model scores on the clips, by its name; then the answer "it has not moved", and chance.

    `keep` are clips whose features are wanted afterwards. Features of all clips of two models are held at a time: with what is
    made of them some 15 MB for a clip of 4 frames and a ViT-B.
    """
    found: dict[str, Scores] = {}
    base: Tensor | None = None
    for subject in subjects:
        encode = patch_features(subject, normed=True)
        shown = torch.cat([clip.images[grid * subject.patch] for clip in held.clips])
        features = torch.cat(
            [normalize(encode(images), dim=-1).cpu() for images in shown.split(FRAMES_AT_ONCE)]
        )
        features = features.unflatten(0, (len(held.clips), -1))
        base = features if base is None else base
        patches = features[:, 0].flatten(0, 2)
        found[subject.name] = Scores(
            pairs=_pairs(held, partial(_of_model, features)),
            effective_rank=effective_rank(patches),
            mean_cosine=mean_cosine(patches),
            drift=measures.drift(features, base),
            kept={i: features[i] for i in keep},
        )
    patches_in_bank = len(_bank_places(len(held.clips), grid * grid, 0)[0])
    found[STILL] = Scores(_pairs(held, partial(_of_still, grid)))
    found[CHANCE] = Scores(_pairs(held, partial(_of_chance, grid, patches_in_bank)))
    return found


def _of_model(features: Tensor, i: int, t: int, starts: Tensor, goals: Tensor) -> Measures:
    return measures.measure(features[i, 0], features[i, t], starts, goals, bank(features, i))


def _of_still(grid: int, i: int, t: int, starts: Tensor, goals: Tensor) -> Measures:
    return measures.measure_still(starts, goals, grid, grid)


def _of_chance(grid: int, patches: int, i: int, t: int, starts: Tensor, goals: Tensor) -> Measures:
    return measures.measure_chance(goals, grid, grid, patches)


def _pairs(
    held: HeldOut, measured: Callable[[int, int, Tensor, Tensor], Measures]
) -> list[FramePair]:
    """Every pair of frames with a point in common: frame t of clip i, with its points, goes to `measured`."""
    pairs = []
    for i, clip in enumerate(held.clips):
        for t in range(1, len(clip.numbers)):
            starts, goals = clip.points(t)
            if len(starts):
                pairs.append(
                    FramePair(
                        i,
                        t,
                        float(clip.angles[t]),
                        measures.moving(starts, goals),
                        measured(i, t, starts, goals),
                    )
                )
    return pairs


def bank(features: Tensor, clip: int) -> Tensor:
    """The reference bank of a clip: BANK patches of other clips' anchor frames, the same ones for every model.

    features: [clips, T, h, w, D] → [R, D]; fewer where the other clips have fewer, none for a clip alone
    """
    anchors = features[:, 0].flatten(1, 2)
    return anchors[_bank_places(len(anchors), anchors.shape[1], clip)]


def _bank_places(
    clips: int, patches: int, clip: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which clips' which patches a clip's bank is made of."""
    others = (clips - 1) * patches
    chosen = (
        np.random.default_rng(clip).choice(others, min(BANK, others), replace=False)
        if others
        else np.zeros(0, np.int64)
    )
    number = chosen // patches
    return number + (number >= clip), chosen % patches


def parts(held: HeldOut) -> dict[str, list[str]]:
    """What figures are broken down by: for each kind its labels."""
    posed = any(np.isfinite(clip.angles[1:]).any() for clip in held.clips)
    return {
        "gap": [str(gap) for gap in range(1, held.settings.frames)],
        "angle": [_angle_label(angle) for angle in ANGLES] if posed else [],
        "source": sorted({clip.info.source for clip in held.clips}),
    }


def _part(held: HeldOut, pair: FramePair, kind: str) -> str:
    """The label of a pair, "" for none."""
    if kind == "gap":
        return str(pair.gap)
    if kind == "source":
        return held.clips[pair.clip].info.source
    return _angle_label(pair.angle) if math.isfinite(pair.angle) else ""


def _angle_label(angle: float) -> str:
    """Which bin an angle in degrees is in."""
    number = bisect_right(ANGLES, angle) - 1
    return (
        f"{ANGLES[number]}-{ANGLES[number + 1]}"
        if number + 1 < len(ANGLES)
        else f"{ANGLES[number]}+"
    )


def by_clip(
    metric: Metric, scores: Scores, held: HeldOut, kind: str = "", label: str = ""
) -> NDArray[np.float64]:
    """A metric of each clip, over all its pairs or those of one part: [clips], NaN where there is no point."""
    pairs = defaultdict(list)
    for pair in scores.pairs:
        if not kind or _part(held, pair, kind) == label:
            pairs[pair.clip].append(pair)
    return np.array([figure(metric, pairs[i]) for i in range(len(held.clips))])


def differences(base: Scores, model: Scores, held: HeldOut) -> dict[str, Difference]:
    """How a model differs from the base in every metric."""
    return {
        m.name: difference(by_clip(m, base, held), by_clip(m, model, held), m.better, held.videos)
        for m in METRICS
    }


def draw(
    held: HeldOut,
    subjects: Sequence[EvaluatedModel],
    scores: dict[str, Scores],
    drawn: Sequence[int],
) -> Iterator[tuple[str, bytes]]:
    """All pictures, as (name, PNG): the headline by frame gap, and by viewpoint where poses are known; then of some clips."""
    for kind, words in {"gap": "by frame gap", "angle": "by degrees between the cameras"}.items():
        if labels := parts(held)[kind]:
            curves = {
                name: [mean(by_clip(HEADLINE, s, held, kind, label)) for label in labels]
                for name, s in scores.items()
            }
            yield (
                f"recall-{kind}",
                pictures.png(
                    pictures.plot(
                        f"{HEADLINE.title}, {words}", labels, curves, plain=(STILL, CHANCE)
                    )
                ),
            )
    for i in drawn:
        clip = held.clips[i]
        features = {subject.name: scores[subject.name].kept[i] for subject in subjects}
        yield f"features-{clip.info.key}", pictures.png(pictures.feature_maps(clip, features))
        if picture := pictures.matches(clip, features):
            yield f"matches-{clip.info.key}", pictures.png(picture)


def _figures(scores: Scores, held: HeldOut) -> dict[str, Any]:
    """All figures of a model: the mean over clips and what it is made of."""
    found: dict[str, Any] = {}
    for metric in METRICS:
        values = by_clip(metric, scores, held)
        found[metric.name] = {**_summed(values), "by_clip": values}
        for kind, labels in parts(held).items():
            found[metric.name][f"by_{kind}"] = {
                label: _summed(by_clip(metric, scores, held, kind, label)) for label in labels
            }
    return found | {
        "effective_rank": scores.effective_rank,
        "mean_cosine": scores.mean_cosine,
        "drift": scores.drift,
    }


def _summed(values: NDArray[np.float64]) -> dict[str, Any]:
    return {"mean": mean(values), "clips": int(np.isfinite(values).sum())}


def _clip_list(held: HeldOut, pairs: Sequence[FramePair]) -> list[dict[str, Any]]:
    """The clips by name, their frames, and how many points and moving points each pair of frames has."""
    points = {(pair.clip, pair.gap): pair.moving for pair in pairs}
    none = np.zeros(0, np.bool_)
    return [
        {
            "key": clip.info.key,
            "source": clip.info.source,
            "sequence": clip.info.sequence,
            "xxh3_64": clip.checksum,
            "frames": clip.numbers,
            "points": [len(points.get((i, t), none)) for t in range(1, len(clip.numbers))],
            "moving_points": [
                int(points.get((i, t), none).sum()) for t in range(1, len(clip.numbers))
            ],
            "angles": clip.angles[1:],
        }
        for i, clip in enumerate(held.clips)
    ]


def report(held: HeldOut, subjects: Sequence[EvaluatedModel], scores: dict[str, Scores]) -> str:
    """The tables that the command prints."""
    base, *others = subjects
    points = [pair.moving for pair in scores[CHANCE].pairs]
    lines = [
        str(held),
        f"{pluralise(sum(map(len, points)), 'point')} looked for, {sum(int(m.sum()) for m in points):,} of them moving",
        "",
    ]
    rows = [["", *scores]]
    for metric in METRICS:
        rows.append(
            [
                metric.title,
                *(number(mean(by_clip(metric, found, held))) for found in scores.values()),
            ]
        )
    rows.append(
        [
            "effective rank of features",
            *(number(found.effective_rank, 1) for found in scores.values()),
        ]
    )
    rows.append(
        [
            "mean cosine of different patches",
            *(number(found.mean_cosine) for found in scores.values()),
        ]
    )
    rows.append([f"drift from {base.name}", *(number(found.drift) for found in scores.values())])
    lines += [*aligned(rows), ""]

    rows = [[HEADLINE.title, *scores, "clips"]]
    names = {"gap": "frame gap {}", "angle": "viewpoint {} degrees apart", "source": "source {}"}
    for kind, labels in parts(held).items():
        for label in labels:
            values = [by_clip(HEADLINE, found, held, kind, label) for found in scores.values()]
            rows.append(
                [
                    names[kind].format(label),
                    *(number(mean(v)) for v in values),
                    str(int(np.isfinite(values[0]).sum())),
                ]
            )
    lines += aligned(rows)

    for subject in others:
        found = differences(scores[base.name], scores[subject.name], held)
        titled = {metric.title: found[metric.name] for metric in METRICS}
        lines += [
            "",
            table_of_differences(
                f"{subject.name} less {base.name}", titled, ["clips", "videos"], digits=4
            ),
        ]
        lines.append(_conclusion(found, scores, base, subject))
    return "\n".join([*lines, "", *_remarks(held, subjects)])


def _conclusion(
    found: dict[str, Difference],
    scores: dict[str, Scores],
    base: EvaluatedModel,
    model: EvaluatedModel,
) -> str:
    """Whether the model is better, which takes more than one figure."""
    missing = [
        f"{metric.title}: {found[metric.name].verdict}"
        for metric in (HEADLINE, TRACK)
        if found[metric.name].verdict != "better"
    ]
    part = scores[model.name].effective_rank / scores[base.name].effective_rank
    if not part >= LEAST_RANK:
        missing.append(f"the effective rank is {part:.2f} of {base.name}'s, less than {LEAST_RANK}")
    if found[HEADLINE.name].groups < FEW:
        missing.append(
            f"{pluralise(found[HEADLINE.name].groups, 'video')} with moving points, where {FEW} are the least"
        )
    if missing:
        return f"{model.name} is not shown to be better than {base.name} ({'; '.join(missing)})"
    return f"{model.name} is better than {base.name}: at moving points and at tracks, with an effective rank of {part:.2f} of its"


def _remarks(held: HeldOut, subjects: Sequence[EvaluatedModel]) -> Iterator[str]:
    if len(subjects) > 1:
        yield "Intervals are from resampling videos with all their clips; they say nothing of other data, or of training again."
    if not held.exact:
        yield "The points are a tracker's, not ground truth: a gain wants an independent check."
    if (videos := len(set(held.videos))) < FEW:
        yield f"{pluralise(videos, 'video')} {'is' if videos == 1 else 'are'} few: intervals of so few are too narrow."
    for subject in subjects:
        if subject.file == "random":
            yield f"'{subject.name}' has random weights: good for trying the code out, not for results."
