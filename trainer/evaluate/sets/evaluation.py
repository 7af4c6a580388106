"""Evaluate models on sets of views: `pretrack evaluate views`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from manifests.wording import pluralise
from trainer.evaluate.evaluated_model import EvaluatedModel, load_evaluated_models
from trainer.evaluate.heldout.clips import HeldOutClip
from trainer.evaluate.heldout.label_free import HeldOutOptions, read_clips
from trainer.evaluate.intervals import Difference, corrected, difference
from trainer.evaluate.overlap import check_overlap
from trainer.evaluate.results import finite_mean, versions, write_results
from trainer.evaluate.sets.encoding import Encoding, cameras_of, encode_clip, encodings_of
from trainer.evaluate.sets.location import (
    ViewError,
    angle_bins,
    by_clip,
    location_error,
    still_error,
    view_errors,
)
from trainer.evaluate.tables import aligned_lines, format_number, table_of_differences

STATIC = "never moves"


def evaluate_views(
    options: HeldOutOptions,
    models: Sequence[str],
    *,
    device: str | None,
    out: Path,
    allow_overlap: bool = False,
) -> None:
    """Print the tables and write OUT/views.json. Raises PretrackError.

    models: the values of `--model`; the first is the base of the comparison
    """
    evaluated = load_evaluated_models(models, device)
    held_out = read_clips(options, evaluated)
    overlaps = check_overlap(
        {model.name: model.trained_on for model in evaluated},
        held_out.footage,
        allow=allow_overlap,
    )
    # Whether there are cameras does not depend on the size of what is shown.
    posed = [clip for clip in held_out.clips if cameras_of(clip, options.grid)]
    clips = posed or list(held_out.clips)
    rows = score_views(evaluated, clips, options.grid, bool(posed))
    lines = [
        str(held_out),
        _about_cameras(len(held_out.clips), len(posed)),
        "",
        *report(evaluated, clips, rows),
        *(overlap.sentence for overlap in overlaps),
    ]
    print("\n".join(lines))
    results = {
        "data": held_out.to_json() | {"clips": [clip.info.key for clip in clips]},
        "settings": {"grid": options.grid, "error": "mean |dx| + |dy|, in parts of the image"},
        "versions": versions(),
        "models": {model.name: model.to_json() for model in evaluated},
        "rows": {title: _row_json(errors, len(clips)) for title, errors in rows.items()},
        "differences": {
            title: d.to_json() for title, d in differences(evaluated, clips, rows).items()
        },
        "training_overlap": {overlap.model: overlap.to_json() for overlap in overlaps},
    }
    print(f"\nresults: {write_results(out, 'views', results)}")


def score_views(
    models: Sequence[EvaluatedModel], clips: Sequence[HeldOutClip], grid: int, posed: bool
) -> dict[str, list[ViewError]]:
    """Measure models in all their encodings, and the answer that never moves, by title.

    The first of several models is what others are compared with: it has one encoding. Controls of
    its own would only weaken the tests of the others.
    """
    rows = {
        row_title(model, encoding.title): view_errors(clips, _measure(model, encoding, clips, grid))
        for model in models
        for encoding in encodings_of(model, posed)[: None if has_controls(model, models) else 1]
    }
    return rows | {STATIC: view_errors(clips, still_error)}


def has_controls(model: EvaluatedModel, models: Sequence[EvaluatedModel]) -> bool:
    """Whether a model is compared with controls of its own: a multi-view model but the base."""
    return model.multiview is not None and (model is not models[0] or len(models) == 1)


def row_title(model: EvaluatedModel, encoding: str) -> str:
    """Return the title of a row: the model's name, and how it is encoded."""
    return f"{model.name}, {encoding}" if encoding else model.name


def _measure(
    model: EvaluatedModel, encoding: Encoding, clips: Sequence[HeldOutClip], grid: int
) -> Callable[[int, int, Tensor, Tensor], float]:
    """Return a function that measures a view; it encodes each clip once."""
    encoded: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def measure(i: int, t: int, queries: Tensor, targets: Tensor) -> float:
        if i not in encoded:
            encoded.clear()
            encoded[i] = encode_clip(model, encoding, clips[i], grid * model.patch)
        return location_error(*encoded[i][t - 1], queries, targets)

    return measure


