"""Say which of the tracks that a build makes no training sample can use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from manifests.wording import pluralise
from pipeline.config import BuildSettings
from shards.clip import Directions
from shards.sample_starts import TRAINER_DEFAULTS, SampleRule, sample_starts

_SELDOM = 0.5
"""An anchor is named if samples start from it in less than this fraction of the clips with it."""


@dataclass(frozen=True)
class ClipLength:
    """How many clips have this number of frames and these anchors."""

    frames: int
    anchors: tuple[int, ...]
    clips: int


@dataclass(frozen=True)
class AnchorUse:
    """What training samples can use of the tracks of clips.

    anchors:       (anchor frame, clips that have it, clips in which a sample can start from it)
    clips:         number of clips; `clips_used` of them have a start for a sample
    used_fraction: the fraction of all tracked frames that lie on a side of their anchor that
                   samples step into; the anchor frames themselves are not counted
    usual_frames:  the most frequent number of frames of a clip, and its `usual_starts`: first and
                   last frame of each stretch that an anchor should lie in
    """

    rule: SampleRule
    anchors: tuple[tuple[int, int, int], ...]
    clips: int
    clips_used: int
    used_fraction: float
    usual_frames: int
    usual_starts: tuple[tuple[int, int], ...]

    @property
    def unreachable(self) -> tuple[int, ...]:
        """The anchors that no sample can start from."""
        return tuple(anchor for anchor, _, used in self.anchors if not used)

    def sentences(self) -> Iterator[str]:
        """Say what is never used and why; yields nothing if every anchor and clip is of use."""
        rule, unreachable = self.rule, self.unreachable
        seldom = [it for it in self.anchors if 0 < it[2] < _SELDOM * it[1]]
        if unreachable:
            noun = "the anchor" if len(unreachable) == 1 else "the anchors"
            yield f"No training sample can start from {noun} {_listed(unreachable)}."
        for anchor, clips, used in seldom:
            yield (
                f"Training samples can start from the anchor {anchor} in only {used:,} of the "
                f"{pluralise(clips, 'clip')} that have it."
            )
        if unreachable or seldom:
            yield (
                f"A sample takes {rule.frames} frames, {_apart(rule)}. In clips of "
                f"{self.usual_frames} frames, the most frequent length, it can start from "
                f"{self._usual()}. Samples use {self.used_fraction:.0%} of the tracked frames: "
                "change tracks.anchors or frames.clip_frames."
            )
        if unused := self.clips - self.clips_used:
            yield (
                f"{unused:,} of {pluralise(self.clips, 'clip')} will never be used in training: "
                f"no anchor has {rule.frames - 1} tracked frames on one side. frames.min_frames="
                f"{rule.frames} or more leaves out clips that are too short."
            )
        if unreachable or seldom or unused:
            yield _assumed(rule)

    def _usual(self) -> str:
        """Put the frames that a sample can start from into words, for the usual clip."""
        if not self.usual_starts:
            return "no frame"
        stretches = (
            f"{first} to {last}" if first < last else str(first)
            for first, last in self.usual_starts
        )
        return f"frames {' or '.join(stretches)}"


def planned_lengths(clips: pa.Table, settings: BuildSettings) -> list[ClipLength]:
    """Count planned clips by length; a short clip goes without the anchors beyond its end."""
    counts = pc.value_counts(clips["frames"].combine_chunks())
    return [
        ClipLength(
            frames, tuple(anchor for anchor in settings.tracks.anchors if anchor < frames), clips
        )
        for frames, clips in sorted(
            (count["values"], count["counts"]) for count in counts.to_pylist()
        )
    ]


def stored_lengths(clips: pa.Table) -> list[ClipLength]:
    """Count the clips of a snapshot's table by length and anchors."""
    texts = pc.binary_join(pc.cast(clips["anchors"], pa.list_(pa.string())), ",")
    grouped = pa.table({"frames": clips["frames"], "anchors": texts}).group_by(
        ["frames", "anchors"]
    )
    return [
        ClipLength(
            row["frames"],
            tuple(int(anchor) for anchor in (row["anchors"] or "").split(",") if anchor),
            row["count_all"],
        )
        for row in grouped.aggregate([([], "count_all")]).to_pylist()
    ]


def measure_use(lengths: Iterable[ClipLength], rule: SampleRule, tracked: Directions) -> AnchorUse:
    """Find what samples can use of the tracks of clips.

    tracked: the directions in which the clips' points are tracked
    """
    having, starting, by_frames = Counter[int](), Counter[int](), Counter[int]()
    clips_used = frames_tracked = frames_used = 0
    for length in lengths:
        starts = sample_starts(length.frames, length.anchors, rule, tracked)
        by_frames[length.frames] += length.clips
        clips_used += length.clips if starts else 0
        having.update(dict.fromkeys(length.anchors, length.clips))
        starting.update(dict.fromkeys({length.anchors[it.anchor] for it in starts}, length.clips))
        sides = {(it.anchor, it.direction) for it in starts}
        for index, anchor in enumerate(length.anchors):
            for direction, frames in ((1, length.frames - 1 - anchor), (-1, anchor)):
                if tracked in ("both", "forward" if direction == 1 else "backward"):
                    frames_tracked += frames * length.clips
                    frames_used += frames * length.clips * ((index, direction) in sides)
    usual = max(by_frames, key=lambda frames: (by_frames[frames], frames), default=0)
    return AnchorUse(
        rule=rule,
        anchors=tuple((anchor, having[anchor], starting[anchor]) for anchor in sorted(having)),
        clips=sum(by_frames.values()),
        clips_used=clips_used,
        used_fraction=frames_used / frames_tracked if frames_tracked else 1.0,
        usual_frames=usual,
        usual_starts=_stretches(usual, rule, tracked),
    )


def _stretches(frames: int, rule: SampleRule, tracked: Directions) -> tuple[tuple[int, int], ...]:
    """Return the stretches of a clip in which any anchor has enough frames on one side."""
    reach = rule.reach_in(frames)
    if reach >= frames:
        return ()
    forward, backward = (0, frames - 1 - reach), (reach, frames - 1)
    if tracked == "forward" or not rule.backward:
        return (forward,)
    if tracked == "backward":
        return (backward,)
    return (forward, backward) if backward[0] > forward[1] + 1 else ((0, frames - 1),)


def _listed(numbers: tuple[int, ...]) -> str:
    """Put numbers into words: "8 and 16"."""
    *others, last = map(str, numbers)
    return f"{', '.join(others)} and {last}" if others else last


def _apart(rule: SampleRule) -> str:
    """Say how far apart the frames of a sample are."""
    if not rule.step:
        return "all the same one"
    return f"{rule.step} apart (less in clips of fewer than {rule.frames * rule.step} frames)"


def _assumed(rule: SampleRule) -> str:
    """Say which training settings were assumed, and how to choose others."""
    assumed = f"This is for data.frames={rule.frames} and data.step={rule.step}"
    defaults = ", the trainer's defaults" if rule == TRAINER_DEFAULTS else ""
    return f"{assumed}{defaults}: --train-frames and --train-step choose others."
