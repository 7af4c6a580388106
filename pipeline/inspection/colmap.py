"""Write a clip as a COLMAP model: its frames, its cameras, and its tracks as 3D points.

COLMAP's conventions, from its documentation (doc/format.rst, doc/cameras.rst, doc/database.rst):

- The *corner* of the top-left pixel is at (0, 0), so its centre is at (0.5, 0.5): half a pixel is
  added to every position and principal point.
- A pose is world to camera, in OpenCV's axes: a unit quaternion (w, x, y, z), and a translation.
- `PINHOLE` has the parameters fx, fy, cx, cy.
- A point's error is the mean distance, in pixels, of its projections from its observations.
- An observation (IMAGE_ID, POINT2D_IDX) is an index from 0 into the points of that image.

Legend of shapes: A anchors, T frames, N points of an anchor, P points of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.wording import pluralise
from shards import jpeg
from shards.clip import ClipInfo
from shards.clip_cameras import ClipCameras
from shards.epipolar import Poses, read_poses, triangulate
from shards.errors import PretrackError
from shards.stored_clip import StoredClip
from shards.track_scores import INLIER_PX, LEAST_PARALLAX, score_clip, visible_points

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

_PIXEL_CORNER = 0.5
"""COLMAP's coordinates minus pretrack's."""


@dataclass(frozen=True, eq=False)
class _Points:
    """The 3D points of a model.

    xyz:       [P, 3], in the source's world
    colours:   uint8 [P, 3], RGB
    errors:    [P], mean distance in pixels
    seen:      bool [P, T]
    positions: [P, T, 2], where they are seen, in pretrack's pixels
    """

    xyz: Floats
    colours: NDArray[np.uint8]
    errors: Floats
    seen: Mask
    positions: Floats


def write_colmap(folder: Path, clip: StoredClip, anchors: Sequence[int]) -> tuple[str, ...]:
    """Write `images/` and `sparse/0/*.txt` into an empty folder; return what is in it, in words.

    anchors: indices of the anchors whose tracks become points

    A frame is an image of the model if it has a usable camera that fits the clip's tracks. A track
    becomes a point if it is seen in three of these frames, from directions that differ by at least
    1 degree, and stays within 2 pixels (root mean square) of the projections of one 3D point.
    Everything else is left out and counted.

    Raises PretrackError for a clip without usable cameras.
    """
    info = _with_rotations(clip.info)
    poses = read_poses(info.cameras, info.frames)
    if not poses.usable.any():
        raise PretrackError(
            f"the clip {info.key} has no cameras, and a COLMAP model needs them: choose a clip of "
            "a source that has cameras"
        )
    wrong = np.isin(np.arange(info.frames), score_clip(clip.tracks, info).wrong)
    right = poses.without(wrong)
    points, left_out = _triangulated(clip, info, right, anchors)
    frames = np.flatnonzero(right.usable).tolist()
    camera_ids = _camera_ids(info, frames)
    (folder / "images").mkdir()
    for t in frames:
        (folder / "images" / _image_name(t)).write_bytes(clip.jpegs[t])
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    for name, lines in (
        ("cameras", _camera_lines(info, camera_ids)),
        ("images", _image_lines(info, camera_ids, points)),
        ("points3D", _point_lines(points)),
    ):
        text = "".join(f"{line}\n" for line in lines)
        (sparse / f"{name}.txt").write_text(text, encoding="utf-8")
    cameras = pluralise(len(set(camera_ids.values())), "camera")
    counts = f"{pluralise(len(frames), 'image')}, {cameras}, {pluralise(len(points.xyz), 'point')}"
    without = int((~poses.usable).sum())
    frames_left_out = {
        f"{pluralise(without, 'frame')} without a usable camera": without,
        f"{pluralise(int(wrong.sum()), 'frame')} whose poses do not fit the tracks": wrong.sum(),
    }
    reasons = [text for text, count in (frames_left_out | left_out).items() if count]
    return (counts, *([f"left out: {'; '.join(reasons)}"] if reasons else []))


def _with_rotations(info: ClipInfo) -> ClipInfo:
    """Replace each camera's matrix by the rotation that its quaternion stands for.

    Some sources round their matrices. Points and errors must be those of the cameras as written.
    """
    usable = read_poses(info.cameras, info.frames).usable
    cameras = list(info.cameras or ())
    for t, camera in enumerate(cameras):
        if camera and usable[t]:
            matrix = np.reshape(camera.world_to_camera, (3, 4)).copy()
            matrix[:, :3] = _rotation(_quaternion(matrix[:, :3]))
            cameras[t] = replace(camera, world_to_camera=tuple(matrix.ravel().tolist()))
    return replace(info, cameras=tuple(cameras) or None)


def _quaternion(matrix: Floats) -> Floats:
    """Return the unit quaternion (w, x, y, z), w >= 0, of the rotation nearest to a matrix [3, 3].

    It is the eigenvector of the largest eigenvalue of Horn's matrix (Closed-form solution of
    absolute orientation using unit quaternions, 1987), which suits matrices with rounding errors.
    """
    horn = np.empty((4, 4))
    horn[0, 0] = np.trace(matrix)
    horn[1:, 1:] = matrix + matrix.T - np.trace(matrix) * np.eye(3)
    skew = matrix - matrix.T
    horn[0, 1:] = horn[1:, 0] = (skew[2, 1], skew[0, 2], skew[1, 0])
    quaternion: Floats = np.linalg.eigh(horn)[1][:, -1]
    return quaternion if quaternion[0] >= 0 else -quaternion


def _rotation(quaternion: Floats) -> Floats:
    """Return the rotation matrix [3, 3] of a unit quaternion (w, x, y, z)."""
    w, (x, y, z) = quaternion[0], quaternion[1:]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def _triangulated(
    clip: StoredClip, info: ClipInfo, poses: Poses, anchors: Sequence[int]
) -> tuple[_Points, dict[str, int]]:
    """Return the points of the chosen anchors' tracks; count the tracks left out, by reason."""
    chosen, tracks = list(anchors), clip.tracks
    anchor_frames = tracks.anchors[chosen]
    positions = tracks.positions[chosen].astype(np.float64)
    visible = visible_points(tracks)[chosen]
    found = triangulate(poses, anchor_frames, np.moveaxis(positions, -1, 0), visible)
    # A track is counted under the first reason that holds. Comparisons with NaN are false.
    posed = np.broadcast_to(poses.usable[anchor_frames][:, None], found.errors.shape)
    enough = posed & ~np.isnan(found.errors)
    apart = enough & (found.parallax >= LEAST_PARALLAX)
    kept = apart & (found.errors <= INLIER_PX)
    # [A, T, N, ...] to one row per kept point
    seen = (visible & poses.usable[:, None]).swapaxes(1, 2)[kept]
    observed = positions.swapaxes(1, 2)[kept]
    points = _Points(
        xyz=found.points[kept],
        colours=_colours(clip, chosen)[kept],
        errors=_mean_errors(ClipCameras.read(info), found.points[kept], observed, seen),
        seen=seen,
        positions=observed,
    )
    counts = {
        "that start in a frame without one": (~posed).sum(),
        "seen in fewer than 3 frames": (posed & ~enough).sum(),
        f"with a parallax below {LEAST_PARALLAX:g} degree": (enough & ~apart).sum(),
        f"more than {INLIER_PX:g} px from any fixed point, as they move or are wrong": (
            apart & ~kept
        ).sum(),
    }
    return points, {
        f"{pluralise(int(count), 'track')} {reason}": int(count) for reason, count in counts.items()
    }


