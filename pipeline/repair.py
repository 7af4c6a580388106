"""Repairs a snapshot: makes its damaged shards again, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from manifests.settings import check_settings
from manifests.snapshot import Snapshot
from manifests.wording import counted
from pipeline.build import Built, build
from pipeline.catalog import changed_videos
from pipeline.config import BuildSettings
from pipeline.progress import Progress
from pipeline.verify import Problem
from shards.errors import PretrackError


def repair(snapshot: Snapshot, problems: Sequence[Problem], progress: Progress) -> Built:
    """Makes the shards with problems again, with the settings of the snapshot. Clips that are still good in them are taken as they
    are, and the others come from their source.

    Raises PretrackError if a video that is needed has changed since: what it gives now is another clip.
    """
    damaged = {problem.shard for problem in problems}
    settings = check_settings(BuildSettings, snapshot.settings, f"the settings of snapshot {snapshot.name}")
    settings = settings.model_copy(update={"out": snapshot.out})
    clips = snapshot.clips.filter(pc.is_in(snapshot.clips["shard"], value_set=pc.cast(list(damaged), "string")))
    needed = set(zip(clips["source"].to_pylist(), clips["video_id"].to_pylist(), strict=True))
    if changed := changed_videos(settings, snapshot.videos, needed, progress):
        raise PretrackError(
            f"{counted(len(changed), 'video')} of the damaged shards changed since they were built (the first: {changed[0]}): "
            "run 'pretrack build', which makes their clips anew"
        )
    return build(settings, progress, stored=True, damaged=damaged)
