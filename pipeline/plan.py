"""The plan: videos → clips → shards, and for each shard whether it is kept, re-tracked or built, and why.

Which shard a clip goes to is remembered, not computed: a clip that a shard holds stays with that shard, and new clips fill new
shards. So adding, removing or replacing videos touches only the shards concerned, at the price of shards that are not all full.
Shards never mix sources or splits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import pyarrow as pa

from manifests.fingerprint import canonical_json, fingerprint_lines
from manifests.receipt import Receipt, list_receipts, read_receipt
from manifests.snapshot import current_snapshot, open_snapshot
from manifests.tables import FAILURES, table_of
from pipeline.catalog import TOO_SHORT, Catalog
from pipeline.config import BuildSettings, FrameSettings
from pipeline.decode.errors import PASSING
from pipeline.video import Failure
from shards.errors import PretrackError
from shards.files import sizes_in

log = logging.getLogger(__name__)

Action = Literal["keep", "retrack", "build"]

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
    """A shard as it should be. `previous` is the shard whose stored frames a re-track reads, "" otherwise; the settings are those
    that decide its content, as canonical JSON."""

    shard: str
    group: str
    source: str
    split: str
    action: Action
    reason: str
    clips: tuple[PlannedClip, ...]
    frames_fingerprint: str
    tracks_fingerprint: str
    frames_settings: str
    tracks_settings: str
    previous: str


@dataclass(frozen=True)
class Plan:
    """What a build would do. `failures` are those known before it starts; `dropped` counts shards that nothing asks for now."""

    catalog: Catalog
    shards: tuple[PlannedShard, ...]
    failures: pa.Table
    dropped: int

    def count(self, action: Action) -> tuple[int, int]:
        """(shards, clips) with this action."""
        concerned = [shard for shard in self.shards if shard.action == action]
        return len(concerned), sum(len(shard.clips) for shard in concerned)


def make_plan(settings: BuildSettings, catalog: Catalog) -> Plan:
    """Compares what should be with what is. Reads manifests and receipts only, no shard and no source."""
    known = _known_shards(settings)
    groups, too_short = _assign(settings, catalog, known)
    before = defaultdict[str, list[_KnownShard]](list)
    for shard in known:
        before[shard.group].append(shard)
    shards = tuple(_planned(settings, catalog.videos, group, clips, before[group]) for group, clips in sorted(groups.items()))
    current = {shard.group for shard in known if shard.current}
    failures = pa.concat_tables([catalog.failures, table_of(too_short, FAILURES)])
    return Plan(catalog, shards, failures, len(current - groups.keys()))


def clip_windows(frames: int, cuts: Iterable[int], settings: FrameSettings) -> Iterator[tuple[int, int]]:
    """(start, frames) of every clip of a video: windows that lie end to end within each shot.

    A window of n stored frames takes n x stride source frames. What is left at a shot's end becomes a shorter clip if it
    has `min_frames`.
    """
    bounds = [0, *cuts, frames]
    for begin, end in pairwise(bounds):
        stored = (end - begin) // settings.stride
        for first in range(0, stored, settings.clip_frames):
            count = min(settings.clip_frames, stored - first)
            if count >= settings.min_frames:
                yield begin + first * settings.stride, count


def clip_key(source: str, video_id: str, start: int) -> str:
    """A clip's name: readable, unique, and free of the characters that tar readers give a meaning to."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", video_id).strip("_")[-32:]
    digest = hashlib.blake2b(video_id.encode(), digest_size=8).hexdigest()
    return f"{source}-{readable}-{digest}-{start:06d}"


@dataclass(frozen=True)
class _KnownShard:
    """A shard that has a receipt.

    current:          the current snapshot names it
    whole:            its tar is there, of the right size
    holds_all_frames: False if a clip was decoded but could not be tracked: its frames are not in the shard
    passing:          how many of its failures may go well another time
    """

    shard: str
    group: str
    frames_fingerprint: str
    tracks_fingerprint: str
    frames_settings: str
    tracks_settings: str
    planned: tuple[str, ...]
    current: bool
    whole: bool
    holds_all_frames: bool
    passing: int


