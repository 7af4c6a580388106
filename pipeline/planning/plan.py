"""The plan: videos → clips → shards, and for each shard whether it is kept, re-tracked or built, and why.

Which shard a clip goes to is remembered, not computed: a clip that a shard holds stays with that shard, and new clips fill new
shards. So adding, removing or replacing videos touches only the shards concerned. The price is shards that are not full: each
build that adds videos leaves at most one such shard for each source and split, and removed videos leave gaps. Readers do not mind,
since they fetch clips by byte ranges; a build into an empty folder packs them anew. Shards never mix sources or splits.

Clips are an Arrow table throughout: there may be tens of millions. Python only loops over videos and shards.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from manifests.fingerprint import canonical_json, fingerprint_lines
from manifests.rows import Failure
from manifests.tables import FAILURES, table_of
from manifests.wording import pluralise
from pipeline.config import BuildSettings, FrameSettings
from pipeline.failures import Reason
from pipeline.planning.assignment import assign_clips, frames_fingerprints
from pipeline.planning.catalog import Catalog
from pipeline.planning.clip_windows import video_names
from pipeline.planning.existing_shards import ExistingShard, ExistingShards, read_existing_shards
from pipeline.planning.reasons import ChangedShard, describe_settings_change, describe_video_changes

Action = Literal["keep", "retrack", "build"]

UNCHANGED = "nothing changed"
_NEW = "new"
_TRIES = 3
"""How often a shard with failures that may pass is made before it is kept as it is."""


@dataclass(frozen=True)
class PlannedClip:
    """A clip to be: `frames` frames of a video from `start` (index within the video) on, `frames.stride` apart."""

    key: str
    video: int
    start: int
    frames: int


@dataclass(frozen=True)
class PlannedShard:
    """A shard as it should be: `count` clips of the plan's table from row `first` on.

    shard:    the name of the shard to keep, "" if it is to be made: its name then follows from its content
    previous: the shard whose stored frames a re-track reads, "" otherwise
    reuse:    the shard of just this content, damaged or with failures, whose good clips a build takes as they are, "" otherwise
    tries:    how often it will have been made in the hope that failures pass

    The settings are those that decide its content, as canonical JSON.
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
    dropped:  how many shards of the current snapshot nothing asks for now
    stored:   the sources need not be there
    """

    catalog: Catalog
    clips: pa.Table
    shards: tuple[PlannedShard, ...]
    failures: pa.Table
    dropped: int
    known: ExistingShards
    stored: bool

    def clips_of(self, shard: PlannedShard) -> tuple[PlannedClip, ...]:
        """The clips of one shard."""
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
    """Compares what should be with what is. Reads manifests only, no shard and no source.

    With `retry_failed` every shard that something was left out of is built again; with `stored` none is for that. With the names of
    `damaged` shards only those are made again, and all others of the current snapshot are kept as they are.

    Raises PretrackError if two videos have one name.
    """
    known = read_existing_shards(settings.out, damaged)
    names = video_names(catalog.videos)
    assigned = assign_clips(settings, catalog.videos, names, known)
    frames_settings, tracks_settings = (
        canonical_json(settings.frames.of_content()),
        canonical_json(settings.tracks.of_content()),
    )
    digests = frames_fingerprints(assigned, catalog.videos["identity"], frames_settings)
    before = defaultdict[str, list[ExistingShard]](list)
    for shard in known.shards:
        before[shard.row.group].append(shard)
    bounds = assigned.firsts.tolist()
    shards = []
    for group, first, end, digest in zip(
        assigned.groups, bounds[:-1], bounds[1:], digests, strict=True
    ):
        source, split, _ = group.rsplit("-", 2)
        tracks = fingerprint_lines([digest, tracks_settings])
        wanted = PlannedShard(
            "",
            group,
            source,
            split,
            "build",
            "",
            first,
            end - first,
            digest,
            tracks,
            frames_settings,
            tracks_settings,
            "",
            "",
            1,
        )
        current = next((shard for shard in before[group] if shard.current), None)
        if damaged and current and current.row.shard not in damaged:
            shards.append(_kept(wanted, current, UNCHANGED))
        else:
            shards.append(_decide(wanted, before[group], retry_failed, stored))
    shards = _with_reasons(shards, assigned.clips, catalog.videos, names, known, before)
    too_short = _too_short(catalog.videos, assigned.clips, settings.frames)
    failures = pa.concat_tables([catalog.failures, table_of(too_short, FAILURES)])
    dropped = {shard.row.group for shard in known.shards if shard.current} - set(assigned.groups)
    return Plan(catalog, assigned.clips, tuple(shards), failures, len(dropped), known, stored)


def _decide(
    wanted: PlannedShard, before: list[ExistingShard], retry_failed: bool, stored: bool
) -> PlannedShard:
    """What to do for a shard, by the known shards of its group. Its reason stays empty where its content is to change."""
    same = [known for known in before if known.row.tracks_fingerprint == wanted.tracks_fingerprint]
    whole = sorted(
        (known for known in same if known.whole), key=lambda known: (known.passing, known.failures)
    )
    if whole:
        return _tried_again(wanted, whole, retry_failed, stored)
    gone = "the shard is gone or damaged" if same else ""
    wanted = replace(wanted, tries=max((known.row.tries for known in same), default=1))
    with_frames = [
        known
        for known in before
        if known.row.frames_fingerprint == wanted.frames_fingerprint and known.whole
    ]
    for known in with_frames:
        settled = stored or not known.passing or known.row.tries >= _TRIES
        if known.holds_all_frames and settled and not (retry_failed and known.failures):
            reason = gone or describe_settings_change(
                "tracks", known.row.tracks_settings, wanted.tracks_settings
            )
            return replace(
                wanted,
                action="retrack",
                reason=reason,
                previous=known.row.shard,
                tries=known.row.tries,
            )
    if with_frames:
        changed = gone or describe_settings_change(
            "tracks", with_frames[0].row.tracks_settings, wanted.tracks_settings
        )
        left_out = f"{pluralise(with_frames[0].failures, 'failure')} tried again"
        return replace(wanted, reason=f"{changed}, {left_out}", reuse=with_frames[0].row.shard)
    return replace(wanted, reason=gone, reuse=same[0].row.shard if same else "")


def _tried_again(
    wanted: PlannedShard, whole: list[ExistingShard], retry_failed: bool, stored: bool
) -> PlannedShard:
    """A shard that is there, best first, perhaps several times: kept, or built again for what failed."""
    best, tries = whole[0], max(known.row.tries for known in whole)
    again = replace(wanted, tries=tries + 1, reuse=best.row.shard)
    if retry_failed and best.failures:
        return replace(again, reason=f"{pluralise(best.failures, 'failure')} tried again")
    if best.passing and tries < _TRIES and not stored:
        return replace(again, reason=f"{pluralise(best.passing, 'failure')} may pass")
    stayed = (
        f"{pluralise(best.passing, 'failure')} stayed in {tries} tries"
        if best.passing and tries >= _TRIES
        else UNCHANGED
    )
    return _kept(wanted, best, stayed)


def _kept(wanted: PlannedShard, known: ExistingShard, reason: str) -> PlannedShard:
    return replace(
        wanted, shard=known.row.shard, action="keep", reason=reason, tries=known.row.tries
    )


def _with_reasons(
    shards: list[PlannedShard],
    clips: pa.Table,
    videos: pa.Table,
    names: pa.Array,
    known: ExistingShards,
    before: dict[str, list[ExistingShard]],
) -> list[PlannedShard]:
    """Says of each shard that has no reason yet which settings or videos changed."""
    of_source = {shard.row.source: shard for shard in reversed(known.shards) if shard.current}
    reasons: dict[int, str] = {}
    changed: dict[int, ChangedShard] = {}
    for number, shard in enumerate(shards):
        if shard.reason:
            continue
        own = before[shard.group][0] if before[shard.group] else None
        other = own or of_source.get(shard.source)
        if other is None:
            reasons[number] = _NEW
            continue
        frames = describe_settings_change(
            "frames", other.row.frames_settings, shard.frames_settings
        )
        tracks = (
            describe_settings_change("tracks", other.row.tracks_settings, shard.tracks_settings)
            if own
            else ""
        )
        reasons[number] = ", ".join(filter(None, [frames, tracks]))
        if not frames:
            rows = np.unique(clips["video"].slice(shard.first, shard.count).to_numpy())
            changed[number] = ChangedShard(shard.split, frozenset(rows.tolist()), own)
    if changed:
        words = describe_video_changes(videos, names, known, list(changed.values()))
        for (number, replanned), what in zip(changed.items(), words, strict=True):
            why = what or ("source files changed" if replanned.known else _NEW)
            reasons[number] = ", ".join(filter(None, [why, reasons[number]]))
    return [
        replace(shard, reason=reasons.get(number, shard.reason))
        for number, shard in enumerate(shards)
    ]


def _too_short(videos: pa.Table, clips: pa.Table, settings: FrameSettings) -> list[Failure]:
    """The videos that are too short for any clip."""
    without = np.flatnonzero(np.bincount(clips["video"].to_numpy(), minlength=videos.num_rows) == 0)
    rows = (
        videos.select(["source", "video_id", "frames", "cuts"]).take(pa.array(without)).to_pylist()
    )
    return [_failure(row, settings) for row in rows]


def _failure(video: dict[str, Any], settings: FrameSettings) -> Failure:
    cuts = len(video["cuts"] or ())
    shots = f" in {cuts + 1} shots" if cuts else ""
    need = f"a clip needs {settings.min_frames} frames, {settings.stride} apart, of one shot"
    detail = f"{pluralise(video['frames'], 'frame')}{shots}: {need} (frames.min_frames)"
    return Failure(
        source=video["source"],
        video_id=video["video_id"],
        stage="catalog",
        reason=Reason.TOO_SHORT,
        detail=detail,
    )
