"""Clips of image files: one stored size for frames of several, and one kind of picture.

Clips of video files: those that a GPU refuses are decoded on the CPU.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.fingerprint import canonical_json
from manifests.rows import VideoRow
from manifests.settings import check_settings
from pipeline.config import BuildSettings
from pipeline.decode.messages import EncodedClip
from pipeline.decode.scan import scan
from pipeline.decode.subprocess_decoder import SubprocessDecoder
from pipeline.execution.clip_decoding import decode_clips
from pipeline.execution.decoded_clip import ClipResult
from pipeline.execution.shard_task import ShardTask, shard_task
from pipeline.failures import DecodeError
from pipeline.monitoring.progress import Progress
from pipeline.planning.catalog import make_catalog
from pipeline.planning.ledger_store import write_ledger
from pipeline.planning.plan import PlannedClip, PlannedShard, make_plan
from shards import jpeg
from tests.helpers.barcode import Recipe, read_number, write_numbered

SEQUENCE = "374_41993_84073"


@pytest.fixture(scope="module")
def decoder() -> Iterator[SubprocessDecoder]:
    with SubprocessDecoder(stall_limit_s=60) as decoder:
        yield decoder


def decode(
    source: dict[str, Any], out: Path, decoder: SubprocessDecoder, **frames: Any
) -> list[ClipResult]:
    """Decode the clips that a build of one source would make, without Ray."""
    values = {
        "sources": [source],
        "frames": {"clip_frames": 10, "min_frames": 2, "short_side": 64, **frames},
        "tracks": {"tracker": "lucas_kanade", "grid": 4, "anchors": [0]},
        "split": {"eval_fraction": 0.0},
        "out": str(out),
    }
    settings = check_settings(BuildSettings, values, "test")
    plan = make_plan(settings, make_catalog(settings, Progress(quiet=True)))
    return [
        result
        for shard in plan.shards
        for result in decode_clips(shard_task(shard, plan, settings), decoder)
    ]


def write(folder: Path, sizes: list[tuple[int, int]]) -> None:
    """Write an image of noise per size: 0000.png, …"""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate(sizes):
        noise = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{number:04d}.png")


def folder_source(root: Path) -> dict[str, Any]:
    return {"dataset": "video_folder", "root": str(root)}


def test_each_frame_of_co3d_v1_is_resized_to_the_clip_and_its_camera_with_it(
    decoder: SubprocessDecoder, shared_data: Path, tmp_path: Path
) -> None:
    """The real images of ten frames and nine sizes, with cameras that look through their centres.

    A focal length of 2 in normalised device coordinates is one width of the image in pixels.
    """
    real = shared_data / "co3d_v2" / "plant"
    shutil.copytree(real / SEQUENCE, tmp_path / "co3d" / "plant" / SEQUENCE)
    rows = json.loads(gzip.decompress((real / "frame_annotations.jgz").read_bytes()))
    viewpoint = {
        "R": np.eye(3).tolist(),
        "T": [0.0, 0.0, 5.0],
        "focal_length": [2.0, 2.0],
        "principal_point": [0.0, 0.0],
    }
    posed = json.dumps([{**row, "viewpoint": viewpoint} for row in rows]).encode()
    (tmp_path / "co3d/plant/frame_annotations.jgz").write_bytes(gzip.compress(posed))
    source = {"dataset": "co3d", "root": str(tmp_path / "co3d")}
    (result,) = decode(source, tmp_path / "out", decoder, short_side=256)
    assert result.failures == ()
    assert result.clip is not None
    info = result.clip.info
    # The median of nine sizes is 711x1265, and 1265 * 256 / 711 = 455.5.
    assert (info.frames, info.source_width, info.source_height) == (10, 711, 1265)
    assert (info.width, info.height) == (256, 455)
    assert all(jpeg.decode(data).shape == (455, 256, 3) for data in result.clip.jpegs)
    for camera in info.cameras or ():
        assert camera is not None
        assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((256, 455, 127.5, 227))


def test_a_frame_of_another_size_shows_the_same_picture(
    decoder: SubprocessDecoder, tmp_path: Path
) -> None:
    """The corners of a frame of 102 x 80 lie where those of 100 x 80 do."""
    folder = tmp_path / "in" / "walk"
    folder.mkdir(parents=True)
    for number, width in enumerate((100, 102, 100)):
        picture = np.zeros((80, width, 3), np.uint8)
        picture[:, width // 2 :] = 255
        Image.fromarray(picture).save(folder / f"{number}.png")
    (result,) = decode(folder_source(tmp_path / "in"), tmp_path / "out", decoder, jpeg_quality=100)
    assert result.clip is not None
    assert (result.clip.info.width, result.clip.info.height) == (80, 64)
    frames = [jpeg.decode(data).astype(int) for data in result.clip.jpegs]
    assert np.abs(frames[1] - frames[0]).mean() < 2


@pytest.mark.parametrize(
    ("other", "stored"),
    [
        ((104, 100), True),  # 4 % wider
        ((105, 100), False),  # 5 % wider
        ((200, 200), True),  # larger
        ((99, 101), True),  # 2 % narrower, and portrait beside a square
    ],
)
def test_frames_whose_aspect_ratios_differ_by_5_percent_are_not_one_clip(
    decoder: SubprocessDecoder, tmp_path: Path, other: tuple[int, int], stored: bool
) -> None:
    write(tmp_path / "in" / "walk", [(100, 100)] * 4 + [other])
    (result,) = decode(folder_source(tmp_path / "in"), tmp_path / "out", decoder)
    assert (result.clip is not None) == stored
    if result.clip:
        assert (result.clip.info.width, result.clip.info.height) == (64, 64)
        assert result.failures == ()
    else:
        (failure,) = result.failures
        assert failure.reason == "mixed image sizes"
        assert failure.detail.startswith("its images have 2 different sizes (100x100, 105x100)")


def test_portrait_and_landscape_frames_are_not_one_clip(
    decoder: SubprocessDecoder, tmp_path: Path
) -> None:
    write(tmp_path / "in" / "walk", [(101, 100), (100, 101)] * 2)
    (result,) = decode(folder_source(tmp_path / "in"), tmp_path / "out", decoder)
    assert result.clip is None
    assert [failure.reason for failure in result.failures] == ["mixed image sizes"]


def test_a_grey_image_that_listing_did_not_see_is_left_out_and_named(
    decoder: SubprocessDecoder, tmp_path: Path
) -> None:
    """Listing reads a few headers of a long folder: number 25 is not among them."""
    folder = tmp_path / "in" / "walk"
    write(folder, [(80, 64)] * 60)
    Image.fromarray(np.full((64, 80), 30000, np.uint16)).save(folder / "0025.png")
    results = decode(folder_source(tmp_path / "in"), tmp_path / "out", decoder)
    frames = [number for r in results if r.clip for number in r.clip.info.frame_numbers]
    assert frames == [number for number in range(60) if number != 25]
    (failure,) = [failure for result in results for failure in result.failures]
    assert failure.reason == "other kinds of pictures"
    assert failure.detail == (
        "walk/0025.png: the image is 16-bit grey, and the others of the clip are colour"
    )


def test_what_frames_do_not_hold_of_their_images_is_named(
    decoder: SubprocessDecoder, tmp_path: Path
) -> None:
    """A `video_folder` names it per video when it is listed; other sources list names only."""
    source = {"dataset": "synthetic", "root": str(tmp_path / "in"), "videos": 1, "frames": 10}
    (result,) = decode(source, tmp_path / "out", decoder)
    assert result.failures == ()
    for file in sorted((tmp_path / "in").rglob("*.png"))[:3]:
        Image.open(file).convert("RGBA").save(file)
    (result,) = decode(source, tmp_path / "out", decoder)
    assert result.clip
    (failure,) = result.failures
    assert failure.reason == "transparent images"
    assert failure.detail == (
        "3 of its 10 images have an alpha channel: they are composed over mid grey"
    )


def test_further_pages_of_images_are_named(decoder: SubprocessDecoder, tmp_path: Path) -> None:
    folder = tmp_path / "in" / "scan"
    folder.mkdir(parents=True)
    for number in range(10):
        first, second = (Image.new("RGB", (80, 64), (9 * number + 20, 99, c)) for c in (9, 200))
        pages: dict[str, Any] = {"save_all": True, "append_images": [second]}
        first.save(folder / f"{number}.tif", **(pages if number < 4 else {}))
    (result,) = decode(folder_source(tmp_path / "in"), tmp_path / "out", decoder)
    assert result.clip
    assert result.clip.info.frames == 10
    (failure,) = result.failures
    assert failure.reason == "further pages"
    assert failure.detail == "4 of its 10 images have several pages: only the first is used"
    assert jpeg.decode(result.clip.jpegs[0])[..., 2].mean() < 60  # the first page has little blue


def test_an_image_beyond_the_setting_is_left_out_and_raising_it_changes_no_fingerprint(
    decoder: SubprocessDecoder,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "in" / "walk"
    write(folder, [(80, 64)] * 10)
    Image.new("RGB", (800, 640), (9, 99, 9)).save(folder / "0004.png")
    (small,) = decode(folder_source(tmp_path / "in"), tmp_path / "out", decoder, max_megapixels=0.5)
    (large,) = decode(folder_source(tmp_path / "in"), tmp_path / "out", decoder, max_megapixels=0.6)
    assert small.clip
    assert large.clip
    assert (small.clip.info.frames, large.clip.info.frames) == (9, 10)
    assert [failure.reason for failure in small.failures] == ["image too large"]
    assert small.clip.info.frames_settings == large.clip.info.frames_settings


def pixels_of(file: Path) -> NDArray[np.float64]:
    """The picture that an image file shows: 16 bits scaled, transparency over mid grey."""
    values = np.asarray(Image.open(file)).astype(np.float64)
    if values.ndim == 2:
        return np.repeat(values[..., None] / 257, 3, axis=2)
    if values.shape[2] == 4:
        opacity = values[..., 3:] / 255
        return values[..., :3] * opacity + 128 * (1 - opacity)
    return values


@pytest.mark.parametrize(
    ("folder", "pattern"),
    [("tum/rgb", "*"), ("7scenes/seq-01", "*.color.png"), ("grey16", "*"), ("rgba", "*")],
)
def test_the_wrongly_stored_folders_are_stored_right(
    decoder: SubprocessDecoder, shared_data: Path, tmp_path: Path, folder: str, pattern: str
) -> None:
    """Each of 24 frames resembles its own file more than any other."""
    root = shared_data / "bugs" / folder
    source = folder_source(root)
    (result,) = decode(source, tmp_path, decoder, clip_frames=24, short_side=128, jpeg_quality=95)
    assert result.failures == ()
    assert result.clip is not None
    stored = [jpeg.decode(data) for data in result.clip.jpegs]
    right = [pixels_of(file) for file in sorted(root.glob(pattern))]
    assert len(stored) == len(right) == 24
    differences = np.array([[np.abs(a - b).mean() for b in right] for a in stored])
    assert differences.argmin(axis=1).tolist() == list(range(24))
    assert differences.diagonal().max() < 6  # JPEG


class GpuWithFaults(SubprocessDecoder):
    """Answers for the GPU: every frame of clip 0 is grey, clip 1 is refused, clip 2 is grey."""

    def encode_clips(self, path: str, **request: Any) -> list[EncodedClip | DecodeError]:
        assert request["device"] == "cuda"
        grey = jpeg.encode(np.full((64, 96, 3), 128, np.uint8), request["jpeg_quality"])
        return [
            DecodeError("it is interlaced")
            if 10 in indices
            else EncodedClip((grey,) * len(indices), (96, 64), (192, 128))
            for indices in request["clips"]
        ]


def test_the_cpu_decodes_the_clips_that_the_gpu_refuses(tmp_path: Path) -> None:
    write_numbered(tmp_path / "a.mp4", Recipe(frames=30))
    values = {
        "sources": [folder_source(tmp_path)],
        "frames": {"clip_frames": 10, "short_side": 64, "device": "cuda"},
        "tracks": {"tracker": "lucas_kanade", "grid": 4, "anchors": [0]},
        "out": str(tmp_path / "out"),
    }
    settings = check_settings(BuildSettings, values, "test")
    with GpuWithFaults(stall_limit_s=60) as decoder:
        results = list(decode_clips(task_of_file(tmp_path, "a.mp4", settings, clips=3), decoder))
    clips = [result.clip for result in results if result.clip]
    assert [clip.info.key for clip in clips] == ["key-0", "key-1", "key-2"]
    assert [clip.gpu_refused for clip in clips] == ["", "it is interlaced", ""]
    assert [clip.info.frame_numbers for clip in clips] == [
        tuple(range(first, first + 10)) for first in (0, 10, 20)
    ]
    for clip in clips:
        info = clip.info
        assert (info.width, info.height) == (96, 64)
        assert (info.source_width, info.source_height) == (192, 128)
    assert jpeg.decode(clips[0].jpegs[0]).std() == jpeg.decode(clips[2].jpegs[9]).std() == 0
    assert [read_number(jpeg.decode(data)) for data in clips[1].jpegs] == list(range(10, 20))


def task_of_file(root: Path, file: str, settings: BuildSettings, clips: int) -> ShardTask:
    """Make the task of a shard of clips of ten frames, as a plan would after scanning the file."""
    packed = scan(str(root / file), shot_cuts=False).ledger
    out = settings.out
    row = VideoRow(
        source="video_folder",
        dataset="video_folder",
        video_id=file,
        sequence=file,
        split="train",
        root=str(root),
        file=file,
        image_files=(),
        frame_numbers=(),
        timestamps=None,
        cameras=None,
        width=192,
        height=128,
        cuts=(),
        frames=10 * clips,
        identity="",
        scan=f"no shots, version 2, ledger {write_ledger(out, packed)}",
        terms="",
    )
    shard = PlannedShard(
        shard="",
        group="video_folder-train-000000",
        source="video_folder",
        split="train",
        action="build",
        reason="new",
        first=0,
        count=clips,
        frames_fingerprint="",
        tracks_fingerprint="",
        frames_settings=canonical_json(settings.frames.of_content()),
        tracks_settings=canonical_json(settings.tracks.of_content()),
        previous="",
        reuse="",
        tries=1,
    )
    planned = tuple(PlannedClip(f"key-{number}", 0, 10 * number, 10) for number in range(clips))
    return ShardTask(shard, planned, {0: row}, (), {}, settings)
