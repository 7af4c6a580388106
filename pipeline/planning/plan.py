"""Plan a build: for each shard, whether to keep, score, re-track or build it, and why.

The shard that a clip goes to is remembered, not computed: a clip that a shard holds stays with that
shard, and new clips fill new shards. So adding, removing or replacing videos touches only the
shards concerned. The price is shards that are not full: each build that adds videos leaves at most
one such shard per source and split, and removed videos leave gaps. This costs readers nothing,
since they fetch clips by byte ranges, and a build into an empty folder packs the clips densely
again. Shards never mix sources or splits.

Clips are an Arrow table throughout: there may be tens of millions. Python only loops over videos
and shards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from manifests.fingerprint import canonical_json, fingerprint_lines
from manifests.rows import Failure
from manifests.tables import FAILURES, table_of
from manifests.wording import pluralise
from pipeline.config import BuildSettings, FrameSettings
from pipeline.failures import Reason
from pipeline.planning.assignment import Assignment, assign_clips, frames_fingerprints
from pipeline.planning.catalog import Catalog
from pipeline.planning.clip_windows import video_names
from pipeline.planning.existing_shards import ExistingShard, ExistingShards, read_existing_shards
from pipeline.planning.missing_videos import MissingVideos, missing_videos
from pipeline.planning.reasons import ChangedShard, describe_settings_change, describe_video_changes

Action = Literal["keep", "score", "retrack", "build"]

UNCHANGED = "nothing changed"
_NEW = "new"
_NOT_SCORED = "tracks not scored yet"
_TRIES = 3
"""How often a shard with transient failures is made before it is kept as it is."""


@dataclass(frozen=True)
class PlannedClip:
    """A clip to make: `frames` frames of a video, `frames.stride` apart.

    video: row of the videos table
    start: index of the first frame within the video
    """

    key: str
    video: int
    start: int
    frames: int


@dataclass(frozen=True)
class PlannedShard:
    """A shard as it should be: `count` clips of the plan's table from row `first` on.

    shard:    the name of the shard to keep; "" for one to make, whose name depends on its content
    group:    its name without the checksum of its content
    previous: the shard whose stored frames a re-track reads, or whose tracks are scored; ""
              otherwise
    reuse:    an earlier shard of the same content, damaged or with failures, whose intact clips a
              build copies; "" otherwise
    tries:    how often it will have been made in the hope that transient failures pass
    frames_settings, tracks_settings: those that decide its content, as canonical JSON
    """

    shard: str
    group: str
    source: str
    split: str
    action: Action
    reason: str
    first: int
    count: int
    frames_fingerprint: str
    tracks_fingerprint: str
    frames_settings: str
    tracks_settings: str
    previous: str
    reuse: str
    tries: int


@dataclass(frozen=True)
class Plan:
    """What a build would do.

    clips:    every clip (table PLANNED_CLIPS), shard by shard
    failures: those known before the build starts
    dropped:  number of shards of the current snapshot that no clip is left for
    missing:  the sources that find far fewer videos than the current snapshot has
    existing: the shards of the output folder
    stored:   the build must do without its sources
    """

    catalog: Catalog
    clips: pa.Table
    shards: tuple[PlannedShard, ...]
    failures: pa.Table
    dropped: int
    missing: tuple[MissingVideos, ...]
    existing: ExistingShards
    stored: bool

    def clips_of(self, shard: PlannedShard) -> tuple[PlannedClip, ...]:
        """Return the clips of one shard."""
        return tuple(
            PlannedClip(**row) for row in self.clips.slice(shard.first, shard.count).to_pylist()
        )


def make_plan(
    settings: BuildSettings,
    catalog: Catalog,
    retry_failed: bool = False,
    stored: bool = False,
    damaged: Collection[str] = (),
) -> Plan:
    """Compare what should exist with what does. Reads tables and receipts, no shard and no source.

    retry_failed: build every shard again that something was left out of
    stored:       the build must do without its sources, so no shard is built to retry failures
    damaged:      names of damaged shards: only these are made again, and all other shards of the
                  current snapshot are kept as they are

    Raises PretrackError if two videos have the same name.
    """
    # Which clips there should be, and which shard each belongs to.
    existing = read_existing_shards(settings.out, damaged)
    names = video_names(catalog.videos)
    assigned = assign_clips(settings, catalog.videos, names, existing)
    by_group = defaultdict[str, list[ExistingShard]](list)
    for shard in existing.shards:
        by_group[shard.row.group].append(shard)
    # What to do for each shard.
    shards = []
    for target in _targets(assigned, catalog.videos["identity"], settings):
        candidates = by_group[target.group]
        current = next((shard for shard in candidates if shard.current), None)
        if damaged and current and current.row.shard not in damaged:
            shards.append(_kept(target, current, UNCHANGED))
        else:
            version = settings.scores_version(target.source)
            decided = _decide(
                target, candidates, retry_failed=retry_failed, stored=stored, version=version
            )
            scored = _scored(decided, candidates, version) if settings.scores else decided
            shards.append(scored)
    # Why, for the shards whose content changes.
    shards = _with_reasons(
        shards,
        clips=assigned.clips,
        videos=catalog.videos,
        names=names,
        existing=existing,
        by_group=by_group,
    )
    too_short = table_of(_too_short(catalog.videos, assigned.clips, settings.frames), FAILURES)
    current_groups = {shard.row.group for shard in existing.shards if shard.current}
    return Plan(
        catalog=catalog,
        clips=assigned.clips,
        shards=tuple(shards),
        failures=pa.concat_tables([catalog.failures, too_short]),
        dropped=len(current_groups - set(assigned.groups)),
        missing=tuple(missing_videos(settings, catalog, existing.current)),
        existing=existing,
        stored=stored,
    )


def _targets(
    assigned: Assignment, identities: pa.ChunkedArray, settings: BuildSettings
) -> Iterator[PlannedShard]:
    """Yield the shard that each group should have, as a new build without a reason yet."""
    frames_settings = canonical_json(settings.frames.of_content())
    tracks_settings = canonical_json(settings.tracks.of_content())
    fingerprints = frames_fingerprints(assigned, identities, frames_settings)
    bounds = pairwise(assigned.firsts.tolist())
    for group, (first, end), fingerprint in zip(assigned.groups, bounds, fingerprints, strict=True):
        source, split, _ = group.rsplit("-", 2)
        yield PlannedShard(
            shard="",
            group=group,
            source=source,
            split=split,
            action="build",
            reason="",
            first=first,
            count=end - first,
            frames_fingerprint=fingerprint,
            tracks_fingerprint=fingerprint_lines([fingerprint, tracks_settings]),
            frames_settings=frames_settings,
            tracks_settings=tracks_settings,
            previous="",
            reuse="",
            tries=1,
        )


def _decide(
    target: PlannedShard,
    candidates: list[ExistingShard],
    *,
    retry_failed: bool,
    stored: bool,
    version: int,
) -> PlannedShard:
    """Decide what to do for a shard, given the existing shards of its group.

    version: that of the scores that its tracks should have

    The reason stays empty if the shard's content changes: `_with_reasons` fills it in.
    """
    # 1. A shard of the same frames and tracks exists: keep it, or build it again for its failures.
    same = [s for s in candidates if s.row.tracks_fingerprint == target.tracks_fingerprint]
    whole = [shard for shard in same if shard.whole]
    if whole:
        whole.sort(key=lambda it: (it.transient, it.failures, it.row.scores != version))
        return _keep_or_retry(target, whole, retry_failed, stored)
    lost = "the shard is gone or damaged" if same else ""
    target = replace(target, tries=max((shard.row.tries for shard in same), default=1))
    # 2. A whole shard has the frames: track them again, unless the build retries missing frames.
    with_frames = [
        shard
        for shard in candidates
        if shard.row.frames_fingerprint == target.frames_fingerprint and shard.whole
    ]
    for shard in with_frames:
        # A re-track copies stored frames, so it cannot bring back frames that failed to decode.
        settled = stored or not shard.transient or shard.row.tries >= _TRIES
        if shard.holds_all_frames and settled and not (retry_failed and shard.failures):
            return replace(
                target,
                action="retrack",
                reason=lost or _tracks_change(shard, target),
                previous=shard.row.shard,
                tries=shard.row.tries,
            )
    if with_frames:
        changed = lost or _tracks_change(with_frames[0], target)
        retried = f"{pluralise(with_frames[0].failures, 'failure')} tried again"
        return replace(target, reason=f"{changed}, {retried}", reuse=with_frames[0].row.shard)
    # 3. Build from the source, copying what is intact of a damaged shard.
    return replace(target, reason=lost, reuse=same[0].row.shard if same else "")


def _tracks_change(shard: ExistingShard, target: PlannedShard) -> str:
    return describe_settings_change("tracks", shard.row.tracks_settings, target.tracks_settings)


def _keep_or_retry(
    target: PlannedShard, whole: list[ExistingShard], retry_failed: bool, stored: bool
) -> PlannedShard:
    """Keep the best of the existing shards of the same content, or build it again for its failures.

    `whole` is not empty, and sorted: fewest transient failures first, then fewest failures.
    """
    best, tries = whole[0], max(shard.row.tries for shard in whole)
    again = replace(target, tries=tries + 1, reuse=best.row.shard)
    if retry_failed and best.failures:
        return replace(again, reason=f"{pluralise(best.failures, 'failure')} tried again")
    # Retrying needs the sources, and some failures stay however often they are retried.
    transient = pluralise(best.transient, "failure")
    if best.transient and tries < _TRIES and not stored:
        return replace(again, reason=f"{transient} may pass")
    gave_up = best.transient and tries >= _TRIES
    return _kept(target, best, f"{transient} stayed in {tries} tries" if gave_up else UNCHANGED)


def _kept(target: PlannedShard, shard: ExistingShard, reason: str) -> PlannedShard:
    return replace(
        target, shard=shard.row.shard, action="keep", reason=reason, tries=shard.row.tries
    )


def _scored(decided: PlannedShard, candidates: list[ExistingShard], version: int) -> PlannedShard:
    """Score a shard that would be kept, if its tracks have no scores of this version."""
    kept = next((shard for shard in candidates if shard.row.shard == decided.shard), None)
    if kept is None or kept.row.scores == version:
        return decided
    reason = _NOT_SCORED if kept.row.scores is None else "scored by another version"
    return replace(decided, shard="", action="score", reason=reason, previous=kept.row.shard)


def _with_reasons(
    shards: list[PlannedShard],
    *,
    clips: pa.Table,
    videos: pa.Table,
    names: pa.Array,
    existing: ExistingShards,
    by_group: dict[str, list[ExistingShard]],
) -> list[PlannedShard]:
    """Fill in which settings or videos changed, for the shards that have no reason yet."""
    of_source = {shard.row.source: shard for shard in reversed(existing.shards) if shard.current}
    reasons: dict[int, str] = {}
    changed: dict[int, ChangedShard] = {}
    for number, shard in enumerate(shards):
        if shard.reason:
            continue
        # Settings: compared with the group's earlier shard, else with any shard of the source.
        predecessor = by_group[shard.group][0] if by_group[shard.group] else None
        reference = predecessor or of_source.get(shard.source)
        if reference is None:
            reasons[number] = _NEW
            continue
        frames = describe_settings_change(
            "frames", reference.row.frames_settings, shard.frames_settings
        )
        tracks = _tracks_change(predecessor, shard) if predecessor else ""
        reasons[number] = ", ".join(filter(None, [frames, tracks]))
        if not frames:  # then videos changed: described below, for all shards at once
            rows = np.unique(clips["video"].slice(shard.first, shard.count).to_numpy())
            changed[number] = ChangedShard(shard.split, frozenset(rows.tolist()), predecessor)
    # Videos: one pass over the tables for all changed shards.
    if changed:
        descriptions = describe_video_changes(videos, names, existing, list(changed.values()))
        for (number, shard_change), description in zip(changed.items(), descriptions, strict=True):
            fallback = "source files changed" if shard_change.predecessor else _NEW
            reasons[number] = ", ".join(filter(None, [description or fallback, reasons[number]]))
    return [
        replace(shard, reason=reasons.get(number, shard.reason))
        for number, shard in enumerate(shards)
    ]


def _too_short(videos: pa.Table, clips: pa.Table, settings: FrameSettings) -> list[Failure]:
    """Return a failure for each video that is too short for any clip."""
    counts = np.bincount(clips["video"].to_numpy(), minlength=videos.num_rows)
    columns = videos.select(["source", "video_id", "frames", "cuts"])
    rows = columns.take(pa.array(np.flatnonzero(counts == 0))).to_pylist()
    return [_too_short_failure(row, settings) for row in rows]


def _too_short_failure(video: dict[str, Any], settings: FrameSettings) -> Failure:
    cuts = len(video["cuts"] or ())
    shots = f" in {cuts + 1} shots" if cuts else ""
    return Failure(
        source=video["source"],
        video_id=video["video_id"],
        stage="catalog",
        reason=Reason.TOO_SHORT,
        detail=f"{pluralise(video['frames'], 'frame')}{shots}: a clip needs {settings.min_frames} "
        f"frames, {settings.stride} apart, of one shot (frames.min_frames)",
    )
