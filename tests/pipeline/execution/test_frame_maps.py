"""Depth maps and masks: read as CO3D and rendered scenes write them, stored, and kept."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.rows import DepthFiles, VideoRow
from manifests.settings import check_settings
from manifests.snapshot import Snapshot, open_snapshot
from pipeline.config import BuildSettings, FrameSettings
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.build import build, execute_plan
from pipeline.execution.lock import build_lock
from pipeline.execution.map_decoding import read_maps
from pipeline.execution.repair import repair
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.planning.plan import make_plan
from shards.frame_maps import decode_depths
from shards.reader import iterate_shard
from shards.stored_clip import StoredClip
from tests.helpers.clips import make_clip
from tests.helpers.co3d_files import FRAMES, SEQUENCE, co3d_depth, write_co3d

QUIET = Progress(quiet=True)


def settings_for(root: Path, **changes: Any) -> BuildSettings:
    values = {
        "sources": [{"dataset": "co3d", "root": str(root / "co3d")}],
        "frames": {"clip_frames": 6, "min_frames": 2, "short_side": 32}
        | {"depth": True, "masks": True},
        "tracks": {"tracker": "lucas_kanade", "grid": 4, "anchors": [0]},
        "split": {"eval_fraction": 0.0},
        "out": str(root / "out"),
        **changes,
    }
    return check_settings(BuildSettings, values, "test")


def only_clip(snapshot: Snapshot) -> StoredClip:
    ((shard,),) = [snapshot.shards["shard"].to_pylist()]
    (clip,) = iterate_shard(snapshot.shard_path(shard))
    return clip


@pytest.fixture(scope="module")
def built(two_cores: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sequence; the depth of its frame 13 is missing, and that of 14 too small."""
    root = tmp_path_factory.mktemp("maps")
    write_co3d(root / "co3d")
    depths = root / "co3d/apple" / SEQUENCE / "depths"
    (depths / "frame000003.jpg.geometric.png").unlink()
    cv2.imwrite(str(depths / "frame000004.jpg.geometric.png"), np.ones((8, 8), np.uint16))
    build(settings_for(root), QUIET)
    return root


def test_depth_and_masks_are_stored_as_the_frames_are_and_edges_are_unknown(built: Path) -> None:
    clip = only_clip(open_snapshot(str(built / "out")))
    depth, masks = clip.depth(), clip.masks()
    assert depth is not None
    assert masks is not None
    assert (depth.dtype.name, masks.dtype.name) == ("float32", "uint8")
    assert depth.shape == masks.shape == (FRAMES, 32, 40)  # half of 80 x 64
    # Column 30 of the stored frame takes column 61 of the source's.
    expected = float(co3d_depth(1)[50, 61]) * 3.0
    assert depth[1, 25, 30] == pytest.approx(expected, rel=1e-4)
    assert depth[1, 15, 20] == pytest.approx(3.0, rel=1e-4)
    assert (depth[:, :, :4] == 0).all()  # by the depth mask
    # The box begins in the middle of stored column 15, and ends next to the pixel that 24 takes.
    assert np.flatnonzero(depth[1, 15] == 0).tolist() == [0, 1, 2, 3, 15, 24]
    assert masks[2, 15].tolist() == [0] * 15 + [200] * 10 + [0] * 15


def test_frames_without_usable_depth_are_zero_and_named(built: Path) -> None:
    snapshot = open_snapshot(str(built / "out"))
    depth = only_clip(snapshot).depth()
    assert depth is not None
    assert [bool(frame.any()) for frame in depth] == [True, True, True, False, False, True]
    (row,) = snapshot.failures.to_pylist()
    assert (row["stage"], row["reason"]) == ("decode", "depth unknown")
    folder = f"apple/{SEQUENCE}/depths"
    assert row["detail"] == (
        "the depth of 2 of 6 frames is unknown and stored as 0: frame 13 "
        f"({folder}/frame000003.jpg.geometric.png: the file is missing), frame 14 "
        f"({folder}/frame000004.jpg.geometric.png: it has 8x8 pixels, and its frame 80x64)"
    )


