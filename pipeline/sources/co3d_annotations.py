"""Read CO3D's annotations: frames, cameras and times, and the quality of viewpoints."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.sources.cameras import viewpoint_camera
from pipeline.sources.listing import path_inside
from shards.clip import Camera

FRAMES_FILE = "frame_annotations.jgz"
SEQUENCES_FILE = "sequence_annotations.jgz"
EXPLODED = 1e5
"""Structure from motion failed if the absolute components of a translation add up to more than this
(other loaders use the same number)."""


@dataclass(frozen=True, slots=True)
class FrameAnnotation:
    """A frame as frame_annotations.jgz describes it.

    number:    the frame number of the annotations, which may differ from that in the file name
    path:      of the image, relative to the root
    timestamp: in seconds, or None
    depth, depth_mask, mask: files relative to the root, "" for none; depth_scale: of the depth map
    exploded:  whether the length of the translation shows that the reconstruction failed
    """

    number: int
    path: str
    timestamp: float | None
    camera: Camera | None
    exploded: bool
    depth: str
    depth_scale: float
    depth_mask: str
    mask: str


def frames_by_sequence(rows: Iterator[Any]) -> dict[str, list[FrameAnnotation]]:
    """Group the rows of frame_annotations.jgz by sequence."""
    sequences: dict[str, list[FrameAnnotation]] = {}
    for row in rows:
        image, viewpoint = row["image"], row.get("viewpoint")
        depth, mask = (_mapping(row.get(name)) for name in ("depth", "mask"))
        frame = FrameAnnotation(
            number=int(row["frame_number"]),
            path=image["path"],
            timestamp=row.get("frame_timestamp"),
            camera=_camera(viewpoint, image.get("size")),
            exploded=_exploded(viewpoint),
            depth=path_inside(depth.get("path")),
            depth_scale=_scale(depth.get("scale_adjustment", 1.0)),
            depth_mask=path_inside(depth.get("mask_path")),
            mask=path_inside(mask.get("path")),
        )
        sequences.setdefault(row["sequence_name"], []).append(frame)
    return sequences


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _scale(value: Any) -> float:
    """Return a scale of depths; NaN, with which no depth is known, for what is no number."""
    return float(value) if isinstance(value, int | float) else math.nan


def _camera(viewpoint: Any, size: Any) -> Camera | None:
    """Return the camera of an annotation, None if it has none. See `viewpoint_camera`."""
    if not viewpoint or not size:
        return None
    height, width = size[:2]
    return viewpoint_camera(viewpoint, width, height)


def _exploded(viewpoint: Any) -> bool:
    translation = viewpoint.get("T") if viewpoint else None
    return translation is not None and sum(map(abs, translation)) > EXPLODED


def in_order(frames: list[FrameAnnotation]) -> list[FrameAnnotation]:
    """Sort by frame number. If two rows have the same image or number, the first counts."""
    by_path: dict[str, FrameAnnotation] = {}
    by_number: dict[int, FrameAnnotation] = {}
    for frame in frames:
        if by_path.setdefault(frame.path, frame) is frame:
            by_number.setdefault(frame.number, frame)
    return [by_number[number] for number in sorted(by_number)]


def increasing_times(times: list[float | None]) -> tuple[float, ...] | None:
    """Return the times if all are finite numbers and they increase, otherwise None."""
    finite = [float(time) for time in times if time is not None and math.isfinite(time)]
    increasing = all(earlier < later for earlier, later in itertools.pairwise(finite))
    return tuple(finite) if len(finite) == len(times) and increasing else None


def quality_scores(rows: Iterator[Any]) -> dict[str, float]:
    """Map each sequence to its viewpoint_quality_score; absent and null ones are NaN."""
    scores = ((row["sequence_name"], row.get("viewpoint_quality_score")) for row in rows)
    return {name: math.nan if score is None else float(score) for name, score in scores}
