"""The label-free evaluation as text: tables, a conclusion per model, and remarks on limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from manifests.wording import pluralise
from trainer.evaluate.evaluated_model import EvaluatedModel
from trainer.evaluate.heldout.breakdown import (
    UNKNOWN,
    bins,
    by_clip,
    differences,
    differences_by_viewing_angle,
    interval_at,
)
from trainer.evaluate.heldout.clips import HeldOutSet
from trainer.evaluate.heldout.measures import BY_VIEWING_ANGLE, METRICS, NAMED, Metric
from trainer.evaluate.heldout.scoring import CHANCE, Scores
from trainer.evaluate.intervals import Difference
from trainer.evaluate.results import finite_mean
from trainer.evaluate.tables import aligned_lines, format_number, table_of_differences

MIN_VIDEOS = 20
"""With fewer videos no model is called better."""
MIN_RANK_RATIO = 0.8
"""A model with less than this share of the base's effective rank has collapsed: no better."""
HEADLINE, TRACK = METRICS[0], NAMED["moving_track@1"]


def report(
    held_out: HeldOutSet, models: Sequence[EvaluatedModel], scores: dict[str, Scores]
) -> str:
    """Return the text that the command prints. The first model is the base."""
    base, *others = models
    points = [pair.moving for pair in scores[CHANCE].pairs]
    total, moving = sum(map(len, points)), sum(int(mask.sum()) for mask in points)
    lines = [
        str(held_out),
        f"{pluralise(total, 'point')} to find, {moving:,} of them moving",
        "",
        *_metric_table(held_out, base.name, scores),
        "",
        *_headline_table(held_out, scores),
    ]
    for metric in BY_VIEWING_ANGLE if bins(held_out)["viewing_angle"] else ():
        lines += ["", *_viewing_angle_table(metric, held_out, scores)]
    for model in others:
        pair = scores[base.name], scores[model.name]
        by_metric = differences(*pair, held_out)
        by_title = {metric.title: by_metric[metric.name] for metric in _known(held_out, scores)}
        title = f"{model.name} less {base.name}"
        lines += ["", table_of_differences(title, by_title, ["clips", "videos"], digits=4)]
        for metric in BY_VIEWING_ANGLE if bins(held_out)["viewing_angle"] else ():
            by_angle = differences_by_viewing_angle(metric, *pair, held_out)
            shown = {_angle_row(label): d for label, d in by_angle.items() if d.count}
            table = table_of_differences(metric.title, shown, ["clips", "videos"], digits=4)
            lines += ["", f"{title}, by the point's viewing angle", table]
        lines += ["", conclusion(by_metric, scores, base.name, model.name)]
    return "\n".join([*lines, "", *_remarks(held_out, models)])


def _metric_table(held_out: HeldOutSet, base: str, scores: dict[str, Scores]) -> list[str]:
    """Format a row per metric and a column per model."""
    columns = scores.values()
    rows = [["", *scores]]
    for metric in _known(held_out, scores):
        means = [finite_mean(by_clip(metric, column, held_out)) for column in columns]
        rows.append([metric.title, *map(format_number, means)])
    ranks = [format_number(column.effective_rank, 1) for column in columns]
    cosines = [format_number(column.mean_cosine) for column in columns]
    drifts = [format_number(column.drift) for column in columns]
    rows.append(["effective rank of features", *ranks])
    rows.append(["mean cosine of different patches", *cosines])
    rows.append([f"drift from {base}", *drifts])
    return aligned_lines(rows)


def _known(held_out: HeldOutSet, scores: dict[str, Scores]) -> list[Metric]:
    """Return the metrics that tables list, without those that need cameras or masks and have none.

    Chance has a value wherever any model could have one.
    """
    chance = scores[CHANCE]
    return [
        metric
        for metric in METRICS
        if metric.listed
        and (
            not (metric.objects or metric.angles or metric.measure == "epipolar@4px")
            or np.isfinite(by_clip(metric, chance, held_out)).any()
        )
    ]