def test_maps_are_plain_members_that_verify_checks(built: Path) -> None:
    snapshot = open_snapshot(str(built / "out"))
    (name,) = snapshot.shards["shard"].to_pylist()
    path = snapshot.shard_path(name)
    assert isinstance(path, Path)
    with tarfile.open(path) as tar:
        names = [member.partition(".")[2] for member in tar.getnames()]
        member = next(member for member in tar if member.name.endswith("000.depth.png"))
        file = tar.extractfile(member)
        assert file
        values = np.asarray(Image.open(file))
    scale = json.loads(only_clip(snapshot).info.to_json())["depth_scale"]
    assert values[15, 20] * scale == pytest.approx(3.0, rel=1e-4)
    assert names[8:] == [
        *(f"{t:03d}.depth.png" for t in range(FRAMES)),
        *(f"{t:03d}.mask.png" for t in range(FRAMES)),
        "scores.zst",
    ]
    assert verify_snapshot(snapshot, QUIET) == []


@pytest.mark.slow
def test_trying_again_never_loses_depth_maps_or_masks(built: Path, tmp_path: Path) -> None:
    """Some depth was missing; when the clip is decoded again, all depth is, and then all masks."""
    root = tmp_path / "root"
    shutil.copytree(built, root)
    folder = root / "co3d" / "apple" / SEQUENCE
    settings, first = settings_for(root), open_snapshot(root / "out")
    planned = make_plan(settings, make_catalog(settings, QUIET), retry_failed=True)
    assert [shard.action for shard in planned.shards] == ["build"]
    for kind in ("depths", "masks"):
        (folder / kind).rename(root / kind)
        with build_lock(root / "out") as lock:
            tried = execute_plan(planned, settings, QUIET, lock).snapshot
        assert only_clip(tried).maps == only_clip(first).maps
        assert tried.failures["detail"].to_pylist() == first.failures["detail"].to_pylist()
        (root / kind).rename(folder / kind)
    # With more depth and all else as before, what is decoded replaces what was stored.
    names = [folder / f"depths/frame{number:06d}.jpg.geometric.png" for number in (2, 3, 4)]
    for name in names[1:]:
        shutil.copy(names[0], name)
    depth = only_clip(build(settings, QUIET, retry_failed=True).snapshot).depth()
    assert depth is not None
    assert [bool(frame.any()) for frame in depth] == [True] * 6


@pytest.mark.slow
def test_retracking_scoring_and_repair_keep_the_maps_byte_for_byte(built: Path) -> None:
    before = only_clip(open_snapshot(str(built / "out")))
    denser = {"tracker": "lucas_kanade", "grid": 5, "anchors": [0]}
    # Without the source, so that nothing can be decoded again.
    (built / "co3d").rename(built / "away")
    retracked = build(settings_for(built, tracks=denser, scores=False), QUIET, stored=True).snapshot
    assert only_clip(retracked).tracks.positions.shape[2] == 25
    assert only_clip(retracked).maps == before.maps
    # The tracker that reads depth maps: its cameras move sideways by 0.1 per frame.
    geometry = {"tracker": "geometry", "grid": 4, "anchors": [0]}
    tracks = only_clip(build(settings_for(built, tracks=geometry), QUIET, stored=True).snapshot)
    assert tracks.maps == before.maps
    assert tracks.tracks.visibility.shape == (1, FRAMES, 16)
    # Column 13.2 of the stored frame is at depth 3 * 2.68, and the focal length is 40 pixels.
    x = tracks.tracks.positions[0, :2, 5, 0]
    assert x[0] - x[1] == pytest.approx(0.1 * 40 / 8.05, abs=0.03)
    scored = build(settings_for(built, tracks=denser), QUIET, stored=True).snapshot
    assert scored.shards["scores"].to_pylist() == [1]
    assert only_clip(scored).maps == before.maps
    assert verify_snapshot(scored, QUIET) == []
    # Damage to a depth map is found, and repaired from the source.
    (built / "away").rename(built / "co3d")
    (row,) = scored.clips.to_pylist()
    path = scored.shard_path(row["shard"])
    assert isinstance(path, Path)
    data = bytearray(path.read_bytes())
    data[row["depth_offsets"][2] + 60] ^= 1
    path.write_bytes(data)
    problems = verify_snapshot(scored, QUIET)
    assert any("checksum of its depth maps and masks" in str(problem) for problem in problems)
    repaired = repair(scored, problems, QUIET).built.snapshot
    assert only_clip(repaired).maps == before.maps


