"""A whole build: every stored frame shows its own number, or something says why it is missing."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from manifests.settings import check_settings
from manifests.snapshot import Snapshot
from pipeline.config import BuildSettings
from pipeline.decode.ledger import Ledger
from pipeline.execution.build import build
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from shards import jpeg
from shards.reader import iterate_shard
from tests.helpers.barcode import Recipe, read_number, write_numbered

QUIET = Progress(quiet=True)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_cores")]
FILES = {
    "plain.mp4": Recipe(frames=50, b_frames=2),
    "joined.ts": Recipe("ts", b_frames=2, parts=(40, 30)),
    "b_frames.avi": Recipe("avi", frames=50, b_frames=2),
    "repeats.mkv": Recipe("mkv", frames=50, times=tuple(n // 2 for n in range(50))),
    "variable.webm": Recipe("webm", "libvpx-vp9", times=tuple(n * n // 9 + n for n in range(60))),
    "long_groups.mkv": Recipe("mkv", "libx265", frames=90, b_frames=3, gop=60, open_gop=True),
}


def settings_for(root: Path, out: Path, **frames: object) -> BuildSettings:
    values = {
        "sources": [{"dataset": "video_folder", "name": "numbered", "root": str(root)}],
        "frames": {"clip_frames": 8, "min_frames": 4, "short_side": 128, **frames},
        "tracks": {"tracker": "lucas_kanade", "grid": 2, "anchors": [0]},
        # Some files span shards, so that a task begins in the middle of one.
        "shards": {"clips_per_shard": 5},
        "split": {"eval_fraction": 0.0},
        "max_failed_videos": 1.0,
        "out": str(out),
    }
    return check_settings(BuildSettings, values, "test")


def numbers_of(snapshot: Snapshot) -> dict[str, dict[int, int]]:
    """By video, then by stored frame number: the number that the picture shows."""
    shown: dict[str, dict[int, int]] = defaultdict(dict)
    for shard in snapshot.shards["shard"].to_pylist():
        for clip in iterate_shard(snapshot.shard_path(shard)):
            for number, data in zip(clip.info.frame_numbers, clip.jpegs, strict=True):
                shown[clip.info.video_id][number] = read_number(jpeg.decode(data))
    return shown


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("numbered")
    for name, recipe in FILES.items():
        write_numbered(root / name, recipe)
    return root


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_frames_are_stored_under_their_own_numbers(
    videos: Path, tmp_path: Path, decoder: str
) -> None:
    snapshot = build(settings_for(videos, tmp_path, decoder=decoder), QUIET).snapshot
    assert verify_snapshot(snapshot, QUIET) == []
    shown = numbers_of(snapshot)
    wrong = {
        (video, stored, number)
        for video, frames in shown.items()
        for stored, number in frames.items()
        if stored != number
    }
    assert not wrong
    rows = snapshot.failures.to_pylist()
    if decoder == "pyav":  # all files are read whole, but for the rest of a shot
        for name, recipe in FILES.items():
            assert len(shown[name]) >= recipe.count - 8, name
    else:  # decord cannot number the frames of some of them, and each clip says so
        named = {row["video_id"] for row in rows if row["stage"] == "decode"}
        assert named | shown.keys() == set(FILES)
        assert all("set frames.decoder to pyav" in r["detail"] for r in rows if r["clip"])


def test_a_file_replaced_in_place_fails_and_nothing_of_it_is_stored(tmp_path: Path) -> None:
    """Same size, same time: only the ledger can tell. `catalog/` remembers the old file's scan."""
    path = tmp_path / "videos" / "a.mp4"
    path.parent.mkdir()
    for gop in (12, 9):  # two encodings of the same frames, padded to one size
        write_numbered(path, Recipe(frames=50, b_frames=2, gop=gop))
        path.write_bytes(path.read_bytes().ljust(300_000, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
        settings = settings_for(path.parent, tmp_path / "out", jpeg_quality=70 + gop)
        snapshot = build(settings, QUIET).snapshot
    assert numbers_of(snapshot) == {}
    failures = snapshot.failures.to_pylist()
    assert [row["reason"] for row in failures] == ["video changed"] * 6
    assert all("the file has changed" in row["detail"] for row in failures)


def test_a_lost_ledger_is_made_again(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    shutil.copy2(videos / "plain.mp4", root / "a.mp4")
    out = tmp_path / "out"
    build(settings_for(root, out), QUIET)
    (ledger,) = (out / "catalog" / "ledgers").rglob("*.zst")
    assert len(Ledger.unpack(ledger.read_bytes())) == 50
    shutil.rmtree(out / "catalog" / "ledgers")
    snapshot = build(settings_for(root, out, jpeg_quality=80), QUIET).snapshot
    frames = numbers_of(snapshot)["a.mp4"]
    assert frames == {number: number for number in range(48)}
    assert ledger.exists()
    # Another file of the same length in its place is noticed even without the ledger.
    shutil.rmtree(out / "catalog" / "ledgers")
    times = (root / "a.mp4").stat()
    write_numbered(root / "a.mp4", Recipe(frames=50, b_frames=2, gop=9))
    (root / "a.mp4").write_bytes((root / "a.mp4").read_bytes().ljust(times.st_size, b"\0"))
    os.utime(root / "a.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))
    if (root / "a.mp4").stat().st_size == times.st_size:
        snapshot = build(settings_for(root, out, jpeg_quality=81), QUIET).snapshot
        assert set(snapshot.failures["reason"].to_pylist()) == {"video changed"}


def test_times_of_stored_clips_begin_at_the_first_frame_of_the_file(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    root.mkdir()
    write_numbered(root / "late.mkv", Recipe("mkv", frames=16, times=tuple(range(100, 116))))
    snapshot = build(settings_for(root, tmp_path / "out"), QUIET).snapshot
    (shard,) = snapshot.shards["shard"].to_pylist()
    first = next(iterate_shard(snapshot.shard_path(shard)))
    assert np.allclose(first.info.timestamps or (), np.arange(8) / 25, atol=1e-3)
