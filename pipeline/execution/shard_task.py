"""Collect from the plan what a worker needs to make one shard."""

from __future__ import annotations

from dataclasses import dataclass, replace

from manifests.rows import Failure, VideoRow
from pipeline.config import BuildSettings
from pipeline.planning.plan import Plan, PlannedClip, PlannedShard
from shards.errors import PretrackError
from shards.writer import ClipMembers


@dataclass(frozen=True)
class ShardTask:
    """A shard to make, sent to workers whole.

    clips:    the clips that it is to hold
    videos:   the videos of a shard to build, by their row in the plan's videos table
    failures: what was left out of the existing shard whose frames or clips are copied
    stored:   where the members of each clip of the shard `shard.reuse` lie, by the clip's key
    """

    shard: PlannedShard
    clips: tuple[PlannedClip, ...]
    videos: dict[int, VideoRow]
    failures: tuple[Failure, ...]
    stored: dict[str, ClipMembers]
    settings: BuildSettings


def shard_task(shard: PlannedShard, plan: Plan, settings: BuildSettings) -> ShardTask:
    """Collect the clips of a shard, and the videos and stored clips that they come from."""
    clips = plan.clips_of(shard)
    rows = sorted({clip.video for clip in clips}) if shard.action == "build" else []
    return ShardTask(
        shard=shard,
        clips=clips,
        videos={row: _video(plan, row) for row in rows},
        failures=plan.existing.failures_of(shard.previous or shard.reuse),
        stored=plan.existing.members_of(shard.reuse) if shard.reuse else {},
        settings=settings,
    )


def task_from_source(shard: PlannedShard, plan: Plan, settings: BuildSettings) -> ShardTask:
    """Turn a re-track into a build, because the stored frames are damaged.

    Intact clips of the damaged shard are still copied. Raises PretrackError if the build must do
    without its sources.
    """
    if plan.stored:
        raise PretrackError(
            f"the frames of {shard.previous} are damaged: build without '--stored', from the source"
        )
    built = replace(shard, action="build", previous="", reuse=shard.previous)
    return shard_task(built, plan, settings)


def _video(plan: Plan, row: int) -> VideoRow:
    # `take` would join all chunks of each column first, at every call.
    (fields,) = plan.catalog.videos.slice(row, 1).to_pylist()
    return VideoRow.from_fields(fields)