def _known_shards(settings: BuildSettings) -> list[_KnownShard]:
    """All shards with a receipt, those of the current snapshot first, the newest of the others next."""
    name = current_snapshot(settings.out)
    published = open_snapshot(settings.out, name).shards.column("shard").to_pylist() if name else []
    rank = {shard: number for number, shard in enumerate(published)}
    receipts = []
    for shard in list_receipts(settings.out):
        try:
            receipts.append(read_receipt(settings.out, shard))
        except PretrackError as error:
            log.warning("%s", error)
    receipts.sort(key=lambda receipt: (rank.get(receipt.shard.shard, len(rank)), receipt.shard.shard))
    sizes = sizes_in(settings.out / "shards")
    return [_known(sizes, receipt, receipt.shard.shard in rank) for receipt in receipts]


def _known(sizes: dict[str, int], receipt: Receipt, current: bool) -> _KnownShard:
    row = receipt.shard
    whole = sizes.get(f"{row.shard}.tar") == row.bytes
    return _KnownShard(
        row.shard,
        row.group,
        row.frames_fingerprint,
        row.tracks_fingerprint,
        row.frames_settings,
        row.tracks_settings,
        receipt.planned,
        current,
        whole,
        holds_all_frames=all(failure["stage"] != "track" for failure in receipt.failures),
        passing=sum(failure["reason"] in PASSING for failure in receipt.failures),
    )


def _assign(
    settings: BuildSettings, catalog: Catalog, known: list[_KnownShard]
) -> tuple[dict[str, list[PlannedClip]], list[Failure]]:
    """Clips by the group of the shard they belong to, and the videos that are too short for any clip."""
    frames_settings = canonical_json(settings.frames.of_content())
    homes: dict[str, str] = {}
    for shard in known:
        if shard.frames_settings == frames_settings:
            for key in shard.planned:
                homes.setdefault(key, shard.group)
    groups: dict[str, list[PlannedClip]] = {}
    homeless: dict[str, list[PlannedClip]] = {}
    too_short: list[Failure] = []
    seen: set[str] = set()
    columns = catalog.videos.select(["source", "video_id", "split", "frames", "cuts"]).to_pydict()
    for video, (source, video_id, split, frames, cuts) in enumerate(zip(*columns.values(), strict=True)):
        prefix = f"{source}-{split}-"
        clips = [
            PlannedClip(clip_key(source, video_id, start), video, start, count)
            for start, count in clip_windows(frames, cuts, settings.frames)
        ]
        if not clips:
            too_short.append(_too_short(source, video_id, frames, len(cuts), settings.frames))
        for clip in clips:
            if clip.key in seen:
                raise PretrackError(f"two videos of source {source} are both called {clip.key}: rename one of them ({video_id})")
            seen.add(clip.key)
            home = homes.get(clip.key, "")
            if _prefix(home) == prefix:
                groups.setdefault(home, []).append(clip)
            else:
                homeless.setdefault(prefix, []).append(clip)
    for prefix, clips in sorted(homeless.items()):
        numbers = [int(group.rsplit("-", 1)[1]) for group in {*homes.values(), *groups} if _prefix(group) == prefix]
        first = max(numbers, default=-1) + 1
        size = settings.shards.clips_per_shard
        for number, begin in enumerate(range(0, len(clips), size), first):
            groups[f"{prefix}{number:06d}"] = clips[begin : begin + size]
    return groups, too_short


def _prefix(group: str) -> str:
    """What a group's name has before its number: "co3d-train-"."""
    return group[: group.rfind("-") + 1]


def _too_short(source: str, video_id: str, frames: int, cuts: int, settings: FrameSettings) -> Failure:
    shots = f" in {cuts + 1} shots" if cuts else ""
    need = f"a clip needs {settings.min_frames} frames, {settings.stride} apart, of one shot"
    return Failure(source, video_id, "", "catalog", TOO_SHORT, f"{frames} frames{shots}: {need} (frames.min_frames)")


