"""Read depth and surface normals from frozen features by a linear probe, on clips with depth maps.

Much cheaper than the DPT probes of NAVI: a ridge regression per fold of sequences. What it finds is
in the features and not in the probe. Two controls are probed in the same way: histograms of
gradients of raw pixels, and the position in the picture alone, since floors are below.

Where a multi-view model is among them, normals in the axes of a clip's anchor frame are probed too:
only features that know how views lie to each other can tell these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.rows import members_of
from manifests.tables import read_table
from manifests.wording import pluralise
from shards.errors import PretrackError
from shards.frame_maps import decode_depths
from shards.reader import read_frame_maps
from trainer.data.clip_reader import named_clip
from trainer.evaluate.evaluated_model import EvaluatedModel, load_evaluated_models
from trainer.evaluate.heldout.clips import HeldOutClip, HeldOutSet
from trainer.evaluate.heldout.label_free import HeldOutOptions, read_clips
from trainer.evaluate.heldout.linear_probe import FOLDS, MIN_GROUPS, STRENGTHS, cross_validated
from trainer.evaluate.heldout.scoring import RAW, raw_features, unit_features
from trainer.evaluate.heldout.surfaces import sample_surfaces
from trainer.evaluate.intervals import Better, Difference, corrected, difference
from trainer.evaluate.overlap import check_overlap
from trainer.evaluate.results import finite_mean, versions, write_results
from trainer.evaluate.sets.evaluation import has_controls, row_title
from trainer.evaluate.sets.normals import encodings_together, features_together, in_anchor_axes
from trainer.evaluate.tables import aligned_lines, format_number, table_of_differences

Floats = NDArray[np.float64]

_COLUMNS = ["key", "shard", "json_offset", "json_size", "tracks_offset", "tracks_size"]
_COLUMNS += ["anchor_sizes", "frame_offsets", "frame_sizes", "checksum", "depth_offsets"]
_COLUMNS += ["depth_sizes", "mask_offsets", "mask_sizes", "maps_checksum"]

POSITION = "position alone"
NEAR_RATIO = 1.25
NORMAL_DEGREES = 30.0


@dataclass(frozen=True)
class ProbeMetric:
    """A metric of the probe, over the patches of a frame; then the mean over frames and clips."""

    name: str
    title: str
    better: Better


METRICS = (
    ProbeMetric("depth_error", "scale-invariant error of log depth", "lower"),
    ProbeMetric("depth_near", f"depth within a factor of {NEAR_RATIO}", "higher"),
    ProbeMetric("normal_error", "mean angle to the surface normal, degrees", "lower"),
    ProbeMetric("normal_near", f"normals within {NORMAL_DEGREES:.0f} degrees", "higher"),
)

IN_ANCHOR_AXES = (
    ProbeMetric("anchor_normal_error", "the angle in the anchor frame's axes", "lower"),
    ProbeMetric("anchor_normal_near", "normals within 30 degrees in these axes", "higher"),
)
"""Metrics of normals in the axes of the anchor frame's camera."""

Values = dict[str, Floats]
"""A metric's name → its value for each clip, NaN for none."""


@dataclass(frozen=True, eq=False)
class Surfaces:
    """What the depth maps of C clips with T frames say at g x g patches.

    depths:  [C, T, g, g], log depth less its mean over the frame: the scale is unknown
    normals: [C, T, g, g, 3], in the camera's axes

    anchor_normals: [C, T, g, g, 3], in the axes of the anchor frame's camera; None if no model
                    sees several views

    NaN where unknown.
    """

    depths: Floats
    normals: Floats
    anchor_normals: Floats | None = None

    @property
    def metrics(self) -> tuple[ProbeMetric, ...]:
        """The metrics that can be computed."""
        return METRICS if self.anchor_normals is None else (*METRICS, *IN_ANCHOR_AXES)


