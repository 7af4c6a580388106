"""Write one clip for other programs: a video, a recording, a COLMAP model, arrays of TAP-Vid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.snapshot import Snapshot
from manifests.wording import pluralise
from pipeline.inspection.atomic_export import atomic_export
from pipeline.inspection.colmap import write_colmap
from pipeline.inspection.contact_sheet import clips_named, read_clip
from pipeline.inspection.draw import colour, write_video
from pipeline.inspection.tapvid3d import write_tapvid3d
from shards import jpeg
from shards.clip import VISIBLE_THRESHOLD, Camera
from shards.errors import PretrackError
from shards.files import atomic_write, open_atomic
from shards.stored_clip import StoredClip

FORMS = {
    "mp4": ".mp4",
    "rerun": ".rrd",
    "tapvid": ".npz",
    "tapvid3d": ".3d.npz",
    "colmap": "",
}
"""The suffix of the file per form that a clip can be written in; "" for a folder."""

_EXAMPLE_KEYS = 3


@dataclass(frozen=True)
class Exported:
    """The file or folder that an export wrote.

    notes: what it has and what was left out, in words, for the forms that leave something out
    """

    file: Path
    notes: tuple[str, ...] = ()


def export_clip(
    snapshot: Snapshot, name: str, form: str, file: Path | None = None, anchor: int | None = None
) -> Exported:
    """Write the one clip whose key is, or contains, `name`.

    By default the file is `KEY` and the suffix of the form, in the current folder. With an `anchor`
    (an index), only the tracks of that grid are written. Without one, a video shows the first grid,
    and the other forms have all grids. Raises PretrackError for an unknown form, for a name that
    fits no clip or several, for an anchor that the clip does not have, for a folder that exists,
    for a target that another process is exporting to, and for a clip that lacks what the form
    needs.
    """
    if form not in FORMS:
        raise PretrackError(
            f"a clip cannot be exported to '{form}': choose one of {', '.join(FORMS)}"
        )
    row = find_clip(snapshot, name)
    clip = read_clip(snapshot, row, maps=form == "tapvid3d")
    count = len(clip.tracks.anchors)
    if anchor is not None and not 0 <= anchor < count:
        raise PretrackError(
            f"the clip {clip.info.key} has {pluralise(count, 'anchor')}, "
            f"and there is no number {anchor} (they are counted from 0)"
        )
    path = file or Path(f"{clip.info.key}{FORMS[form]}")
    with atomic_export(path) as temporary:
        _check_target(path, form)
        notes = _write(temporary, clip, form, anchor, exact=_has_exact_tracks(snapshot, row))
    return Exported(path, notes)


def find_clip(snapshot: Snapshot, name: str) -> dict[str, Any]:
    """Return the clips table's row of the clip `name`, or of the only one whose key contains it.

    Raises PretrackError if there is no such clip, or if there are several.
    """
    containing = clips_named(snapshot, [name])
    exact = containing.filter(pc.equal(containing["key"], name))
    rows = exact if exact.num_rows else containing
    if rows.num_rows > 1:
        examples = ", ".join(rows["key"].slice(0, _EXAMPLE_KEYS).to_pylist())
        raise PretrackError(
            f"'{name}' is in the keys of {rows.num_rows:,} clips ({examples} …): "
            "write out the one you mean"
        )
    row: dict[str, Any] = rows.to_pylist()[0]
    return row


def _check_target(path: Path, form: str) -> None:
    """Raise PretrackError for a path that this form cannot take the place of."""
    if not FORMS[form] and path.exists():  # files of another export would mix with these
        raise PretrackError(f"{path} exists: remove it, or name another folder with --file")
    if FORMS[form] and path.is_dir():
        raise PretrackError(f"{path} is a folder: name a file in it with --file")


def _write(
    path: Path, clip: StoredClip, form: str, anchor: int | None, exact: bool
) -> tuple[str, ...]:
    """Write a clip to a path that does not exist; return the notes of `Exported`.

    exact: whether its tracks are those of a rendered scene
    """
    chosen = _chosen_anchors(clip, anchor)
    if form == "colmap":
        path.mkdir()
        return write_colmap(path, clip, chosen)
    if form == "tapvid3d":
        return write_tapvid3d(path, clip, chosen, exact=exact)
    if form == "mp4":
        write_video(path, clip, anchor or 0)
    elif form == "rerun":
        write_rerun(path, clip, anchor)
    else:
        write_tapvid(path, clip, anchor)
    return ()


def _has_exact_tracks(snapshot: Snapshot, row: dict[str, Any]) -> bool:
    """Tell whether a clip is of a rendered scene, and was tracked by the tracker `truth`."""
    of_shard = snapshot.shards.filter(pc.equal(snapshot.shards["shard"], row["shard"]))
    trackers = [json.loads(text).get("tracker") for text in of_shard["tracks_settings"].to_pylist()]
    return row["dataset"] == "scenes" and trackers == ["truth"]


def write_tapvid(path: Path, clip: StoredClip, anchor: int | None = None) -> None:
    """Write the clip as arrays in an .npz file, laid out like a video of TAP-Vid-DAVIS.

    The layout (Doersch et al., NeurIPS 2022), with the queries added:

    video:        uint8   [T, H, W, 3]  RGB
    points:       float32 [N, T, 2]     (x, y) as fractions of the width and height, border to
                                        border: x in pixels = fraction * W - 0.5, with the centre of
                                        the first pixel at 0
    occluded:     bool    [N, T]        visibility below 1/2
    query_points: float32 [N, 3]        (t, y, x): the anchor frame and the point in it, as
                                        TAP-Vid's evaluation takes it: in pixels of `video`, with
                                        the *corner* of the first one at (0, 0)

    N counts the points of all anchors, one grid after the other, or those of one.
    """
    tracks, size = clip.tracks, np.array([clip.info.width, clip.info.height], np.float32)
    chosen = _chosen_anchors(clip, anchor)
    n = tracks.positions.shape[2]
    # from centres at integers to TAP-Vid's convention, in which the frame covers 0 to W
    corners = tracks.positions[chosen] + 0.5
    starts = np.stack([corners[row, tracks.anchors[index]] for row, index in enumerate(chosen)])
    starts = starts.reshape(-1, 2)
    frames = np.repeat(tracks.anchors[chosen], n).astype(np.float32)
    arrays = {
        "video": np.stack([jpeg.decode(data) for data in clip.jpegs]),
        "points": _by_point(corners / size),
        "occluded": _by_point(tracks.visibility[chosen] < VISIBLE_THRESHOLD),
        "query_points": np.column_stack([frames, starts[:, ::-1]]),
    }
    with open_atomic(path) as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]


def write_rerun(path: Path, clip: StoredClip, anchor: int | None = None) -> None:
    """Write the clip as a Rerun recording (.rrd): frames, tracks by anchor, and cameras if known.

    The timeline `frame` counts stored frames; `time` is in seconds, if the clip has timestamps.
    Under `camera/anchor_0` … `visible` and `hidden` hold a frame's points in its pixels, with the
    corner of the first one at (0, 0), which is Rerun's convention; keypoint ids are indices in the
    grid. Raises PretrackError if rerun-sdk is not installed.
    """
    try:
        import rerun as rr
    except ImportError:
        raise PretrackError(
            "Rerun recordings need the package rerun-sdk: pip install 'pretrack[rerun]'"
        ) from None
    recording = rr.RecordingStream("pretrack", recording_id=clip.info.key)
    stream = recording.binary_stream()
    _record(recording, rr, clip, anchor)
    atomic_write(path, stream.read() or b"")


def _record(recording: Any, rr: Any, clip: StoredClip, anchor: int | None) -> None:
    """Log a clip's description, frames, cameras and tracks."""
    info, tracks = clip.info, clip.tracks
    recording.log(
        "about",
        rr.TextDocument(f"{info.key}\n\n{info.dataset}, {info.video_id}\n\n{info.terms}"),
        static=True,
    )
    n = tracks.positions.shape[2]
    colours = np.array([colour(number, n) for number in range(n)], np.uint8)
    for t, data in enumerate(clip.jpegs):
        recording.set_time("frame", sequence=t)
        if info.timestamps:
            recording.set_time("time", duration=info.timestamps[t])
        if info.cameras and (camera := info.cameras[t]):
            _log_camera(recording, rr, camera, info.width, info.height)
        recording.log("camera/frame", rr.EncodedImage(contents=data, media_type="image/jpeg"))
        for index in _chosen_anchors(clip, anchor):
            visible = tracks.visibility[index, t] >= VISIBLE_THRESHOLD
            for name, mask, radius in (("visible", visible, 1.5), ("hidden", ~visible, 0.75)):
                points = rr.Points2D(
                    tracks.positions[index, t, mask] + 0.5,
                    colors=colours[mask],
                    radii=radius,
                    keypoint_ids=np.flatnonzero(mask),
                    class_ids=index,
                )
                recording.log(f"camera/anchor_{index}/{name}", points)