def _mean_errors(cameras: ClipCameras, xyz: Floats, positions: Floats, seen: Mask) -> Floats:
    """Return the mean distance of points' projections from where they are seen: [P]."""
    frames = np.arange(seen.shape[1])
    in_camera = np.einsum("tij,pj->pti", cameras.rotations, xyz) + cameras.shifts
    distances = np.linalg.norm(cameras.project(frames, in_camera) - positions, axis=-1)
    return np.where(seen, distances, 0).sum(axis=1) / seen.sum(axis=1)


def _colours(clip: StoredClip, anchors: Sequence[int]) -> NDArray[np.uint8]:
    """Return the colours at the queries of the chosen anchors: uint8 [A, N, 3]."""
    colours = []
    for anchor in anchors:
        t = clip.tracks.anchors[anchor]
        frame = jpeg.decode(clip.jpegs[t])
        x, y = np.rint(clip.tracks.positions[anchor, t]).astype(np.int64).T
        colours.append(frame[y.clip(0, frame.shape[0] - 1), x.clip(0, frame.shape[1] - 1)])
    return np.stack(colours)


def _camera_ids(info: ClipInfo, frames: Sequence[int]) -> dict[int, int]:
    """Number the cameras of frames from 1; frames with the same intrinsics share one."""
    ids: dict[tuple[float, ...], int] = {}
    return {t: ids.setdefault(_parameters(info, t), len(ids) + 1) for t in frames}


def _parameters(info: ClipInfo, t: int) -> tuple[float, ...]:
    """Return the parameters of `PINHOLE` of a frame."""
    camera = info.cameras[t] if info.cameras else None
    assert camera
    return (camera.fx, camera.fy, camera.cx + _PIXEL_CORNER, camera.cy + _PIXEL_CORNER)


def _image_name(t: int) -> str:
    return f"{t:03d}.jpg"


def _camera_lines(info: ClipInfo, camera_ids: dict[int, int]) -> Iterator[str]:
    yield "# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"
    first_frames = {number: t for t, number in reversed(camera_ids.items())}
    for number, t in sorted(first_frames.items()):
        yield f"{number} PINHOLE {info.width} {info.height} {_numbers(_parameters(info, t))}"


def _image_lines(info: ClipInfo, camera_ids: dict[int, int], points: _Points) -> Iterator[str]:
    """Yield two lines per image: its pose, and its points. Image 1 is frame 0."""
    yield "# IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"
    yield "# POINTS2D[] as (X, Y, POINT3D_ID)"
    for t, camera_id in camera_ids.items():
        camera = info.cameras[t] if info.cameras else None
        assert camera
        matrix = np.reshape(camera.world_to_camera, (3, 4))
        pose = _numbers((*_quaternion(matrix[:, :3]), *matrix[:, 3]))
        yield f"{t + 1} {pose} {camera_id} {_image_name(t)}"
        yield " ".join(
            f"{_numbers(points.positions[p, t] + _PIXEL_CORNER)} {p + 1}"
            for p in np.flatnonzero(points.seen[:, t])
        )


def _point_lines(points: _Points) -> Iterator[str]:
    yield "# POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[] as (IMAGE_ID, POINT2D_IDX)"
    index_in_image = np.cumsum(points.seen, axis=0) - 1
    for p, seen in enumerate(points.seen):
        track = " ".join(f"{t + 1} {index_in_image[p, t]}" for t in np.flatnonzero(seen))
        red, green, blue = points.colours[p]
        place = f"{_numbers(points.xyz[p])} {red} {green} {blue}"
        yield f"{p + 1} {place} {_numbers((points.errors[p],))} {track}"


def _numbers(values: Sequence[float] | Floats) -> str:
    """Write numbers so that they are read back exactly."""
    return " ".join(repr(float(value)) for value in values)