def _viewing_angle_table(
    metric: Metric, held_out: HeldOutSet, scores: dict[str, Scores]
) -> list[str]:
    """Format a metric: a row per bin of viewing angles, and a column per model with intervals."""
    rows = [[metric.title, *scores, "clips"]]
    for label in bins(held_out)["viewing_angle"]:
        row = [_angle_row(label)]
        clips = 0
        for column in scores.values():
            values = by_clip(metric, column, held_out, "viewing_angle", label)
            clips = int(np.isfinite(values).sum())
            cell = format_number(finite_mean(values), 3)
            if interval := interval_at(metric, column, held_out, label):
                cell += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
            row.append(cell)
        if clips:
            rows.append([*row, str(clips)])
    return aligned_lines(rows)


def _angle_row(label: str) -> str:
    return "viewing angle unknown" if label == UNKNOWN else f"viewing angle {label} degrees"


def _headline_table(held_out: HeldOutSet, scores: dict[str, Scores]) -> list[str]:
    """Format the headline metric: a row per bin, a column per model, and the number of clips."""
    rows = [[HEADLINE.title, *scores, "clips"]]
    names = {
        "gap": "frame gap {}",
        "angle": "viewpoint {} degrees apart",
        "source": "source {}",
        "part": "part of the picture: {}",
    }
    for kind, name in names.items():
        for label in bins(held_out)[kind]:
            values = [
                by_clip(HEADLINE, column, held_out, kind, label) for column in scores.values()
            ]
            means = [format_number(finite_mean(of_clips)) for of_clips in values]
            # All models see the same points, so one column tells the number of clips.
            clips = int(np.isfinite(values[0]).sum())
            rows.append([name.format(label), *means, str(clips)])
    return aligned_lines(rows)


def conclusion(
    by_metric: dict[str, Difference], scores: dict[str, Scores], base: str, model: str
) -> str:
    """Decide whether the model is better: by two metrics, without collapse, on enough videos."""
    missing = [
        f"{metric.title}: {by_metric[metric.name].verdict}"
        for metric in (HEADLINE, TRACK)
        if by_metric[metric.name].verdict != "better"
    ]
    ratio = scores[model].effective_rank / scores[base].effective_rank
    if not ratio >= MIN_RANK_RATIO:  # also if it is NaN
        missing.append(f"its effective rank is {ratio:.2f} of {base}'s, below {MIN_RANK_RATIO}")
    videos = by_metric[HEADLINE.name].groups
    if videos < MIN_VIDEOS:
        missing.append(
            f"only {pluralise(videos, 'video')} with moving points, "
            f"at least {MIN_VIDEOS} are needed"
        )
    if missing:
        return f"{model} is not shown to be better than {base} ({'; '.join(missing)})"
    return (
        f"{model} is better than {base}, at moving points and at tracks; "
        f"its effective rank is {ratio:.2f} of {base}'s"
    )


def _remarks(held_out: HeldOutSet, models: Sequence[EvaluatedModel]) -> Iterator[str]:
    """Yield remarks on the limits of the tables."""
    if len(models) > 1:
        yield (
            "Intervals and p-values come from sign flips and resamples of videos, each with all "
            "its clips. They say nothing about other data, or about training again."
        )
    if bins(held_out)["viewing_angle"]:
        yield (
            "Viewing angles are those of triangulated points: unknown where a point moves in "
            "space or its track is wrong."
        )
    if not held_out.exact:
        yield "The points are a tracker's, not ground truth: confirm a gain by another evaluation."
    if (videos := len(set(held_out.videos))) < MIN_VIDEOS:
        yield f"With only {pluralise(videos, 'video')}, only large differences can be shown."
    for model in models:
        if model.file == "random":
            yield (
                f"'{model.name}' has random weights: good for trying the code out, not for results."
            )
