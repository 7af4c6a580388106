"""List the videos of all sources, with everything that is needed to cut them into clips.

Every catalogue lists the sources again, which reads names, not content. Video files are decoded
once from end to end (scanned) to count their frames, time them and find their shots. Scans are kept
in `OUT/catalog/scans.parquet` and repeated when a file changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.arrow_schema import schema_of
from manifests.fingerprint import fingerprint_lines
from manifests.rows import Failure, Float64, Int32, VideoRow
from manifests.snapshot import open_snapshot
from manifests.tables import FAILURES, VIDEOS, read_table, table_of, write_table
from manifests.wording import pluralise
from pipeline.config import BuildSettings, FrameSettings, SplitSettings
from pipeline.decode.hdf5 import require_h5py
from pipeline.failures import TRANSIENT_REASONS, DecodeError, Reason
from pipeline.monitoring.progress import Progress
from pipeline.planning.chosen_frames import choose_frames
from pipeline.planning.ledger_store import scan_texts, write_ledger
from pipeline.ray_cluster import connect, decoder_of_this_worker, ray_task, results_as_completed
from pipeline.sources.listing import files_named, identity_of
from pipeline.sources.rendering import is_rendered
from pipeline.sources.scenes import split_of_scene
from pipeline.sources.video import Scan, ScanNote, Video
from shards.errors import FormatVersionError, PretrackError
from shards.files import Location, sizes_in

_SAVE_EVERY = 200
"""New scans are saved at least this many at a time."""
_ROWS_PER_TABLE = 500
"""Videos converted to an Arrow table at once."""


@dataclass(frozen=True)
class ScanRow:
    """The scan of a video file: a row of `OUT/catalog/scans.parquet`. For the results see `Scan`.

    identity: the file's identity when it was scanned
    settings: the scan settings
    ledger:   digest of the ledger of its frames (see `ledger_store`), "" without one
    notes:    for the user: why the file cannot be used, or which parts of it are not
    reason:   why the file cannot be scanned, "" if it was; the results are None then
    """

    path: str
    identity: str
    settings: str
    width: Int32 | None
    height: Int32 | None
    timestamps: tuple[Float64, ...] | None
    cuts: tuple[Int32, ...] | None
    ledger: str
    notes: tuple[ScanNote, ...]
    reason: str


SCANS = schema_of(ScanRow)

ScanResult = tuple[Scan, str] | ScanNote
"""A scan and the digest of its ledger; or why a file cannot be scanned."""


@dataclass(frozen=True)
class Catalog:
    """All usable videos (table VIDEOS), and what could not be used (table FAILURES).

    videos_found: number of videos of both kinds
    """

    videos: pa.Table
    failures: pa.Table
    videos_found: int


def find_videos(settings: BuildSettings, progress: Progress) -> Iterator[Video | Failure]:
    """List all sources.

    Raises PretrackError if a source's root is missing, unreadable, or not what the source expects.
    """
    for source in settings.sources:
        with progress.task(f"listing {source.name}", noun="video") as task:
            try:
                for video in source.find_videos():
                    if isinstance(video, Video):
                        task.advance()
                    yield _with_text_names(video)
            except OSError as error:
                raise PretrackError(
                    f"{error.filename or source.root} of source {source.name} cannot be read "
                    f"({error})"
                ) from error


def _with_text_names(video: Video | Failure) -> Video | Failure:
    """Return a failure for a video whose file names are not text.

    On Linux file names are bytes, and tables hold text.
    """
    names = (
        [video.video_id, video.file, *video.image_files, *_map_files(video)]
        if isinstance(video, Video)
        else [video.video_id, video.detail]
    )
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        video_id = _escaped(video.video_id)
        if isinstance(video, Failure):
            return replace(video, video_id=video_id, detail=_escaped(video.detail))
        return Failure(
            source=video.source,
            video_id=video_id,
            stage="catalog",
            reason=Reason.UNUSABLE_NAME,
            detail=f"{video.root}/{video_id}: its name, or that of a file in it, is not valid "
            "UTF-8: rename it",
        )
    return video


def _map_files(video: Video) -> Iterator[str]:
    """Yield the names of a video's depth maps, their masks, and its masks."""
    if video.depth:
        yield from (*video.depth.files, *video.depth.masks)
    yield from video.mask_files or ()