def evaluate_probe(
    options: HeldOutOptions,
    models: Sequence[str],
    *,
    device: str | None,
    out: Path,
    allow_overlap: bool = False,
) -> None:
    """Print the tables and write OUT/probe.json. Raises PretrackError.

    models:        the values of `--model`; the first is the base of the comparison
    allow_overlap: evaluate models on clips that they were trained on, too
    """
    evaluated = load_evaluated_models(models, device)
    held_out, surfaces = with_depth(read_clips(options, evaluated), options.grid)
    overlaps = check_overlap(
        {model.name: model.trained_on for model in evaluated},
        held_out.footage,
        allow=allow_overlap,
    )
    if any(model.multiview for model in evaluated):
        turned = in_anchor_axes(held_out.clips, surfaces.normals)
        surfaces = replace(surfaces, anchor_normals=turned)
    values = probe(held_out, surfaces, evaluated, options.grid)
    base, *others = [row for row in values if row not in (RAW, POSITION)]
    compared = {
        name: differences(values[base], values[name], held_out, surfaces.metrics) for name in others
    }
    print("\n".join(_report(held_out, values, base, compared, surfaces.metrics)))
    for overlap in overlaps:
        print(overlap.sentence)
    results = {
        "data": held_out.to_json() | {"sequences": held_out.videos},
        "settings": {
            "grid": options.grid,
            "folds": FOLDS,
            "strengths": STRENGTHS,
            "features": "patch tokens of the last block after the final norm, of unit length",
            "metrics": [asdict(metric) for metric in surfaces.metrics],
        },
        "versions": versions(),
        "models": {
            model.name: model.to_json() | {"shown_at": options.grid * model.patch}
            for model in evaluated
        },
        "figures": {
            name: {
                metric: {"mean": finite_mean(by_clip), "by_clip": by_clip}
                for metric, by_clip in of_model.items()
            }
            for name, of_model in values.items()
        },
        "differences": {
            name: {metric: d.to_json() for metric, d in by_metric.items()}
            for name, by_metric in compared.items()
        },
        "training_overlap": {overlap.model: overlap.to_json() for overlap in overlaps},
    }
    print(f"\nresults: {write_results(out, 'probe', results)}")


def with_depth(held_out: HeldOutSet, grid: int) -> tuple[HeldOutSet, Surfaces]:
    """Keep the clips with depth maps, and sample these at the centres of patches.

    Raises PretrackError if there are too few sequences.
    """
    table = read_table(held_out.snapshot.folder / "clips.parquet", _COLUMNS)
    keys = pa.array([clip.info.key for clip in held_out.clips])
    by_key = {row["key"]: row for row in table.filter(pc.is_in(table["key"], keys)).to_pylist()}
    chosen = [clip for clip in held_out.clips if by_key[clip.info.key]["depth_sizes"]]
    sequences = len({clip.info.sequence for clip in chosen})
    if sequences < MIN_GROUPS:
        raise PretrackError(
            f"the probe needs clips with depth maps of at least {MIN_GROUPS} sequences, and the "
            f"{pluralise(len(held_out.clips), 'clip')} in {held_out.snapshot.out} have them of "
            f"{sequences}: build with 'frames.depth: true' from a source that has depth"
        )
    sampled = [_read_surfaces(held_out, clip, by_key[clip.info.key], grid) for clip in chosen]
    depths, normals = (np.stack(parts) for parts in zip(*sampled, strict=True))
    with np.errstate(invalid="ignore"):
        known = np.isfinite(depths)
        counts = np.maximum(known.sum(axis=(2, 3), keepdims=True), 1)
        depths -= np.where(known, depths, 0).sum(axis=(2, 3), keepdims=True) / counts
    return replace(held_out, clips=tuple(chosen)), Surfaces(depths, normals)


def _read_surfaces(
    held_out: HeldOutSet, clip: HeldOutClip, row: dict[str, Any], grid: int
) -> tuple[Floats, Floats]:
    """Return log depth [T, g, g] and normals [T, g, g, 3] of a clip's shown frames."""
    shard = held_out.snapshot.shard_path(row["shard"])
    with named_clip(clip.info.key, str(shard)):
        maps = read_frame_maps(shard, members_of(row), clip.info)
        images = [maps.depths[number] for number in clip.frame_numbers]
        size = (clip.info.width, clip.info.height)
        depths = decode_depths(images, size, clip.info.depth_scale or 1.0)
    cameras = clip.info.cameras
    frames = [
        sample_surfaces(depth, cameras[number] if cameras else None, grid)
        for depth, number in zip(depths, clip.frame_numbers, strict=True)
    ]
    log_depths, normals = zip(*frames, strict=True)
    return np.stack(log_depths), np.stack(normals)


def probe(
    held_out: HeldOutSet, surfaces: Surfaces, models: Sequence[EvaluatedModel], grid: int
) -> dict[str, Values]:
    """Probe each model, by its name; then raw pixels and the position alone.

    Multi-view models but the base have rows with clips encoded together, too.
    """
    videos = held_out.videos
    values = {}
    for model in models:
        features = unit_features(held_out, model, grid).numpy()
        values[model.name] = probe_features(features, surfaces, videos)
        for encoding in encodings_together(model) if has_controls(model, models) else ():
            together = features_together(held_out.clips, model, encoding, grid).numpy()
            row = row_title(model, encoding.title)
            values[row] = probe_features(together, surfaces, videos)
    values[RAW] = probe_features(raw_features(held_out, grid).numpy(), surfaces, videos)
    values[POSITION] = probe_features(_positions(surfaces.depths.shape), surfaces, videos)
    return values


