"""The catalogue: which videos there are, and what is known of each before any clip is cut.

Sources are listed anew every time (that reads names, not content). Video files are decoded once from end to end, to count their
frames, time them and find their shots; what that scan found is kept in `OUT/catalog/scans.parquet` until the file changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.fingerprint import fingerprint_lines
from manifests.rows import Failure
from manifests.snapshot import open_snapshot
from manifests.tables import FAILURES, VIDEOS, read_table, table_of, write_table
from pipeline.config import BuildSettings, FrameSettings, SplitSettings
from pipeline.failures import TRANSIENT_REASONS, DecodeError, Reason
from pipeline.monitoring.progress import Progress
from pipeline.ray_cluster import connect, decoder_of_this_worker, ray_task, results_as_completed
from pipeline.sources.video import Scan, Video
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


@dataclass(frozen=True)
class ScanFailure:
    """A video file that cannot be scanned."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Catalog:
    """All usable videos (table VIDEOS), and what could not be used (table FAILURES). `videos_found` counts both kinds of video."""

    videos: pa.Table
    failures: pa.Table
    videos_found: int


def find_videos(settings: BuildSettings, progress: Progress) -> Iterator[Video | Failure]:
    """Lists all sources. Raises PretrackError where a source's root is missing, cannot be read or is not what it should be."""
    for source in settings.sources:
        with progress.task(f"listing {source.name}", noun="video") as stage:
            try:
                for found in source.find_videos():
                    if isinstance(found, Video):
                        stage.advance()
                    yield _in_unicode(found)
            except OSError as error:
                raise PretrackError(
                    f"{error.filename or source.root} of source {source.name} cannot be read ({error})"
                ) from error


def _in_unicode(found: Video | Failure) -> Video | Failure:
    """The same, if its names are text: on Linux file names are bytes, and tables hold text. Otherwise a failure that says so."""
    names = (
        [found.video_id, found.file, *found.image_files]
        if isinstance(found, Video)
        else [found.video_id, found.detail]
    )
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        video_id = _shown(found.video_id)
        if isinstance(found, Failure):
            return replace(found, video_id=video_id, detail=_shown(found.detail))
        detail = f"{found.root}/{video_id}: its name, or that of a file in it, is not valid UTF-8: rename it"
        return Failure(
            source=found.source,
            video_id=video_id,
            stage="catalog",
            reason=Reason.UNUSABLE_NAME,
            detail=detail,
        )
    return found


def _shown(name: str) -> str:
    """A name of any bytes as text."""
    return name.encode(errors="backslashreplace").decode()


def make_catalog(
    settings: BuildSettings, progress: Progress, retry_failed: bool = False
) -> Catalog:
    """Lists all sources and scans the video files that are new or have changed; on Ray if there are any. With `retry_failed` those
    that could not be scanned are scanned again."""
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
            rows.append(_row(found, settings))
            if (
                len(rows) == _ROWS
            ):  # as rows of a table, cameras and numbers take a tenth of the memory
                tables.append(table_of(rows, VIDEOS))
                rows = []
    tables.append(table_of(rows, VIDEOS))
    scans = _scans(settings, files, progress, retry_failed)
    for first in range(0, len(files), _ROWS):
        scanned, unreadable = _scanned(
            files[first : first + _ROWS], scans.slice(first, _ROWS), settings
        )
        tables.append(scanned)
        failures += unreadable
    return Catalog(pa.concat_tables(tables), table_of(failures, FAILURES), len(names))


def _scanned(
    files: list[Video], scans: pa.Table, settings: BuildSettings
) -> tuple[pa.Table, list[Failure]]:
    """Rows of the videos table for video files and their scans, and those that cannot be used."""
    good = pc.equal(scans["error"], "")
    rows = [
        _row(video, settings)
        for video, usable in zip(files, good.to_pylist(), strict=True)
        if usable
    ]
    found = scans.filter(good)
    videos = table_of(rows, VIDEOS)
    known = {name: found[name] for name in ("width", "height", "timestamps", "cuts")}
    known["frames"] = pc.list_value_length(found["timestamps"])
    known["scan"] = found["settings"]
    for name, column in known.items():
        videos = videos.set_column(VIDEOS.get_field_index(name), VIDEOS.field(name), column)
    said = scans.select(["error", "reason"]).to_pylist()
    failures = [
        Failure(
            source=video.source,
            video_id=video.video_id,
            stage="scan",
            reason=scan["reason"],
            detail=scan["error"],
        )
        for video, scan in zip(files, said, strict=True)
        if scan["error"]
    ]
    return videos, failures


def stored_catalog(settings: BuildSettings) -> Catalog:
    """The catalogue as the current snapshot has it, of the settings' sources and with their split: for tracking again where the
    sources are not at hand."""
    snapshot = open_snapshot(settings.out)
    sources = pa.array([source.name for source in settings.sources])
    videos = snapshot.videos.filter(pc.is_in(snapshot.videos["source"], value_set=sources))
    splits = pa.array(
        [split_of(sequence, settings.split) for sequence in videos["sequence"].to_pylist()],
        pa.string(),
    )
    videos = videos.set_column(videos.column_names.index("split"), VIDEOS.field("split"), splits)
    failures = snapshot.failures.filter(
        pc.is_in(snapshot.failures["stage"], pa.array(["catalog", "scan"]))
    )
    failures = failures.filter(
        pc.not_equal(failures["reason"], Reason.TOO_SHORT)
    )  # the plan finds these anew
    failures = failures.filter(pc.is_in(failures["source"], value_set=sources))
    named = failures.filter(pc.not_equal(failures["video_id"], ""))
    both = pa.concat_tables([table.select(["source", "video_id"]) for table in (videos, named)])
    return Catalog(videos, failures, both.group_by(["source", "video_id"]).aggregate([]).num_rows)