def _escaped(name: str) -> str:
    """Return a name of any bytes as text, with backslash escapes."""
    return name.encode(errors="backslashreplace").decode()


def make_catalog(
    settings: BuildSettings, progress: Progress, retry_failed: bool = False
) -> Catalog:
    """List all sources, and scan video files that are new or have changed, on Ray.

    retry_failed: scan the files again that could not be scanned
    """
    images, files = _VideoTables(), _VideoTables()
    paths: list[str] = []
    identities: dict[str, str] = {}
    failures: list[Failure] = []
    names: set[tuple[str, str]] = set()
    # Sequences of images are complete once they are listed.
    for video in find_videos(settings, progress):
        if video.video_id:
            names.add((video.source, video.video_id))
        if isinstance(video, Failure):
            failures.append(video)
        elif video.file:
            files.add(_video_row(video, settings))
            paths.append(_path(video))
            identities[paths[-1]] = video.identity
        else:
            images.add(_video_row(video, settings))
    # Video files need their scans.
    scans = _scans(settings, identities, progress, retry_failed)
    scans = scans.take(pc.index_in(pa.array(paths, pa.string()), value_set=scans["path"]))
    tables, first = images.tables(), 0
    for listed in files.tables():
        videos, left_out = _scanned_videos(listed, scans.slice(first, listed.num_rows))
        tables.append(videos)
        failures += left_out
        first += listed.num_rows
    videos, untrackable = _trackable(pa.concat_tables(tables), settings)
    failures += [*untrackable, *_without_maps(videos, settings.frames)]
    return Catalog(videos, table_of(failures, FAILURES), len(names))


def _trackable(videos: pa.Table, settings: BuildSettings) -> tuple[pa.Table, list[Failure]]:
    """Leave out the videos that lack what the tracker needs, with a failure for each.

    Raises PretrackError for a source that has no other videos.
    """
    if not settings.tracks.needs_depth:
        return videos, []
    no_depth, no_cameras = (pc.is_null(videos[name]) for name in ("depth", "cameras"))
    usable = pc.invert(pc.or_(no_depth, no_cameras))
    sources = dict(_counts(videos["source"].filter(usable)))
    for source, count in _counts(videos["source"]):
        if source not in sources:
            raise PretrackError(
                f"none of the {pluralise(count, 'video')} of source {source} has depth maps and "
                f"cameras, which tracks.tracker {settings.tracks.tracker} needs: choose another "
                "tracker, or leave the source out"
            )
    left_out = videos.select(["source", "video_id"]).append_column("no_depth", no_depth)
    failures = [
        Failure(
            source=row["source"],
            video_id=row["video_id"],
            stage="catalog",
            reason=Reason.NO_DEPTH if row["no_depth"] else Reason.POSES_MISSING,
            detail=f"tracks.tracker {settings.tracks.tracker} needs depth maps and cameras, and it "
            f"has no {'depth maps' if row['no_depth'] else 'cameras'}: choose another tracker for "
            "its source",
        )
        for row in left_out.filter(pc.invert(usable)).to_pylist()
    ]
    return videos.filter(usable), failures


def _without_maps(videos: pa.Table, frames: FrameSettings) -> Iterator[Failure]:
    """Yield a note per source that lacks maps which are to be stored."""
    wanted = [
        ("depth", frames.depth, "depth maps", Reason.NO_DEPTH),
        ("mask_files", frames.masks, "masks", Reason.NO_MASKS),
    ]
    for column, asked, words, reason in wanted:
        lacking = videos.filter(pc.is_null(videos[column])) if asked else videos.slice(0, 0)
        totals = dict(_counts(videos["source"]))
        for source, count in _counts(lacking["source"]):
            yield Failure(
                source=source,
                video_id="",
                stage="catalog",
                reason=reason,
                detail=f"{count} of {pluralise(totals[source], 'video')} have no {words}: their "
                "clips are stored without",
            )


