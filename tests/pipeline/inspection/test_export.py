"""Exported clips, read back with the readers of other programs, equal the clips in the shard."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from benchmarks.tap_vid import select_queries, tap_metrics
from benchmarks.tap_vid_davis import read_tap_davis
from manifests.snapshot import Snapshot
from pipeline.inspection.contact_sheet import read_clip
from pipeline.inspection.export import export_clip
from shards import jpeg
from shards.errors import PretrackError
from shards.files import TEMPORARY
from shards.geometry import FrameTransform
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip
from tests.helpers.published import publish_clips

KEYS = ("made-apple-00000000-000000", "made-apple-00000000-000001", "made-pear-00000000-000000")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return publish_clips(
        tmp_path_factory.mktemp("export"), [make_clip(key, seed) for seed, key in enumerate(KEYS)]
    )


@pytest.fixture(scope="module")
def clip(snapshot: Snapshot) -> StoredClip:
    return read_clip(snapshot, snapshot.clips.slice(2, 1).to_pylist()[0])


def test_tapvid_arrays_say_what_the_shard_says(
    snapshot: Snapshot, clip: StoredClip, tmp_path: Path
) -> None:
    with np.load(
        export_clip(snapshot, "pear", "tapvid", tmp_path / "pear.npz").file, allow_pickle=False
    ) as arrays:
        video, points, occluded, asked = (
            arrays[name] for name in ("video", "points", "occluded", "query_points")
        )
    assert [(a.dtype.name, a.shape) for a in (video, points, occluded, asked)] == [
        ("uint8", (6, 64, 96, 3)),
        ("float32", (18, 6, 2)),
        ("bool", (18, 6)),
        ("float32", (18, 3)),
    ]
    assert all(
        (frame == jpeg.decode(data)).all() for frame, data in zip(video, clip.jpegs, strict=True)
    )
    # Point 4 of the second anchor, frame 3, is row 9 + 4.
    np.testing.assert_allclose(
        points[13] * (96, 64) - 0.5, clip.tracks.positions[1, :, 4], atol=1e-4
    )
    assert (occluded[13] == (clip.tracks.visibility[1, :, 4] < 128)).all()
    t, y, x = asked[13]
    assert t == clip.tracks.anchors[1] == 3
    np.testing.assert_allclose((x - 0.5, y - 0.5), clip.tracks.positions[1, 3, 4], atol=1e-5)


def test_tapvid_arrays_fit_the_reader_of_tapvid_davis_and_its_metrics(
    snapshot: Snapshot, clip: StoredClip, tmp_path: Path
) -> None:
    with np.load(
        export_clip(snapshot, "pear", "tapvid", tmp_path / "pear.npz", anchor=0).file
    ) as arrays:
        davis = {name: arrays[name] for name in ("video", "points", "occluded")}
    (tmp_path / "davis.pkl").write_bytes(pickle.dumps({"pear": davis}))
    (read,) = read_tap_davis(tmp_path / "davis.pkl")
    np.testing.assert_allclose(read.positions, clip.tracks.positions[0].swapaxes(0, 1), atol=1e-4)
    assert (read.visible == (clip.tracks.visibility[0].T >= 128)).all()
    tracks, frames = select_queries(read.visible, "first")
    true = read.resized()
    ours = FrameTransform.whole(96, 64, 256, 256).points(clip.tracks.positions[0].swapaxes(0, 1))
    metrics = tap_metrics(
        true=true.positions[tracks],
        true_visible=true.visible[tracks],
        predicted=ours[tracks],
        predicted_visible=true.visible[tracks],
        query_frames=frames,
        mode="first",
    )
    assert (metrics.average_jaccard, metrics.delta_avg, metrics.occlusion_accuracy) == (1, 1, 1)


def test_a_video_has_every_frame_and_its_name_by_default(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = export_clip(snapshot, KEYS[0], "mp4").file
    assert path == Path(f"{KEYS[0]}.mp4")
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_a_rerun_recording_holds_frames_points_and_cameras(
    snapshot: Snapshot, clip: StoredClip, tmp_path: Path
) -> None:
    chunk = pytest.importorskip(
        "rerun.chunk",
        reason="needs a rerun-sdk that can read recordings: pip install 'pretrack[rerun]'",
    )
    path = export_clip(snapshot, "pear", "rerun", tmp_path / "pear.rrd").file
    stored: dict[str, dict[str, list[Any]]] = {}
    for part in chunk.RrdReader(str(path)).stream():
        batch = part.to_record_batch()
        columns = stored.setdefault(part.entity_path, {})
        for name in (
            name for name in batch.schema.names if ":" in name
        ):  # the others are timelines and ids
            columns.setdefault(name, []).extend(batch.column(name).to_pylist())
    assert [bytes(frame[0]) for frame in stored["/camera/frame"]["EncodedImage:blob"]] == list(
        clip.jpegs
    )
    for anchor, name, chosen in (
        (0, "visible", clip.tracks.visibility >= 128),
        (1, "hidden", clip.tracks.visibility < 128),
    ):
        points = stored[f"/camera/anchor_{anchor}/{name}"]
        for t in range(6):
            kept = chosen[anchor, t]
            # Rerun counts from the corner of the first pixel.
            np.testing.assert_allclose(
                points["Points2D:positions"][t], clip.tracks.positions[anchor, t, kept] + 0.5
            )
            assert points["Points2D:keypoint_ids"][t] == np.flatnonzero(kept).tolist()
    assert len([camera for camera in stored["/camera"]["Pinhole:resolution"] if camera]) == 3, (
        "every second frame has a camera"
    )


@pytest.mark.parametrize(
    ("wanted", "form", "anchor", "says"),
    [
        ("plum", "mp4", None, "no clip of snapshot 000001 has 'plum' in its key"),
        ("apple", "mp4", None, "'apple' is in the keys of 2 clips"),
        ("pear", "mp4", 2, "has 2 anchors, and there is no number 2"),
        (
            "pear",
            "gif",
            None,
            "cannot be exported to 'gif': choose one of mp4, rerun, tapvid, tapvid3d, colmap",
        ),
    ],
)
def test_what_cannot_be_exported_is_said(
    snapshot: Snapshot, tmp_path: Path, wanted: str, form: str, anchor: int | None, says: str
) -> None:
    with pytest.raises(PretrackError, match=says):
        export_clip(snapshot, wanted, form, tmp_path / "file", anchor)
    assert not list(tmp_path.iterdir())


def test_a_file_does_not_take_the_place_of_a_folder(snapshot: Snapshot, tmp_path: Path) -> None:
    with pytest.raises(PretrackError, match=r"is a folder: name a file in it with --file$"):
        export_clip(snapshot, "pear", "tapvid", tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_may_have_the_names_of_an_export_in_progress(
    snapshot: Snapshot, tmp_path: Path
) -> None:
    for name in ("lock", "export"):
        export_clip(snapshot, "pear", "tapvid", tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "export"}
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_without_rerun_one_sentence_says_what_to_install(
    snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(PretrackError, match=r"pip install 'pretrack\[rerun\]'"):
        export_clip(snapshot, "pear", "rerun", tmp_path / "pear.rrd")


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_that_looks_whole_or_that_stays(
    snapshot: Snapshot, tmp_path: Path
) -> None:
    targets = {"colmap": "model", "mp4": "pear.mp4", "tapvid": "pear.npz"}
    # Each export is kept waiting in the moment before it gives a file or folder its name.
    program = f"""
import os, threading, time
from pathlib import Path
from manifests.snapshot import open_snapshot
from pipeline.inspection.export import export_clip
snapshot, written = open_snapshot(Path({str(snapshot.out)!r})), threading.Barrier(4)
def replace(*_):
    written.wait()
    time.sleep(600)
os.replace = replace
for form, name in {targets!r}.items():
    arguments = (snapshot, "pear", form, Path({str(tmp_path)!r}) / name)
    threading.Thread(target=export_clip, args=arguments, daemon=True).start()
written.wait(120)
print("written", flush=True)
time.sleep(600)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "written\n"
            for form, name in targets.items():
                with pytest.raises(PretrackError, match=rf"^another export is writing .*{name}: "):
                    export_clip(snapshot, "pear", form, tmp_path / name)
        finally:
            process.kill()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{TEMPORARY}{name}" for name in targets.values()
    }
    for form, name in targets.items():
        export_clip(snapshot, "pear", form, tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {*targets.values()}
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"images", "sparse"}
