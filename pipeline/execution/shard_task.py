"""Collect from the plan what a worker needs to make one shard."""

from __future__ import annotations

from dataclasses import dataclass, replace

from manifests.receipt import Receipt
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
    failures: what was left out of the existing shard whose frames or clips are copied, without the
              notes on poses: scoring makes them again
    stored:   where the members of each clip of the shard `shard.reuse` lie, by the clip's key
    scored:   the rows of the shard whose tracks are to be scored, None for other actions
    """

    shard: PlannedShard
    clips: tuple[PlannedClip, ...]
    videos: dict[int, VideoRow]
    failures: tuple[Failure, ...]
    stored: dict[str, ClipMembers]
    settings: BuildSettings
    scored: Receipt | None = None


def shard_task(shard: PlannedShard, plan: Plan, settings: BuildSettings) -> ShardTask:
    """Collect the clips of a shard, and the videos and stored clips that they come from."""
    clips = plan.clips_of(shard)
    rows = sorted({clip.video for clip in clips}) if shard.action == "build" else []
    failures = plan.existing.failures_of(shard.previous or shard.reuse)
    return ShardTask(
        shard=shard,
        clips=clips,
        videos={row: _video(plan, row) for row in rows},
        failures=tuple(failure for failure in failures if failure.stage != "score"),
        stored=plan.existing.members_of(shard.reuse) if shard.reuse else {},
        settings=settings,
        scored=plan.existing.receipt_of(shard.previous) if shard.action == "score" else None,
    )


def task_from_source(shard: PlannedShard, plan: Plan, settings: BuildSettings) -> ShardTask:
    """Turn a re-track or scoring into a build, because what is stored is damaged.

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
