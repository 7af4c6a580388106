"""Notice that a source finds far fewer videos than before: a wrong root, or a disk not mounted."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from manifests.snapshot import Snapshot
from manifests.tables import read_table
from manifests.wording import pluralise
from pipeline.config import BuildSettings
from pipeline.planning.catalog import Catalog

_VIDEO_KEY = ["source", "video_id"]


@dataclass(frozen=True)
class MissingVideos:
    """Videos of a source that the current snapshot has and the source does not find any more.

    snapshot: the name of the snapshot
    before:   number of the source's videos in the snapshot
    missing:  number of these that are missing
    first:    the id of the first of them
    """

    source: str
    root: str
    snapshot: str
    before: int
    missing: int
    first: str

    def __str__(self) -> str:
        return (
            f"source {self.source} finds {self.before - self.missing:,} of its "
            f"{pluralise(self.before, 'video')} of snapshot {self.snapshot} "
            f"(first missing: {self.first}): check its root {self.root}"
        )


def missing_videos(
    settings: BuildSettings, catalog: Catalog, current: Snapshot | None
) -> list[MissingVideos]:
    """Return the sources that lack more than `max_missing_videos` of their videos in `current`.

    A video that is found and cannot be used is not missing: `max_failed_videos` counts those.
    """
    if current is None:
        return []
    before = read_table(current.folder / "videos.parquet", _VIDEO_KEY)
    now = pa.concat_tables(
        [table.select(_VIDEO_KEY) for table in (catalog.videos, catalog.failures)]
    )
    too_few = []
    for source in settings.sources:
        known, found = (
            table.filter(pc.equal(table["source"], source.name))["video_id"]
            for table in (before, now)
        )
        missing = known.filter(pc.invert(pc.is_in(known, value_set=found.combine_chunks())))
        if len(missing) > settings.max_missing_videos * len(known):
            too_few.append(
                MissingVideos(
                    source=source.name,
                    root=str(source.root),
                    snapshot=current.name,
                    before=len(known),
                    missing=len(missing),
                    first=pc.min(missing).as_py(),
                )
            )
    return too_few
