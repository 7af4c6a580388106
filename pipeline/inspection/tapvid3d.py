"""Write a clip as arrays in the layout of a video of TAPVid-3D (Koppula et al., NeurIPS 2024).

Legend of shapes: A anchors, T frames, N points of an anchor, P points of all chosen anchors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.wording import pluralise
from shards.clip_cameras import ClipCameras
from shards.depth_sampling import inverse_depth_at
from shards.errors import PretrackError
from shards.files import open_atomic
from shards.geometry import FrameTransform, grid_points, inside
from shards.stored_clip import StoredClip
from shards.track_scores import visible_points

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_PIXEL_CORNER = 0.5
"""TAPVid-3D's coordinates minus pretrack's: there the corner of the first pixel is at (0, 0)."""
_SAME_INTRINSICS_PX = 0.5
"""Frames share intrinsics if no pixel is projected farther than this by those of another frame."""
_STORED_STEP_PX = 1 / 32
"""Positions in shards are rounded to multiples of this."""


def write_tapvid3d(
    path: Path, clip: StoredClip, anchors: Sequence[int], *, exact: bool
) -> tuple[str, ...]:
    """Write the clip as arrays in an .npz file; return what is in it, in words.

    images_jpeg_bytes: bytes   [T]        the frames as stored
    queries_xyt:       float32 [P, 3]     (x, y, t): the point in its anchor frame, in pixels, with
                                          the *corner* of the first one at (0, 0)
    tracks_XYZ:        float32 [T, P, 3]  in the axes of each frame's camera, in the world's unit
    visibility:        bool    [T, P]
    fx_fy_cx_cy:       float64 [4]        of all frames, in the pixels of the queries
    extrinsics_w2c:    float64 [T, 4, 4]

    exact: the tracks are the exact ones of a rendered scene. Then its geometry gives all places,
           those of hidden points too. Otherwise the stored depth gives those of visible points;
           all others are NaN, and visibility is false where the depth at a visible point is
           unknown. Tracks without a depth at their query are left out and counted.

    Raises PretrackError for a clip with a frame without a usable camera, with intrinsics that
    change, or without depth.
    """
    info, tracks = clip.info, clip.tracks
    cameras = _checked_cameras(clip)
    chosen = list(anchors)
    frames_of_points = np.repeat(tracks.anchors[chosen], tracks.positions.shape[2])
    # [A, T, N, ...] to [T, P, ...]
    positions = _by_frame(tracks.positions[chosen].astype(np.float64))
    visible = _by_frame(visible_points(tracks)[chosen])
    if exact:
        places, known = _exact_places(clip, chosen), np.ones(visible.shape, np.bool_)
    else:
        places, known = _lifted(clip, cameras, positions, visible)
    columns = np.arange(len(frames_of_points))
    kept = known[frames_of_points, columns]
    hidden = int((visible & ~known)[:, kept].sum())
    queries = positions[frames_of_points, columns] + _PIXEL_CORNER
    extrinsics = np.tile(np.eye(4), (info.frames, 1, 1))
    extrinsics[:, :3, :3], extrinsics[:, :3, 3] = cameras.rotations, cameras.shifts
    arrays = {
        "images_jpeg_bytes": np.array(clip.jpegs),
        "queries_xyt": np.column_stack([queries, frames_of_points])[kept].astype(np.float32),
        "tracks_XYZ": places[:, kept].astype(np.float32),
        "visibility": (visible & known)[:, kept],
        "fx_fy_cx_cy": np.concatenate([cameras.focals[0], cameras.centres[0] + _PIXEL_CORNER]),
        "extrinsics_w2c": extrinsics,
    }
    with open_atomic(path) as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]
    counts = f"{pluralise(info.frames, 'frame')}, {pluralise(int(kept.sum()), 'track')}"
    lost = int((~kept).sum())
    return (
        counts,
        *([f"left out: {pluralise(lost, 'track')} without a depth at its query"] if lost else []),
        *(
            [f"written as not visible: {pluralise(hidden, 'point')} without a depth"]
            if hidden
            else []
        ),
    )


def _checked_cameras(clip: StoredClip) -> ClipCameras:
    """Return the cameras of a clip. Raises PretrackError as `write_tapvid3d`."""
    info = clip.info
    cameras = ClipCameras.read(info)
    if missing := int((~cameras.usable).sum()):
        raise PretrackError(
            f"the clip {info.key} has {pluralise(missing, 'frame')} without a usable camera, and "
            "tracks of TAPVid-3D are in the axes of each frame's camera"
        )
    # How far the corners of the frame are projected from each other, at most.
    half = np.array([info.width, info.height])
    stretch = np.abs(cameras.focals / cameras.focals[0] - 1) * half
    shift = np.abs(cameras.centres - cameras.centres[0])
    if (stretch + shift).max() > _SAME_INTRINSICS_PX:
        raise PretrackError(
            f"the intrinsics of the clip {info.key} change from frame to frame, and a video of "
            "TAPVid-3D has one camera"
        )
    return cameras


def _lifted(
    clip: StoredClip, cameras: ClipCameras, positions: Floats, visible: Mask
) -> tuple[Floats, Mask]:
    """Return the places [T, P, 3] of points by the stored depth, NaN where they are unknown.

    Also returns where they are known [T, P]: at visible points whose neighbours in the depth map
    are on one surface. Raises PretrackError for a clip without depth.
    """
    info, depth = clip.info, clip.depth()
    if depth is None:
        raise PretrackError(
            f"the clip {info.key} has no depth maps, which TAPVid-3D's tracks need: use a source "
            "that has them, built with frames.depth: true"
        )
    with np.errstate(divide="ignore"):
        inverse = np.where(depth > 0, 1 / depth.astype(np.float64), np.nan)
    known = visible & inside(positions, info.width, info.height)
    frames = np.nonzero(known)[0]
    nearness, smooth = inverse_depth_at(inverse, frames, positions[known])
    known[known] = smooth
    places = np.full((*known.shape, 3), np.nan)
    rays = cameras.rays(np.nonzero(known)[0], positions[known])
    places[known] = rays / nearness[smooth, None]
    return places, known


def _exact_places(clip: StoredClip, anchors: Sequence[int]) -> Floats:
    """Return the places [T, P, 3] of points of a rendered scene, from its geometry."""
    from pipeline.scenes.scene import make_scene
    from pipeline.scenes.scene_id import SceneId
    from pipeline.scenes.truth import SurfacePoints, cast, places_in_cameras

    info, tracks = clip.info, clip.tracks
    scene = make_scene(SceneId.parse(info.video_id))
    to_source = FrameTransform.whole(info.width, info.height, info.source_width, info.source_height)
    points = []
    for anchor in anchors:
        t = tracks.anchors[anchor]
        queries = _unrounded(tracks.positions[anchor, t], info.width, info.height)
        points.append(cast(scene, info.frame_numbers[t], to_source.points(queries))[0])
    return places_in_cameras(scene, SurfacePoints.joined(points), info.frame_numbers)


def _unrounded(queries: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """Return the grid [N, 2] that stored queries were rounded from, or these if it is another.

    At the edge of an object, a rounded query may be on another surface than the track.
    """
    grid = grid_points(math.isqrt(len(queries)), width, height)
    same = grid.shape == queries.shape and np.abs(grid - queries).max() < _STORED_STEP_PX
    return grid if same else queries


def _by_frame(values: NDArray[Any]) -> NDArray[Any]:
    """Reorder [A, T, N, ...] to [T, A * N, ...]."""
    by_frame = np.swapaxes(values, 0, 1)
    return np.ascontiguousarray(by_frame.reshape(len(by_frame), -1, *by_frame.shape[3:]))