def probe_features(features: NDArray[Any], surfaces: Surfaces, videos: Sequence[str]) -> Values:
    """Compute the metrics of features [C, T, g, g, D] for each clip.

    videos: the sequence of each clip; regressions never see the one that they predict
    """
    clips, frames, grid = surfaces.depths.shape[:3]
    rows = list(features.reshape(clips, -1, features.shape[-1]))
    depths = cross_validated(rows, list(surfaces.depths.reshape(clips, -1, 1)), videos)
    by_frame = (clips, frames, grid * grid)
    predicted, true = np.stack(depths).reshape(by_frame), surfaces.depths.reshape(by_frame)
    off = predicted - true
    # A frame's scale is unknown, so it is the one that suits the prediction best.
    off = off - _mean_of_known(off)[..., None]

    def angles_to(true: Floats) -> Floats:
        """Return the degrees between normals that are predicted and true ones."""
        normals = cross_validated(rows, list(true.reshape(clips, -1, 3)), videos)
        return _degrees(np.stack(normals).reshape(*by_frame, 3), true.reshape(*by_frame, 3))

    angles = angles_to(surfaces.normals)
    per_frame = {
        "depth_error": np.sqrt(_mean_of_known(off**2)),
        "depth_near": _mean_of_known(_below(np.abs(off), np.log(NEAR_RATIO))),
        "normal_error": _mean_of_known(angles),
        "normal_near": _mean_of_known(_below(angles, NORMAL_DEGREES)),
    }
    if surfaces.anchor_normals is not None:
        angles = angles_to(surfaces.anchor_normals)
        per_frame["anchor_normal_error"] = _mean_of_known(angles)
        per_frame["anchor_normal_near"] = _mean_of_known(_below(angles, NORMAL_DEGREES))
    return {name: _mean_of_known(values) for name, values in per_frame.items()}


def _mean_of_known(values: Floats) -> Floats:
    """Average over the last axis without NaN; NaN if nothing is known."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1))


def _below(values: Floats, limit: float) -> Floats:
    return np.where(np.isnan(values), np.nan, values < limit)


def _degrees(predicted: Floats, true: Floats) -> Floats:
    """Return the angles between predictions of any length and unit normals [..., 3]."""
    lengths = np.maximum(np.linalg.norm(predicted, axis=-1), 1e-12)
    cosines = (predicted * true).sum(axis=-1) / lengths
    return np.asarray(np.degrees(np.arccos(np.clip(cosines, -1, 1))))


def _positions(shape: tuple[int, ...]) -> Floats:
    """Return polynomials of x and y up to degree 3 as features: [C, T, g, g, 9]."""
    grid = shape[-1]
    y, x = np.meshgrid(np.linspace(-1, 1, grid), np.linspace(-1, 1, grid), indexing="ij")
    powers = [x**i * y**j for i in range(4) for j in range(4 - i) if i + j]
    return np.broadcast_to(np.stack(powers, axis=-1), (*shape, len(powers)))


def differences(
    base: Values, model: Values, held_out: HeldOutSet, metrics: Sequence[ProbeMetric]
) -> dict[str, Difference]:
    """Compare a model with the base in all metrics, tested over videos."""
    compared = {
        metric.name: difference(
            base[metric.name], model[metric.name], metric.better, held_out.videos
        )
        for metric in metrics
    }
    return corrected(compared, {metric.name: metric.better for metric in metrics})


def _report(
    held_out: HeldOutSet,
    values: dict[str, Values],
    base: str,
    compared: dict[str, dict[str, Difference]],
    metrics: Sequence[ProbeMetric],
) -> list[str]:
    """Return the lines that the command prints."""
    rows = [["", *values]]
    for metric in metrics:
        means = [finite_mean(of_model[metric.name]) for of_model in values.values()]
        rows.append([metric.title, *(format_number(mean, 3) for mean in means)])
    lines = [str(held_out), "", *aligned_lines(rows)]
    for name, by_metric in compared.items():
        by_title = {metric.title: by_metric[metric.name] for metric in metrics}
        table = table_of_differences(f"{name} less {base}", by_title, ["clips", "videos"], digits=4)
        lines += ["", table]
    lines += [
        "",
        "Linear probes on frozen features; no sequence is predicted by a probe that saw it. "
        f"Only what exceeds '{POSITION}' and '{RAW}' is the features' own.",
    ]
    return lines