def _log_camera(recording: Any, rr: Any, camera: Camera, width: int, height: int) -> None:
    """Log the camera's pose in the world in this frame, and its intrinsics."""
    # the camera looks from the inverse of world-to-camera: rotation Rᵀ, position -Rᵀ t
    matrix = np.array(camera.world_to_camera, np.float64).reshape(3, 4)
    rotation = matrix[:, :3].T
    recording.log("camera", rr.Transform3D(mat3x3=rotation, translation=-rotation @ matrix[:, 3]))
    centre = (camera.cx + 0.5, camera.cy + 0.5)
    recording.log(
        "camera",
        rr.Pinhole(
            focal_length=(camera.fx, camera.fy), principal_point=centre, width=width, height=height
        ),
    )


def _chosen_anchors(clip: StoredClip, anchor: int | None) -> list[int]:
    """Return the indices of the anchors to write: one, or all of them."""
    return list(range(len(clip.tracks.anchors))) if anchor is None else [anchor]


def _by_point(values: NDArray[Any]) -> NDArray[Any]:
    """Reorder [A, T, N, ...] to [A * N, T, ...]."""
    by_anchor = np.swapaxes(values, 1, 2)
    return np.ascontiguousarray(by_anchor.reshape(-1, *by_anchor.shape[2:]))
