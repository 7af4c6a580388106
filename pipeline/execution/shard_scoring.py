"""Score the tracks of a shard from what is stored of them: positions and cameras.

New shards and old ones go through the same code, after their tracks are encoded, so that a shard
that is scored later equals one that was scored when it was made.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from manifests.receipt import Receipt, shard_name, shard_path, write_receipt
from manifests.rows import ClipRow, Failure, TrackSummary, clip_row, members_of
from pipeline.config import BuildSettings
from pipeline.execution.build_monitor import BuildMonitor
from pipeline.execution.shard_task import ShardTask, shard_task, task_from_source
from pipeline.failures import Reason
from pipeline.planning.plan import Plan, PlannedShard
from pipeline.ray_cluster import connect, ray_task, results_as_completed
from shards.clip import RENDERED_DATASETS, ClipInfo
from shards.codec import decode_tracks
from shards.errors import ShardError, first_line
from shards.reader import read_clip_members, read_frame_maps
from shards.score_codec import encode_scores
from shards.track_scores import ClipScores, ScoredClip, score_clip
from shards.writer import open_shard_as

_MISFIT_PX = 5.0
"""Poses and tracks of a clip disagree if the median distance is larger than this, in pixels."""
_NAMED_FRAMES = 12
"""Most frames that a note names."""


@dataclass(frozen=True)
class StoredScores:
    """The scores of a clip as they are stored: the member's bytes, the columns, and the notes."""

    data: bytes
    columns: ClipScores
    notes: tuple[Failure, ...]


def score_stored(info: ClipInfo, tracks: Sequence[bytes]) -> StoredScores:
    """Score a clip from its encoded tracks, one part per anchor. Raises ShardError for damage."""
    scored = score_clip(decode_tracks(b"".join(tracks), (None, info.frames, None)), info)
    return StoredScores(encode_scores(scored.tracks), scored.clip, tuple(_notes(info, scored)))


def score_shards(
    todo: Sequence[PlannedShard], plan: Plan, settings: BuildSettings, monitor: BuildMonitor
) -> tuple[dict[str, str], list[PlannedShard]]:
    """Score shards of a plan; return their new names by group, and those to build instead.

    Frames and tracks are copied byte for byte, and no tracker is started. A shard that turns out to
    be damaged is to be built from its source.

    Raises PretrackError if one is damaged and the build must do without its sources.
    """
    if not todo:
        return {}, []
    cluster = connect(settings.ray)
    task = ray_task(_score_or_say_why)
    made: dict[str, str] = {}
    damaged: list[PlannedShard] = []
    calls = (partial(task.remote, shard_task(shard, plan, settings)) for shard in todo)
    clips = sum(shard.count for shard in todo)
    with monitor.scoring(shards=len(todo), clips=clips) as shown:
        for shard, receipt, damage in results_as_completed(calls, limit=2 * cluster.cpus):
            shown.advance()
            if receipt:
                made[shard.group] = receipt.shard.shard
                monitor.shard_scored(receipt)
            else:
                monitor.stored_frames_damaged(shard.group, shard.previous, damage)
                damaged.append(task_from_source(shard, plan, settings).shard)
    return made, damaged


def _score_or_say_why(task: ShardTask) -> tuple[PlannedShard, Receipt | None, str]:
    """Score a shard on a worker: (the shard, its receipt or None, what is damaged or "")."""
    try:
        return task.shard, score_shard(task), ""
    except ShardError as error:
        return task.shard, None, first_line(error)