def differences(
    models: Sequence[EvaluatedModel],
    clips: Sequence[HeldOutClip],
    rows: Mapping[str, Sequence[ViewError]],
) -> dict[str, Difference]:
    """Compare models with the first, and each multi-view model with its own controls.

    p-values are corrected for all of them.
    """
    base, *others = (model.name for model in models)
    compared = [(name, base) for name in others]
    compared += [
        (model.name, row)
        for model in models
        if has_controls(model, models)
        for row in rows
        if row == STATIC or row.startswith(f"{model.name}, ")
    ]
    videos = [clip.info.sequence for clip in clips]
    found = {
        f"{name} less {other}": difference(
            by_clip(rows[other], len(clips)), by_clip(rows[name], len(clips)), "lower", videos
        )
        for name, other in compared
    }
    return corrected(found, dict.fromkeys(found, "lower"))


def report(
    models: Sequence[EvaluatedModel],
    clips: Sequence[HeldOutClip],
    rows: Mapping[str, Sequence[ViewError]],
) -> Iterator[str]:
    """Yield the lines of the tables."""
    bins = [
        (label, low, high)
        for label, low, high in angle_bins()
        if any(low <= error.angle < high for error in rows[STATIC])
    ]
    table = [["location error", "all", *(f"{label}°" for label, _, _ in bins)]]
    for title, errors in rows.items():
        means = [by_clip(errors, len(clips))]
        means += [by_clip(errors, len(clips), low, high) for _, low, high in bins]
        table.append([title, *(format_number(finite_mean(values)) for values in means)])
    counts = [len(rows[STATIC])]
    counts += [sum(low <= error.angle < high for error in rows[STATIC]) for _, low, high in bins]
    table.append(["views", *map(str, counts)])
    yield from aligned_lines(table)
    compared = differences(models, clips, rows)
    if compared:
        yield ""
        yield table_of_differences("location error", compared, ["clips", "videos"], digits=4)
    yield "An error is |Δx| + |Δy| in parts of the image, averaged over a clip's views, then clips."
    yield "Columns are degrees between the optical axes of a view and of the anchor frame."
    for model in models:
        if has_controls(model, models):
            yield conclusion(model.name, models[0].name, compared)


def conclusion(name: str, base: str, compared: Mapping[str, Difference]) -> str:
    """Say whether a multi-view model finds points by what it sees, and not by rays alone."""
    wanted = [f"{name} less {STATIC}"] + ([f"{name} less {base}"] if name != base else [])
    controls = ("blank images", "wrong cameras", "each view alone")
    wanted += [
        title for control in controls if (title := f"{name} less {name}, {control}") in compared
    ]
    missing = [
        f"{title.removeprefix(f'{name} less ')}: {compared[title].verdict}"
        for title in wanted
        if compared[title].verdict != "better"
    ]
    if missing:
        return f"{name} is not shown to be better than each control ({'; '.join(missing)})"
    others = ", ".join(title.removeprefix(f"{name} less ") for title in wanted)
    return f"{name} is better than: {others}"


def _about_cameras(clips: int, posed: int) -> str:
    """Say how many clips have cameras, and which are used."""
    if posed == clips:
        return "All of them have cameras."
    if not posed:
        return "None of them has cameras, so no model is given any."
    return f"{pluralise(clips - posed, 'clip')} without cameras left out: {posed} are used."


def _row_json(errors: Sequence[ViewError], clips: int) -> dict[str, Any]:
    """Return a row of the table for the results, with every view."""
    values = by_clip(errors, clips)
    return {
        "mean": finite_mean(values),
        "by_clip": values,
        "by_angle": {
            label: finite_mean(by_clip(errors, clips, low, high))
            for label, low, high in angle_bins()
        },
        "views": [asdict(error) for error in errors],
    }