def _counts(column: pa.ChunkedArray) -> list[tuple[str, int]]:
    """Count the rows per value."""
    counted = column.value_counts()
    return [(entry["values"], entry["counts"]) for entry in counted.to_pylist()]


class _VideoTables:
    """Collect rows of the videos table. Cameras take a tenth of the memory in an Arrow table."""

    def __init__(self) -> None:
        self._tables = [VIDEOS.empty_table()]
        self._rows: list[VideoRow] = []

    def add(self, row: VideoRow) -> None:
        self._rows.append(row)
        if len(self._rows) == _ROWS_PER_TABLE:
            self._tables.append(_videos_table(self._rows))
            self._rows = []

    def tables(self) -> list[pa.Table]:
        """Return all rows that were added, in order."""
        return [*self._tables, _videos_table(self._rows)]


def _scanned_videos(listed: pa.Table, scans: pa.Table) -> tuple[pa.Table, list[Failure]]:
    """Join video files and their scans: the usable ones (table VIDEOS), and failures."""
    named = listed.select(["source", "video_id"]).to_pylist()
    failures = [
        Failure(**video, stage="scan", reason=note["reason"], detail=note["detail"])
        for video, notes in zip(named, scans["notes"].to_pylist(), strict=True)
        for note in notes
    ]
    usable = pc.equal(scans["reason"], "")
    listed, scans = listed.filter(usable), scans.filter(usable)
    # The source may name the frames to use by their times.
    chosen = pc.is_valid(listed["timestamps"])
    whole = _with_scans(listed.filter(pc.invert(chosen)), scans.filter(pc.invert(chosen)))
    listed, scans = listed.filter(chosen), scans.filter(chosen)
    rows = []
    named = listed.select(["timestamps", "width", "height"]).to_pylist()
    for video, row in zip(named, _with_scans(listed, scans).to_pylist(), strict=True):
        size = (video["width"], video["height"])
        limited, left_out = choose_frames(row, video["timestamps"], size)
        failures += left_out
        rows += [limited] if limited else []
    return pa.concat_tables([whole, table_of(rows, VIDEOS)]), failures


def _with_scans(videos: pa.Table, scans: pa.Table) -> pa.Table:
    """Put the results of scans into rows of the videos table."""
    # Column by column: as Python lists, timestamps would be large.
    columns = {name: scans[name] for name in ("width", "height", "timestamps", "cuts")}
    columns["frames"] = pc.list_value_length(scans["timestamps"])
    columns["scan"] = scan_texts(scans["settings"], scans["ledger"])
    for name, column in columns.items():
        videos = videos.set_column(VIDEOS.get_field_index(name), VIDEOS.field(name), column)
    return videos


def stored_catalog(settings: BuildSettings) -> Catalog:
    """Return the catalogue of the current snapshot, to re-track without access to the sources.

    Only the settings' sources are in it, and their videos are split by the settings.
    """
    snapshot = open_snapshot(settings.out)
    sources = pa.array([source.name for source in settings.sources])
    videos = snapshot.videos.filter(pc.is_in(snapshot.videos["source"], value_set=sources))
    splits = pa.array(
        [
            split_of(dataset, sequence, settings.split)
            for dataset, sequence in zip(
                videos["dataset"].to_pylist(), videos["sequence"].to_pylist(), strict=True
            )
        ],
        pa.string(),
    )
    videos = videos.set_column(videos.column_names.index("split"), VIDEOS.field("split"), splits)
    failures = snapshot.failures.filter(
        pc.is_in(snapshot.failures["stage"], pa.array(["catalog", "scan"]))
    )
    # The plan determines again which videos are too short.
    failures = failures.filter(pc.not_equal(failures["reason"], Reason.TOO_SHORT))
    failures = failures.filter(pc.is_in(failures["source"], value_set=sources))
    videos, untrackable = _trackable(videos, settings)
    failures = pa.concat_tables([failures, table_of(untrackable, FAILURES)])
    named = failures.filter(pc.not_equal(failures["video_id"], ""))
    both = pa.concat_tables([table.select(["source", "video_id"]) for table in (videos, named)])
    return Catalog(videos, failures, both.group_by(["source", "video_id"]).aggregate([]).num_rows)