def test_without_the_settings_nothing_changes() -> None:
    content = FrameSettings().of_content()
    assert content.keys().isdisjoint({"depth", "masks"})
    assert FrameSettings(depth=True).of_content() == {**content, "depth": True}


@pytest.fixture(scope="module")
def decoder() -> Iterator[SubprocessDecoder]:
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        yield decoder


def stored(
    root: Path, depth: DepthFiles, decoder: SubprocessDecoder, size: tuple[int, int]
) -> tuple[float | None, NDArray[np.float32], list[str]]:
    """Read depth maps of 8x4 pixels as a clip stores them: (scale, [T, H, W], what is named)."""
    info = replace(
        make_clip(frames=len(depth.files)).info, width=size[0], height=size[1], cameras=None
    )
    video = VideoRow(
        **{name: getattr(info, name) for name in ("source", "dataset", "video_id", "sequence")},
        **{name: getattr(info, name) for name in ("split", "timestamps", "cameras", "terms")},
        root=str(root),
        file="",
        image_files=depth.files,
        frame_numbers=info.frame_numbers,
        width=0,
        height=0,
        cuts=(),
        frames=info.frames,
        identity="",
        scan="",
        depth=depth,
    )
    sizes = dict.fromkeys(range(info.frames), (8, 4))
    scale, maps, unknown = read_maps(info, sizes, video, decoder)
    decoded = decode_depths(maps.depths, size, scale or 0)
    return scale, decoded, [str(error) for error in unknown]


def test_linear_depths_keep_their_values_and_scale(
    decoder: SubprocessDecoder, tmp_path: Path
) -> None:
    values = np.arange(1, 33, dtype=np.uint16).reshape(4, 8) + 40_000
    values[1, 2] = 0
    cv2.imwrite(str(tmp_path / "a.png"), values)
    linear = DepthFiles(encoding="linear", files=("a.png",), scales=(0.001,))
    scale, depth, _ = stored(tmp_path, linear, decoder, (8, 4))
    assert scale == 0.001
    assert np.rint(depth[0] / 0.001).astype(int).tolist() == values.tolist()
    # At half the size, a pixel takes the depth at its centre: rows 1 and 3, columns 1, 3, 5 and 7.
    _, depth, _ = stored(tmp_path, linear, decoder, (4, 2))
    assert np.rint(depth[0] / 0.001).astype(int).tolist() == values[1::2, 1::2].tolist()


def test_depths_that_are_no_numbers_or_too_far_are_unknown(
    decoder: SubprocessDecoder, tmp_path: Path
) -> None:
    depth = np.full((4, 8), 2.0, np.float16)
    depth[0, :4] = [np.nan, np.inf, -1.0, 65.0]  # 32.5 times the median
    cv2.imwrite(str(tmp_path / "a.png"), depth.view(np.uint16))
    cv2.imwrite(str(tmp_path / "zero.png"), np.zeros((4, 8), np.uint16))
    files = DepthFiles(encoding="float16", files=("a.png", "zero.png"), scales=(10.0, 10.0))
    _, decoded, named = stored(tmp_path, files, decoder, (8, 4))
    assert decoded[0, 0, :4].tolist() == [0, 0, 0, 0]
    assert decoded[0, 1:] == pytest.approx(np.full((3, 8), 20.0), rel=1e-3)
    assert not decoded[1].any()
    assert named == [
        "the depth of 1 of 2 frames is unknown and stored as 0: frame 4 (zero.png: no pixel has a "
        "depth)"
    ]
