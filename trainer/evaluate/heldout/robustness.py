"""Evaluate models on the same scenes and points under several conditions: light, occluders.

A condition is a source of the build. `evaluate_robustness` reads the scenes that all sources share,
scores the models under each condition, and compares conditions and models over the points that are
visible under all of them.

Legend of shapes: T shown frames, the anchor first; N points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.settings import check_settings
from manifests.snapshot import Snapshot, open_snapshot
from manifests.tables import read_table
from manifests.wording import pluralise
from shards.errors import PretrackError, SettingsError
from trainer.data.clip_selection import choose_clips
from trainer.data.footage import Footage
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.evaluate.evaluated_model import EvaluatedModel, load_evaluated_models
from trainer.evaluate.heldout.clips import (
    HeldOutClip,
    HeldOutSet,
    evaluation_settings,
    read_held_out,
)
from trainer.evaluate.heldout.label_free import HeldOutOptions
from trainer.evaluate.heldout.measures import (
    ENDPOINT,
    METRICS,
    NAMED,
    FramePair,
    Metric,
    aggregate,
)
from trainer.evaluate.heldout.scoring import CHANCE, RAW, Scores, score
from trainer.evaluate.intervals import Difference, corrected, difference
from trainer.evaluate.overlap import check_overlap
from trainer.evaluate.results import finite_mean, versions, write_results
from trainer.evaluate.tables import aligned_lines, format_number, table_of_differences

SHOWN = (NAMED["moving_pck@0.1"], NAMED["city_block"], ENDPOINT)
"""The metrics with tables."""
COMPARED = tuple(
    metric for metric in METRICS if metric.better and not metric.measure.startswith("track")
)
"""The metrics in the results: those of a point alone, whichever others are visible beside it."""
_SAME_PLACE = 1e-4
"""A point is the same under two conditions if its positions differ by less, in parts of the
image. Points of an occluder move past those of what is behind it."""

ByCondition = dict[str, dict[str, Scores]]
"""Condition → model or control → scores, over the points that are visible under all conditions."""


def evaluate_robustness(
    options: HeldOutOptions,
    reference: str,
    models: Sequence[str],
    *,
    device: str | None,
    out: Path,
    allow_overlap: bool = False,
) -> None:
    """Print the tables and write OUT/robustness.json. Raises PretrackError.

    reference:     the source that other conditions are compared with
    models:        the values of `--model`; the first is the base of the comparison
    allow_overlap: evaluate models on scenes that they were trained on, too
    """
    evaluated = load_evaluated_models(models, device)
    conditions = read_conditions(options, reference, evaluated)
    overlaps = check_overlap(
        {model.name: model.trained_on for model in evaluated},
        # Occluders have parts of their own.
        reduce(Footage.union, (held_out.footage for held_out in conditions.values())),
        allow=allow_overlap,
    )
    common = points_in_all(conditions)
    scores = score_conditions(conditions, evaluated, options.grid)
    names = [model.name for model in evaluated]
    videos = conditions[reference].videos
    print(_report(conditions, scores, names, int(common[:, 1:].sum())))
    for overlap in overlaps:
        print(overlap.sentence)
    results = {
        "data": _data_json(options, conditions, common),
        "settings": {"grid": options.grid, "metrics": [asdict(metric) for metric in COMPARED]},
        "versions": versions(),
        "models": {model.name: model.to_json() for model in evaluated},
        "reference": reference,
        "figures": _figures_json(scores, len(videos)),
        "differences_from_reference": {
            model: {
                metric.name: _json(from_reference(metric, scores, model, videos))
                for metric in COMPARED
            }
            for model in (*names, RAW)
        },
        "differences_from_base": {
            model: {
                metric.name: _json(from_base(metric, scores, names[0], model, videos))
                for metric in COMPARED
            }
            for model in names[1:]
        },
        "training_overlap": {overlap.model: overlap.to_json() for overlap in overlaps},
    }
    print(f"\nresults: {write_results(out, 'robustness', results)}")


def read_conditions(
    options: HeldOutOptions, reference: str, models: Sequence[EvaluatedModel]
) -> dict[str, HeldOutSet]:
    """Read the same clips under each condition, in the same order; the reference comes first.

    Raises PretrackError if fewer than two sources have clips of the same scenes, if those differ in
    frames or points, or if tracks are not exact.
    """
    snapshot = open_snapshot(options.build, options.snapshot)
    keys = _keys_by_source(snapshot, options, reference)
    sides = [options.grid * model.patch for model in models]
    conditions = {}
    for source, chosen in keys.items():
        where = f"key in {(*chosen, '')!r}"
        settings = _settings(snapshot, options, where)
        held_out = read_held_out(snapshot, settings, TrackFilterSettings(), sides, len(chosen))
        by_key = {clip.info.key: clip for clip in held_out.clips}
        conditions[source] = replace(held_out, clips=tuple(by_key[key] for key in chosen))
    first = conditions[reference]
    for source, held_out in conditions.items():
        if not held_out.exact:
            raise PretrackError(
                f"the tracks of source '{source}' in {snapshot.out} are not exact, so its points "
                "are others under every condition: build with 'tracks.tracker: truth'"
            )
        for one, other in zip(first.clips, held_out.clips, strict=True):
            if _frames_and_points(one) != _frames_and_points(other):
                raise PretrackError(
                    f"the sources '{reference}' and '{source}' in {snapshot.out} differ in their "
                    f"frames or points, such as {one.info.key} and {other.info.key}: build both "
                    "with the same settings but for light and occluders"
                )
    return conditions


def _frames_and_points(clip: HeldOutClip) -> tuple[tuple[int, ...], int]:
    """Return the shown frames, as the source numbers them, and the number of points."""
    numbers = tuple(clip.info.frame_numbers[frame] for frame in clip.frame_numbers)
    return numbers, clip.positions.shape[1]


def _settings(snapshot: Snapshot, options: HeldOutOptions, where: str) -> DataSettings:
    values = evaluation_settings(
        snapshot, split=options.split, where=where, frames=options.frames, step=options.step
    )
    return check_settings(DataSettings, values, "options")


def _keys_by_source(
    snapshot: Snapshot, options: HeldOutOptions, reference: str
) -> dict[str, list[str]]:
    """Choose clips that all sources have, evenly spaced: source → keys, the reference first.

    Clips are of the same part of a scene if they agree in their sequence and in the number at the
    end of their keys. Sources without any scene of the reference are left out.
    """
    fitting = choose_clips([snapshot], _settings(snapshot, options, options.where))
    chosen = set(fitting.table["key"].to_pylist())
    table = read_table(snapshot.folder / "clips.parquet", ["key", "source", "sequence"])
    parts: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for row in table.to_pylist():
        if row["key"] in chosen:
            part = row["sequence"], row["key"].rpartition("-")[2]
            parts[row["source"]][part] = row["key"]
    if reference not in parts:
        raise SettingsError(
            f"{snapshot.out} has no clips of a source '{reference}' that fit: give '--reference' "
            f"one of {', '.join(sorted(parts))}"
        )
    own = parts.pop(reference)
    others = {source: keys for source, keys in sorted(parts.items()) if own.keys() & keys.keys()}
    if not others:
        raise PretrackError(
            f"no other source in {snapshot.out} has the scenes of '{reference}': build the same "
            "scenes under several conditions, as configs/robustness.yaml does"
        )
    shared = sorted(own.keys() & set.intersection(*(set(keys) for keys in others.values())))
    if not shared:
        raise PretrackError(
            f"the sources {', '.join([reference, *others])} in {snapshot.out} have no scene in "
            "common: leave some out with '--where'"
        )
    count = min(options.clips, len(shared))
    indices = np.unique(np.linspace(0, len(shared) - 1, count).round().astype(int)).tolist()
    sources = {reference: own, **others}
    return {source: [keys[shared[i]] for i in indices] for source, keys in sources.items()}


def points_in_all(conditions: Mapping[str, HeldOutSet]) -> NDArray[np.bool_]:
    """Tell which points anchor and frame show under all conditions: [clips, T, N].

    Points on occluders are in none: they are others than those behind them.
    """
    shown = []
    for clips in zip(*(held_out.clips for held_out in conditions.values()), strict=True):
        first, frames = clips[0], range(len(clips[0].frame_numbers))
        valid = [np.stack([clip.valid(t) for t in frames]) for clip in clips]
        same = [
            ((clip.positions - first.positions).abs() < _SAME_PLACE).all(2).all(0).numpy()
            for clip in clips
        ]
        shown.append(np.logical_and.reduce(valid) & np.logical_and.reduce(same))
    return np.stack(shown)


def score_conditions(
    conditions: Mapping[str, HeldOutSet], models: Sequence[EvaluatedModel], grid: int
) -> ByCondition:
    """Score each model and control under each condition, on the points that all of them show."""
    reference, common = next(iter(conditions.values())), points_in_all(conditions)
    return {
        name: {
            model: _on_common_points(found, held_out, common, reference)
            for model, found in score(held_out, models, grid, orders=False).items()
        }
        for name, held_out in conditions.items()
    }


def _on_common_points(
    scores: Scores, held_out: HeldOutSet, common: NDArray[np.bool_], reference: HeldOutSet
) -> Scores:
    """Keep the common points of each pair, with what the reference knows about them."""
    pairs = []
    for pair in scores.pairs:
        chosen = common[pair.clip, pair.gap]
        kept = chosen[held_out.clips[pair.clip].valid(pair.gap)]
        labels = reference.clips[pair.clip].labels
        pairs.append(
            FramePair(
                clip=pair.clip,
                gap=pair.gap,
                angle=pair.angle,
                moving=pair.moving[kept],
                measures={name: values[kept] for name, values in pair.measures.items()},
                viewing_angles=labels.angles[pair.gap, chosen],
                on_object=None if labels.objects is None else labels.objects[chosen],
            )
        )
    return replace(scores, pairs=pairs)


def from_reference(
    metric: Metric, scores: ByCondition, model: str, videos: Sequence[str]
) -> dict[str, Difference]:
    """Compare a model under each other condition with itself under the first, corrected (Holm)."""
    first, *others = scores
    values = {name: _values(metric, scores[name][model], len(videos)) for name in scores}
    compared = {
        name: difference(values[first], values[name], metric.better, videos) for name in others
    }
    return corrected(compared, dict.fromkeys(others, metric.better))


def from_base(
    metric: Metric, scores: ByCondition, base: str, model: str, videos: Sequence[str]
) -> dict[str, Difference]:
    """Compare a model with the base under each condition, corrected for their number (Holm)."""
    compared = {
        name: difference(
            _values(metric, found[base], len(videos)),
            _values(metric, found[model], len(videos)),
            metric.better,
            videos,
        )
        for name, found in scores.items()
    }
    return corrected(compared, dict.fromkeys(scores, metric.better))


def _report(
    conditions: Mapping[str, HeldOutSet], scores: ByCondition, models: Sequence[str], points: int
) -> str:
    """Return the text that the command prints. The first model is the base."""
    reference, held_out = next(iter(conditions.items()))
    videos, (base, *others) = held_out.videos, models
    lines = [
        f"{pluralise(len(conditions), 'condition')}: {', '.join(conditions)}",
        f"Under each: {held_out}",
        f"{pluralise(points, 'point')} to find that all conditions show",
    ]
    for metric in _known(scores, len(videos)):
        rows = [[metric.title, *scores[reference]]]
        for name, found in scores.items():
            means = [finite_mean(_values(metric, one, len(videos))) for one in found.values()]
            rows.append([name, *map(format_number, means)])
        lines += ["", *aligned_lines(rows)]
        for model in (*models, RAW):
            compared = from_reference(metric, scores, model, videos)
            title = f"{model}, less itself under '{reference}'"
            lines += ["", table_of_differences(title, compared, ["clips", "videos"], digits=4)]
        for model in others:
            compared = from_base(metric, scores, base, model, videos)
            title = f"{model} less {base}"
            lines += ["", table_of_differences(title, compared, ["clips", "videos"], digits=4)]
    return "\n".join(lines)


def _known(scores: ByCondition, clips: int) -> Iterator[Metric]:
    """Yield the shown metrics that have any value: chance has one wherever a model could."""
    chance = next(iter(scores.values()))[CHANCE]
    for metric in SHOWN:
        if np.isfinite(_values(metric, chance, clips)).any():
            yield metric


def _data_json(
    options: HeldOutOptions, conditions: Mapping[str, HeldOutSet], common: NDArray[np.bool_]
) -> dict[str, Any]:
    """Describe the data, and the points of each clip that all conditions show, per frame."""
    return {
        "where": options.where,
        "conditions": {
            name: held_out.to_json() | {"keys": [clip.info.key for clip in held_out.clips]}
            for name, held_out in conditions.items()
        },
        "points": common[:, 1:].sum(axis=2),
    }


def _figures_json(scores: ByCondition, clips: int) -> dict[str, Any]:
    """Collect all metrics under each condition: the mean over clips, and values per clip."""
    figures: dict[str, Any] = {}
    for name, found in scores.items():
        figures[name] = {}
        for model, of_model in found.items():
            values = {metric.name: _values(metric, of_model, clips) for metric in COMPARED}
            figures[name][model] = {
                metric: {"mean": finite_mean(by_clip), "by_clip": by_clip}
                for metric, by_clip in values.items()
            } | {"effective_rank": of_model.effective_rank}
    return figures


def _values(metric: Metric, scores: Scores, clips: int) -> NDArray[np.float64]:
    """Compute a metric of each clip: [clips], NaN for none."""
    pairs: list[list[FramePair]] = [[] for _ in range(clips)]
    for pair in scores.pairs:
        pairs[pair.clip].append(pair)
    return np.array([aggregate(metric, own) for own in pairs])


def _json(compared: Mapping[str, Difference]) -> dict[str, Any]:
    return {name: one.to_json() for name, one in compared.items()}
