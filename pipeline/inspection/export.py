"""Writes one clip in a form that other programs read: a video with its tracks drawn, a Rerun recording, or TAP-Vid's arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.snapshot import Snapshot
from manifests.wording import pluralise
from pipeline.inspection.contact_sheet import clips_named, read_clip
from pipeline.inspection.draw import colour, write_video
from shards import jpeg
from shards.clip import VISIBLE_THRESHOLD, Camera
from shards.errors import PretrackError
from shards.files import atomic_write, open_atomic
from shards.stored_clip import StoredClip

FORMS = {"mp4": ".mp4", "rerun": ".rrd", "tapvid": ".npz"}
"""What a clip can be written as, with the suffix of the file."""

_NAMED = 3


def export_clip(
    snapshot: Snapshot, wanted: str, form: str, file: Path | None = None, anchor: int | None = None
) -> Path:
    """Writes the one clip that is called `wanted`, or has it in its key, and returns the file: by default `KEY.mp4`, `.rrd` or
    `.npz` in the current folder.

    With an `anchor` (an index) only that grid's tracks are written; otherwise all of them, and in a video the first one's. Raises
    PretrackError for a form that is not known, for a name that fits no clip or several, and for an anchor that the clip lacks.
    """
    if form not in FORMS:
        raise PretrackError(
            f"a clip cannot be exported to '{form}': choose one of {', '.join(FORMS)}"
        )
    clip = read_clip(snapshot, find_clip(snapshot, wanted))
    count = len(clip.tracks.anchors)
    if anchor is not None and not 0 <= anchor < count:
        raise PretrackError(
            f"the clip {clip.info.key} has {pluralise(count, 'anchor')}, and there is no number {anchor} (they are counted from 0)"
        )
    path = file or Path(f"{clip.info.key}{FORMS[form]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "mp4":
        write_video(path, clip, anchor or 0)
    elif form == "rerun":
        write_rerun(path, clip, anchor)
    else:
        write_tapvid(path, clip, anchor)
    return path


def find_clip(snapshot: Snapshot, wanted: str) -> dict[str, Any]:
    """The clips table's row of the clip called `wanted`, or else of the only one that has it in its key. Raises PretrackError."""
    named = clips_named(snapshot, [wanted])
    exact = named.filter(pc.equal(named["key"], wanted))
    rows = exact if exact.num_rows else named
    if rows.num_rows > 1:
        shown = ", ".join(rows["key"].slice(0, _NAMED).to_pylist())
        raise PretrackError(
            f"'{wanted}' is in the keys of {rows.num_rows:,} clips ({shown} …): write out the one you mean"
        )
    row: dict[str, Any] = rows.to_pylist()[0]
    return row


def write_tapvid(path: Path, clip: StoredClip, anchor: int | None = None) -> None:
    """The clip as arrays in an .npz file, laid out as one video of TAP-Vid-DAVIS (Doersch et al., NeurIPS 2022) with its queries.

    video:        uint8   [T, H, W, 3]  RGB
    points:       float32 [N, T, 2]     (x, y) as parts of the width and height, border to border: x pixels = part * W - 0.5
                                        where the centre of the first pixel is 0
    occluded:     bool    [N, T]        visibility below 1/2
    query_points: float32 [N, 3]        (t, y, x): the anchor frame and the point in it, as TAP-Vid's evaluation asks for it:
                                        in pixels of `video`, the *corner* of the first one at (0, 0)

    N counts the points of all anchors, one grid after the other, or those of one.
    """
    tracks, size = clip.tracks, np.array([clip.info.width, clip.info.height], np.float32)
    chosen = _chosen(clip, anchor)
    n = tracks.positions.shape[2]
    corners = (
        tracks.positions[chosen] + 0.5
    )  # from centres at integers to TAP-Vid's: the frame covers 0 to W
    starts = np.stack(
        [corners[row, tracks.anchors[index]] for row, index in enumerate(chosen)]
    ).reshape(-1, 2)
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
    """The clip as a Rerun recording (.rrd): its frames, its tracks by anchor, and its cameras where they are known.

    The timeline `frame` counts stored frames, `time` is in seconds where the clip has any. Under `camera/anchor_0` … `visible` and
    `hidden` hold a frame's points in its pixels, the corner of the first one at (0, 0), as Rerun has it; keypoint ids are places in
    the grid. Raises PretrackError if rerun-sdk is not installed.
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
    """Logs everything of a clip."""
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
        for index in _chosen(clip, anchor):
            visible = tracks.visibility[index, t] >= VISIBLE_THRESHOLD
            for name, these, radius in (("visible", visible, 1.5), ("hidden", ~visible, 0.75)):
                points = rr.Points2D(
                    tracks.positions[index, t, these] + 0.5,
                    colors=colours[these],
                    radii=radius,
                    keypoint_ids=np.flatnonzero(these),
                    class_ids=index,
                )
                recording.log(f"camera/anchor_{index}/{name}", points)


def _log_camera(recording: Any, rr: Any, camera: Camera, width: int, height: int) -> None:
    """Where the camera stands in the world in this frame, and its lens."""
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


def _chosen(clip: StoredClip, anchor: int | None) -> list[int]:
    """The anchors to write, as indices."""
    return list(range(len(clip.tracks.anchors))) if anchor is None else [anchor]


def _by_point(values: NDArray[Any]) -> NDArray[Any]:
    """[A, T, N, ...] → [A * N, T, ...]."""
    by_anchor = np.swapaxes(values, 1, 2)
    return np.ascontiguousarray(by_anchor.reshape(-1, *by_anchor.shape[2:]))