def changed_videos(
    settings: BuildSettings, videos: pa.Table, needed: set[tuple[str, str]], progress: Progress
) -> list[str]:
    """Which of the videos `needed`, by (source, id), are not what a table of videos has any more.

    Those that are gone, or whose source cannot be listed, are not among them.
    """
    rows = videos.select(["source", "video_id", "identity"]).to_pylist()
    identities = {
        (row["source"], row["video_id"]): row["identity"]
        for row in rows
        if (row["source"], row["video_id"]) in needed
    }
    changed = []
    for source in settings.sources:
        one = settings.model_copy(update={"sources": (source,)})
        with suppress(PretrackError):
            for found in find_videos(one, progress):
                name = (found.source, found.video_id)
                if (
                    isinstance(found, Video)
                    and name in identities
                    and _content_identity(found) != identities[name]
                ):
                    changed.append(found.video_id)
    return changed


def split_of(sequence: str, split: SplitSettings) -> str:
    """`train` or `eval`, by a hash of the sequence's name: the same for all footage of it, in any source, on any machine."""
    digest = hashlib.blake2b(f"{split.salt}{sequence}".encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") < split.eval_fraction * 2**64 else "train"


def _row(video: Video, settings: BuildSettings) -> dict[str, Any]:
    """A video's row of the videos table, without what a scan of its file tells."""
    return {
        **vars(video),
        "cameras": [camera and vars(camera) for camera in video.cameras] if video.cameras else None,
        "identity": _content_identity(video),
        "split": split_of(video.sequence, settings.split),
        "width": 0,
        "height": 0,
        "cuts": (),
        "frames": len(video.image_files),
        "scan": "",
    }


def _content_identity(video: Video) -> str:
    """Digest of everything of a video that goes into its clips."""
    poses = [list(vars(camera).values()) if camera else None for camera in video.cameras or ()]
    times = np.asarray(video.timestamps or (), np.float64).tobytes().hex()
    return fingerprint_lines(
        [video.identity, repr(video.frame_numbers), times, repr(poses), video.terms]
    )


def _path(video: Video) -> str:
    return str(Path(video.root) / video.file)


def _scans(
    settings: BuildSettings, videos: Sequence[Video], progress: Progress, retry_failed: bool
) -> pa.Table:
    """The scan of every video file (table SCANS), in the order of `videos`."""
    wanted = settings.frames.of_scan()
    file = settings.out / "catalog" / "scans.parquet"
    files = {_path(video): video.identity for video in videos}
    known = _remembered(file, files, wanted, retry_failed)
    missing = sorted(files.keys() - set(known["path"].to_pylist()))
    if missing:
        rows: list[dict[str, Any]] = []
        with progress.task("scanning video files", total=len(missing), noun="video") as stage:
            for name, scan in _scan_all(missing, settings):
                rows.append(_scan_row(name, files[name], wanted, scan))
                stage.advance()
                if len(rows) >= max(
                    _SAVE_EVERY, known.num_rows // 20
                ):  # so that what is written in all stays linear
                    known, rows = pa.concat_tables([known, table_of(rows, SCANS)]), []
                    _remember(file, known)
        known = pa.concat_tables([known, table_of(rows, SCANS)])
        _remember(file, known)
    paths = pa.array([_path(video) for video in videos], pa.string())
    return known.take(pc.index_in(paths, value_set=known["path"]))


def _remembered(
    file: Location, files: dict[str, str], settings: str, retry_failed: bool
) -> pa.Table:
    """What earlier scans of these files (path → identity) found, where it still holds."""
    if file.name not in sizes_in(file.parent):
        return SCANS.empty_table()
    scans = read_table(file)
    identities = pa.array(files.values(), pa.string())
    place = pc.index_in(scans["path"], value_set=pa.array(files.keys(), pa.string()))
    holds = pc.and_(
        pc.equal(scans["settings"], settings),
        pc.equal(scans["identity"], identities.take(place.combine_chunks())),
    )
    if retry_failed:
        holds = pc.and_(holds, pc.equal(scans["error"], ""))
    return scans.filter(holds)


def _remember(file: Location, scans: pa.Table) -> None:
    write_table(
        file,
        scans.filter(pc.invert(pc.is_in(scans["reason"], value_set=pa.array(TRANSIENT_REASONS)))),
    )


def _scan_all(
    paths: list[str], settings: BuildSettings
) -> Iterator[tuple[str, Scan | ScanFailure]]:
    """Scans files on Ray's workers, yielding each as it is done."""
    cluster = connect(settings.ray)
    task = ray_task(_scan_one)
    yield from results_as_completed(
        (partial(task.remote, path, settings.frames) for path in paths), limit=2 * cluster.cpus
    )


def _scan_one(path: str, frames: FrameSettings) -> tuple[str, Scan | ScanFailure]:
    """Runs on a worker."""
    try:
        return path, decoder_of_this_worker(frames.decode_timeout_s).scan(path, frames.shot_cuts)
    except DecodeError as error:
        return path, ScanFailure(error.reason, str(error))


def _scan_row(path: str, identity: str, settings: str, scan: Scan | ScanFailure) -> dict[str, Any]:
    row: dict[str, Any] = {
        "path": path,
        "identity": identity,
        "settings": settings,
        "error": "",
        "reason": "",
    }
    return (
        {**row, "error": scan.detail, "reason": scan.reason}
        if isinstance(scan, ScanFailure)
        else {**row, **asdict(scan)}
    )