def changed_videos(
    settings: BuildSettings, videos: pa.Table, needed: set[tuple[str, str]], progress: Progress
) -> list[str]:
    """Return the ids of the videos `needed` whose content differs from a table of videos.

    `needed` has (source, video_id) pairs. Videos that are gone, or whose source cannot be listed,
    do not count as changed.
    """
    rows = videos.select(["source", "video_id", "identity"]).to_pylist()
    identities = {
        (row["source"], row["video_id"]): row["identity"]
        for row in rows
        if (row["source"], row["video_id"]) in needed
    }
    changed = []
    # One source at a time: a source that cannot be listed must not hide changes in another.
    for source in settings.sources:
        this_source = settings.model_copy(update={"sources": (source,)})
        with suppress(PretrackError):
            for video in find_videos(this_source, progress):
                key = (video.source, video.video_id)
                if (
                    isinstance(video, Video)
                    and key in identities
                    and _content_identity(video, settings.frames) != identities[key]
                ):
                    changed.append(video.video_id)
    return changed


def split_of(dataset: str, sequence: str, split: SplitSettings) -> str:
    """Return `train` or `eval`, by a hash of the sequence's name.

    All footage of a sequence is in the same split, in any source, on any machine. Scenes were made
    for a split, and are in that one.
    """
    if dataset == "scenes":
        return split_of_scene(sequence)
    digest = hashlib.blake2b(f"{split.salt}{sequence}".encode(), digest_size=8).digest()
    return "eval" if int.from_bytes(digest, "big") < split.eval_fraction * 2**64 else "train"


def _video_row(video: Video, settings: BuildSettings) -> VideoRow:
    """Return a video's row of the videos table, without the results of a scan.

    Its size is that of the frames that its cameras are for, 0 if the source does not say. Raises
    PretrackError if this machine cannot read its depth maps.
    """
    fields = {name: value for name, value in vars(video).items() if name != "size"}
    width, height = video.size or (0, 0)
    if settings.frames.depth and video.depth and video.depth.encoding == "float":
        require_h5py()
    return VideoRow(
        **{
            **fields,
            "identity": _content_identity(video, settings.frames),
            "depth": video.depth if settings.frames.depth else None,
            "mask_files": video.mask_files if settings.frames.masks else None,
        },
        split=split_of(video.dataset, video.sequence, settings.split),
        width=width,
        height=height,
        cuts=(),
        frames=len(video.image_files),
        scan="",
    )


def _videos_table(rows: Iterable[VideoRow]) -> pa.Table:
    """Convert rows to a table. Only cameras and depth are nested; `asdict` copies every number."""
    return table_of(
        (
            {
                **vars(row),
                "cameras": row.cameras and [c and vars(c) for c in row.cameras],
                "depth": row.depth and vars(row.depth),
            }
            for row in rows
        ),
        VIDEOS,
    )


def _content_identity(video: Video, frames: FrameSettings) -> str:
    """Digest everything about a video that its clips depend on."""
    poses = [list(vars(camera).values()) if camera else None for camera in video.cameras or ()]
    times = np.asarray(video.timestamps or (), np.float64).tobytes().hex()
    lines = [video.identity, repr(video.frame_numbers), times, repr(poses), video.terms]
    # Nothing is added for maps that are not stored, and their files are not looked at.
    if frames.depth and video.depth:
        files = _identity_of_maps(video, (*video.depth.files, *video.depth.masks))
        lines += [f"{video.depth.encoding} {video.depth.scales!r}", files]
    if frames.masks and video.mask_files:
        lines.append(_identity_of_maps(video, video.mask_files))
    return fingerprint_lines(lines)


def _identity_of_maps(video: Video, files: Sequence[str]) -> str:
    """Digest the files of depth maps or masks, and only the names of rendered ones, which may not
    be there yet.
    """
    if is_rendered(video.dataset):
        return fingerprint_lines(files)
    return identity_of(files_named(video.root, files))


def _path(video: Video) -> str:
    return str(Path(video.root) / video.file)


