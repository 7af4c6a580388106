"""List the videos of all sources, with everything that is needed to cut them into clips.

Every catalogue lists the sources again (`source_listing`). Video files are decoded once from end to
end (`file_scans`) to count their frames, time them and find their shots.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from manifests.rows import Failure
from manifests.snapshot import open_snapshot
from manifests.tables import FAILURES, VIDEOS, table_of
from manifests.wording import pluralise
from pipeline.config import BuildSettings, FrameSettings
from pipeline.failures import Reason
from pipeline.monitoring.progress import Progress
from pipeline.planning.chosen_frames import choose_frames
from pipeline.planning.file_scans import scan_files
from pipeline.planning.ledger_store import scan_texts
from pipeline.planning.source_listing import find_videos
from pipeline.planning.video_rows import VideoTables, content_identity, split_of, video_row
from pipeline.sources.video import Video
from shards.errors import PretrackError


@dataclass(frozen=True)
class Catalog:
    """All usable videos (table VIDEOS), and what could not be used (table FAILURES).

    videos_found: number of videos of both kinds
    """

    videos: pa.Table
    failures: pa.Table
    videos_found: int


def make_catalog(
    settings: BuildSettings, progress: Progress, retry_failed: bool = False
) -> Catalog:
    """List all sources, and scan video files that are new or have changed, on Ray.

    retry_failed: scan the files again that could not be scanned
    """
    images, files = VideoTables(), VideoTables()
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
            files.add(video_row(video, settings))
            paths.append(_file_path(video))
            identities[paths[-1]] = video.identity
        else:
            images.add(video_row(video, settings))
    # Video files need their scans.
    scans = scan_files(settings, identities, progress, retry_failed)
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


def _file_path(video: Video) -> str:
    return str(Path(video.root) / video.file)


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
                    and content_identity(video, settings.frames) != identities[key]
                ):
                    changed.append(video.video_id)
    return changed