def score_shard(task: ShardTask) -> Receipt:
    """Write a shard again with scores, copying frames and tracks; then its receipt.

    Raises ShardError if the shard to copy is damaged, OSError as `write_shard` does.
    """
    assert task.scored is not None  # a plan names the shard to score
    started = time.monotonic()
    shard, out, earlier = task.shard, task.settings.out, task.scored
    rows: list[ClipRow] = []
    notes: list[Failure] = []
    with open_shard_as(
        out / "shards", lambda checksum: shard_path(out, shard_name(shard.group, checksum)).name
    ) as writer:
        for row in sorted(earlier.clips, key=lambda row: row.json_offset):
            members = members_of(vars(row))
            previous = shard_path(out, shard.previous)
            data, tracks, *jpegs = read_clip_members(previous, members)
            info = ClipInfo.from_json(data)
            maps = read_frame_maps(previous, members, info)
            parts = _split(tracks, members.anchors)
            scores = score_stored(info, parts)
            written = writer.add(info, parts, tuple(jpegs), scores.data, maps=maps)
            if written.checksum != members.checksum:
                raise ShardError(f"the description of clip {row.key} is not as it was written")
            summary = TrackSummary(tuple(row.anchors), row.points, row.visible_fraction, row.motion)
            rows.append(clip_row("", info, written, summary, scores.columns))
            notes += scores.notes
    name = shard_name(shard.group, writer.checksum)
    receipt = Receipt(
        shard=replace(
            earlier.shard,
            shard=name,
            bytes=writer.size,
            checksum=writer.checksum,
            # Decoding and tracking took what they took when the shard was made.
            write_seconds=time.monotonic() - started,
            scores=task.settings.scores_version(shard.source),
        ),
        clips=tuple(replace(row, shard=name) for row in rows),
        failures=tuple(replace(failure, shard=name) for failure in (*task.failures, *notes)),
        planned=tuple(clip.key for clip in task.clips),
    )
    write_receipt(out, receipt)
    return receipt


def _split(data: bytes, sizes: Sequence[int]) -> tuple[bytes, ...]:
    """Split a tracks member into its anchors' parts. Raises ShardError if they do not fit."""
    if sum(sizes) != len(data):
        raise ShardError(f"its tracks have {len(data)} bytes, and by the tables {sum(sizes)}")
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    return tuple(data[end - size : end] for end, size in zip(ends, sizes, strict=True))


def _notes(info: ClipInfo, scored: ScoredClip) -> Iterator[Failure]:
    """Yield what is wrong with the poses of a clip."""
    if scored.unusable:
        yield _note(
            info,
            Reason.POSES_UNUSABLE,
            f"the poses of {_frames(info, scored.unusable)} are not finite, out of range, singular "
            "or mirrored: their tracks are scored without them",
        )
    if scored.wrong:
        yield _note(
            info,
            Reason.POSES_WRONG,
            f"the poses of {_frames(info, scored.wrong)} do not fit the tracks, which fit those of "
            "the other frames: they are left out of the tracks' scores",
        )
    if info.dataset in RENDERED_DATASETS:
        return  # exact poses disagree with the tracks of points that move, or with wrong tracks
    columns = scored.clip
    medians = {
        "from its epipolar line": columns.epipolar_px,
        "from its triangulated point": columns.reprojection_px,
    }
    for what, median in medians.items():
        if median is not None and median > _MISFIT_PX:
            yield _note(
                info,
                Reason.POSES_DISAGREE,
                f"the median track is {median:.1f} px {what}: most poses are wrong, or most points "
                "move",
            )
            return


def _frames(info: ClipInfo, frames: Sequence[int]) -> str:
    """Name frames of a clip by their numbers in the source."""
    numbers = [str(info.frame_numbers[t]) for t in frames[:_NAMED_FRAMES]]
    more = f" and {len(frames) - len(numbers)} more" if len(frames) > len(numbers) else ""
    noun = "frame" if len(frames) == 1 else "frames"
    return f"{noun} {', '.join(numbers)}{more}"


def _note(info: ClipInfo, reason: Reason, detail: str) -> Failure:
    # The clip is named in the sentence: a row with a clip's key stands for a clip that is missing.
    return Failure(
        source=info.source,
        video_id=info.video_id,
        stage="score",
        reason=reason,
        detail=f"clip {info.key}: {detail}",
    )