def _planned(
    settings: BuildSettings, videos: pa.Table, group: str, clips: list[PlannedClip], before: list[_KnownShard]
) -> PlannedShard:
    """One shard of the plan, compared with the known shards of its group.

    A shard with failures that may pass is made again under another name, since a shard once written never changes.
    """
    frames_settings, tracks_settings = (
        canonical_json(settings.frames.of_content()),
        canonical_json(settings.tracks.of_content()),
    )
    clips = sorted(clips, key=lambda clip: (clip.video, clip.start))
    identities = videos.column("identity").take(pa.array([clip.video for clip in clips])).to_pylist()
    lines = [f"{clip.key} {identity} {clip.frames}" for clip, identity in zip(clips, identities, strict=True)]
    frames_fingerprint = fingerprint_lines([frames_settings, *lines])
    tracks_fingerprint = fingerprint_lines([frames_fingerprint, tracks_settings])
    source, split, _ = group.rsplit("-", 2)
    shard, action, reason, previous = _decide(
        group, frames_fingerprint, tracks_fingerprint, frames_settings, tracks_settings, clips, before
    )
    return PlannedShard(
        shard,
        group,
        source,
        split,
        action,
        reason,
        tuple(clips),
        frames_fingerprint,
        tracks_fingerprint,
        frames_settings,
        tracks_settings,
        previous,
    )


def _decide(
    group: str,
    frames_fingerprint: str,
    tracks_fingerprint: str,
    frames_settings: str,
    tracks_settings: str,
    clips: list[PlannedClip],
    before: list[_KnownShard],
) -> tuple[str, Action, str, str]:
    """(the shard's name, action, why in words, shard to read frames from)."""
    same = [known for known in before if known.tracks_fingerprint == tracks_fingerprint]
    whole = sorted((known for known in same if known.whole), key=lambda known: known.passing)
    if whole and not whole[0].passing:
        return whole[0].shard, "keep", "nothing changed", ""
    if len(whole) >= _TRIES:
        return whole[0].shard, "keep", f"{whole[0].passing} failures stayed in {_TRIES} tries", ""
    name = f"{group}-{fingerprint_lines([tracks_fingerprint, str(len(whole))])[:12]}"
    if whole:
        return name, "build", f"{whole[0].passing} failures may pass", ""
    action, reason, previous = _action(frames_fingerprint, frames_settings, tracks_settings, clips, before)
    return name, action, "the shard is gone or cut short" if same else reason, previous


def _action(
    frames_fingerprint: str,
    frames_settings: str,
    tracks_settings: str,
    clips: list[PlannedClip],
    before: list[_KnownShard],
) -> tuple[Action, str, str]:
    """(action, why in words, shard to read frames from), for a shard that is not there."""
    for known in before:
        if known.frames_fingerprint == frames_fingerprint and known.whole and known.holds_all_frames and not known.passing:
            return "retrack", _difference("tracks", known.tracks_settings, tracks_settings), known.shard
    if not before:
        return "build", "new", ""
    if before[0].frames_settings != frames_settings:
        return "build", _difference("frames", before[0].frames_settings, frames_settings), ""
    old, new = set(before[0].planned), {clip.key for clip in clips}
    words = [f"{len(some)} clips {what}" for some, what in ((new - old, "added"), (old - new, "removed")) if some]
    return "build", ", ".join(words) or "source files changed", ""


def _difference(what: str, old: str, new: str) -> str:
    """Which settings differ, in words: "tracks.grid 16 → 24"."""
    before, after = json.loads(old), json.loads(new)
    if before.get("tracker") != after.get("tracker"):
        return f"{what}.tracker {before.get('tracker')} → {after.get('tracker')}"
    names = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    return ", ".join(f"{what}.{name} {before.get(name)} → {after.get(name)}" for name in names)


def plan_reasons(plan: Plan) -> dict[tuple[Action, str], tuple[int, int]]:
    """(shards, clips) by action and reason."""
    shards, clips = Counter[tuple[Action, str]](), Counter[tuple[Action, str]]()
    for shard in plan.shards:
        shards[shard.action, shard.reason] += 1
        clips[shard.action, shard.reason] += len(shard.clips)
    return {reason: (shards[reason], clips[reason]) for reason in shards}
