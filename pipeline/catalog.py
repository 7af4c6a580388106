"""The catalogue: which videos there are, and what is known of each before any clip is cut.

Sources are listed anew every time (that reads names, not content). Video files are decoded once from end to end, to count their
frames, time them and find their shots; what that scan found is kept in `OUT/catalog/scans.parquet` until the file changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.fingerprint import fingerprint_lines
from manifests.snapshot import open_snapshot
from manifests.tables import FAILURES, VIDEOS, read_table, table_of, write_table
from pipeline.cluster import bounded, connect, ray_task, worker_decoder
from pipeline.config import BuildSettings, FrameSettings, SplitSettings
from pipeline.decode.errors import PASSING, DecodeError
from pipeline.progress import Progress
from pipeline.video import Failure, Scan, Video
from shards.errors import PretrackError
from shards.files import Location, sizes_in

SCANS = pa.schema(
    [
        ("path", pa.string()),
        ("identity", pa.string()),
        ("settings", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("timestamps", pa.list_(pa.float64())),
        ("cuts", pa.list_(pa.int32())),
        ("error", pa.string()),
        ("reason", pa.string()),
    ]
)
_SAVE_EVERY = 200
_ROWS = 500
TOO_SHORT = "too short"


@dataclass(frozen=True)
class Unreadable:
    """A video file that cannot be scanned."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Catalog:
    """All usable videos (table VIDEOS), and what could not be used (table FAILURES). `found` counts both kinds of video."""

    videos: pa.Table
    failures: pa.Table
    found: int


def find_videos(settings: BuildSettings, progress: Progress) -> Iterator[Video | Failure]:
    """Lists all sources. Raises PretrackError where a source's root is missing, cannot be read or is not what it should be."""
    for source in settings.sources:
        with progress.stage(f"listing {source.name}", unit="videos") as stage:
            try:
                for found in source.find_videos():
                    if isinstance(found, Video):
                        stage.advance()
                    yield found
            except OSError as error:
                raise PretrackError(f"{error.filename or source.root} of source {source.name} cannot be read ({error})") from error


def make_catalog(settings: BuildSettings, progress: Progress) -> Catalog:
    """Lists all sources and scans the video files that are new or have changed; on Ray if there are any."""
    tables = [VIDEOS.empty_table()]
    files: list[Video] = []
    failures: list[Failure] = []
    rows: list[dict[str, Any]] = []
    names: set[tuple[str, str]] = set()
    for found in find_videos(settings, progress):
        if found.video_id:
            names.add((found.source, found.video_id))
        if isinstance(found, Failure):
            failures.append(found)
        elif found.file:
            files.append(found)
        else:
            rows.append(_row(found, None, settings.split, settings.frames))
            if len(rows) == _ROWS:  # as rows of a table, cameras and numbers take a tenth of the memory
                tables.append(table_of(rows, VIDEOS))
                rows = []
    scans = _scans(settings, files, progress)
    for video in files:
        scan = scans[_path(video)]
        if isinstance(scan, Unreadable):
            failures.append(Failure(video.source, video.video_id, "", "scan", scan.reason, scan.detail))
        else:
            rows.append(_row(video, scan, settings.split, settings.frames))
    return Catalog(pa.concat_tables([*tables, table_of(rows, VIDEOS)]), table_of(failures, FAILURES), len(names))


def stored_catalog(settings: BuildSettings) -> Catalog:
    """The catalogue as the current snapshot has it: for tracking again where the sources are not at hand."""
    snapshot = open_snapshot(settings.out)
    failures = snapshot.failures.filter(pc.is_in(snapshot.failures["stage"], pa.array(["catalog", "scan"])))
    failures = failures.filter(pc.not_equal(failures["reason"], TOO_SHORT))  # the plan finds these anew
    names = {(row["source"], row["video_id"]) for row in failures.select(["source", "video_id"]).to_pylist() if row["video_id"]}
    names |= set(zip(*(snapshot.videos[column].to_pylist() for column in ("source", "video_id")), strict=True))
    return Catalog(snapshot.videos, failures, len(names))