def _scans(
    settings: BuildSettings, identities: dict[str, str], progress: Progress, retry_failed: bool
) -> pa.Table:
    """Return the scan of every video file (table SCANS).

    Scans the files that have no valid stored scan, and stores the new scans.

    identities: of the files, by path
    """
    scan_settings = settings.frames.of_scan()
    store = settings.out / "catalog" / "scans.parquet"
    scans = _stored_scans(store, identities, scan_settings, retry_failed)
    missing = sorted(identities.keys() - set(scans["path"].to_pylist()))
    if missing:
        rows: list[ScanRow] = []
        with progress.task("scanning video files", total=len(missing), noun="video") as task:
            for path, scan in _scan_files(missing, settings):
                rows.append(_scan_row(path, identities[path], scan_settings, scan))
                task.advance()
                # Saving rewrites the file. Saving after 5 % growth keeps the total linear.
                if len(rows) >= max(_SAVE_EVERY, scans.num_rows // 20):
                    scans, rows = pa.concat_tables([scans, _scans_table(rows)]), []
                    _store_scans(store, scans)
        scans = pa.concat_tables([scans, _scans_table(rows)])
        _store_scans(store, scans)
    return scans


def _stored_scans(
    store: Location, identities: dict[str, str], scan_settings: str, retry_failed: bool
) -> pa.Table:
    """Read the stored scans of these files that are still valid.

    identities: of the files now, by path
    """
    if store.name not in sizes_in(store.parent):
        return SCANS.empty_table()
    try:
        scans = read_table(store, SCANS.names)
    except FormatVersionError:  # of an earlier version, without ledgers
        return SCANS.empty_table()
    position = pc.index_in(scans["path"], value_set=pa.array(identities.keys(), pa.string()))
    identity_now = pa.array(identities.values(), pa.string()).take(position.combine_chunks())
    valid = pc.and_(
        pc.equal(scans["settings"], scan_settings), pc.equal(scans["identity"], identity_now)
    )
    if retry_failed:
        valid = pc.and_(valid, pc.equal(scans["reason"], ""))
    return scans.filter(valid)


def _store_scans(store: Location, scans: pa.Table) -> None:
    """Store scans without transient failures, so that these files are scanned again."""
    # Stored failures are not retried unless asked for.
    transient = pc.is_in(scans["reason"], value_set=pa.array(TRANSIENT_REASONS))
    write_table(store, scans.filter(pc.invert(transient)))


def _scan_files(paths: list[str], settings: BuildSettings) -> Iterator[tuple[str, ScanResult]]:
    """Scan files on Ray's workers; yield each as it is done."""
    cluster = connect(settings.ray)
    # Twice as many tasks as cores, so that a core never waits for its next file.
    task = ray_task(_scan_file)
    yield from results_as_completed(
        (partial(task.remote, path, settings.frames, settings.out) for path in paths),
        limit=2 * cluster.cpus,
    )


def _scan_file(path: str, frames: FrameSettings, out: Location) -> tuple[str, ScanResult]:
    """Scan one file and store its ledger; runs on a worker."""
    decoder = decoder_of_this_worker(frames.decode_timeout_s, gpus="")
    try:
        scan = decoder.scan(path, frames.shot_cuts)
    except DecodeError as error:
        return path, ScanNote(error.reason, str(error))
    # The driver needs only the digest, and ledgers are large.
    return path, (replace(scan, ledger=b""), write_ledger(out, scan.ledger))


def _scan_row(path: str, identity: str, scan_settings: str, result: ScanResult) -> ScanRow:
    row = ScanRow(
        path=path,
        identity=identity,
        settings=scan_settings,
        width=None,
        height=None,
        timestamps=None,
        cuts=None,
        ledger="",
        notes=(),
        reason="",
    )
    if isinstance(result, ScanNote):
        return replace(row, notes=(result,), reason=result.reason)
    scan, ledger = result
    return replace(
        row,
        width=scan.width,
        height=scan.height,
        timestamps=scan.timestamps,
        cuts=scan.cuts,
        ledger=ledger,
        notes=scan.notes,
    )


def _scans_table(rows: Iterable[ScanRow]) -> pa.Table:
    return table_of(
        ({**vars(row), "notes": [vars(note) for note in row.notes]} for row in rows), SCANS
    )