def split_of(sequence: str, split: SplitSettings) -> str:
    """`train` or `eval`, by a hash of the sequence's name: the same for all footage of it, in any source, on any machine."""
    digest = hashlib.blake2b(f"{split.salt}{sequence}".encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") < split.eval_fraction * 2**64 else "train"


def _row(video: Video, scan: Scan | None, split: SplitSettings, frames: FrameSettings) -> dict[str, Any]:
    """A video's row of the videos table."""
    timestamps = scan.timestamps if scan else video.timestamps
    return {
        **vars(video),
        "cameras": [camera and vars(camera) for camera in video.cameras] if video.cameras else None,
        "identity": _content_identity(video),
        "split": split_of(video.sequence, split),
        "timestamps": timestamps,
        "width": scan.width if scan else 0,
        "height": scan.height if scan else 0,
        "cuts": scan.cuts if scan else (),
        "frames": len(scan.timestamps) if scan else len(video.image_files),
        "scan": frames.of_scan() if scan else "",
    }


def _content_identity(video: Video) -> str:
    """Digest of everything of a video that goes into its clips."""
    poses = [list(vars(camera).values()) if camera else None for camera in video.cameras or ()]
    times = np.asarray(video.timestamps or (), np.float64).tobytes().hex()
    return fingerprint_lines([video.identity, repr(video.frame_numbers), times, repr(poses), video.terms])


def _path(video: Video) -> str:
    return str(Path(video.root) / video.file)


def _scans(settings: BuildSettings, videos: Iterable[Video], progress: Progress) -> dict[str, Scan | Unreadable]:
    """The scan of every video file by its path."""
    wanted = settings.frames.of_scan()
    path = settings.out / "catalog" / "scans.parquet"
    files = {_path(video): video.identity for video in videos if video.file}
    rows = read_table(path).to_pylist() if path.name in sizes_in(path.parent) else []
    known = {row["path"]: row for row in rows if row["settings"] == wanted and files.get(row["path"]) == row["identity"]}
    missing = sorted(files.keys() - known.keys())
    if missing:
        with progress.stage("scanning video files", total=len(missing), unit="videos") as stage:
            for number, (name, scan) in enumerate(_scan_all(missing, settings), 1):
                known[name] = _scan_row(name, files[name], wanted, scan)
                stage.advance()
                if number % _SAVE_EVERY == 0:
                    _remember(path, known)
        _remember(path, known)
    return {name: _scan_of(row) for name, row in known.items()}


def _remember(path: Location, known: dict[str, dict[str, Any]]) -> None:
    write_table(path, table_of([row for row in known.values() if row["reason"] not in PASSING], SCANS))


def _scan_all(paths: list[str], settings: BuildSettings) -> Iterator[tuple[str, Scan | Unreadable]]:
    """Scans files on Ray's workers, yielding each as it is done."""
    cluster = connect(settings.ray)
    task = ray_task(_scan_one)
    yield from bounded((partial(task.remote, path, settings.frames) for path in paths), limit=2 * cluster.cpus)


def _scan_one(path: str, frames: FrameSettings) -> tuple[str, Scan | Unreadable]:
    """Runs on a worker."""
    try:
        return path, worker_decoder(frames.decode_timeout_s).scan(path, frames.shot_cuts)
    except DecodeError as error:
        return path, Unreadable(error.reason, str(error))


def _scan_row(path: str, identity: str, settings: str, scan: Scan | Unreadable) -> dict[str, Any]:
    row: dict[str, Any] = {"path": path, "identity": identity, "settings": settings, "error": "", "reason": ""}
    return {**row, "error": scan.detail, "reason": scan.reason} if isinstance(scan, Unreadable) else {**row, **asdict(scan)}


def _scan_of(row: dict[str, Any]) -> Scan | Unreadable:
    if row["error"]:
        return Unreadable(row["reason"], row["error"])
    return Scan(row["width"], row["height"], tuple(row["timestamps"]), tuple(row["cuts"]))
