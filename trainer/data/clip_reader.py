"""Read one clip: draw which frames a sample shows, and read their bytes from the shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from shards.clip import Directions, read_cameras
from shards.codec import decode_frames
from shards.epipolar import read_poses
from shards.errors import ShardError
from shards.files import Location
from shards.score_codec import decode_scores
from trainer.data.augment import choose_frames, choose_transforms
from trainer.data.clip_table import Clip
from trainer.data.control import control_tracks
from trainer.data.encoded_clip import EncodedClip
from trainer.data.frames_by_angle import choose_frames_by_angle
from trainer.data.score_rule import ALL_TRACKS, ScoreRule
from trainer.data.settings import DataSettings

ReadMembers = Callable[[Location, Sequence[int], Sequence[int]], list[bytes]]
"""(shard, offsets, sizes) → the bytes of each member, as `shards.reader.read_members`."""


def read_clip(
    clip: Clip,
    shard: Location,
    settings: DataSettings,
    random: np.random.Generator,
    *,
    points: int,
    tracked: Directions,
    read_members: ReadMembers,
    by_score: ScoreRule = ALL_TRACKS,
) -> EncodedClip:
    """Draw which frames and tracks a sample shows of a clip with N = `points`, and read them.

    tracked:  the directions in which its points were tracked
    by_score: how tracks count by their scores, where the clip has any

    Raises ShardError for members that cannot be read, for damaged tracks, and for tables that do
    not fit the clip.
    """
    anchors, cameras = clip.anchors.tolist(), None
    if settings.frames_by == "angle":
        # Cameras say which frames to read, so they are read first.
        [description] = read_members(shard, [clip.json_offset], [clip.json_size])
        cameras = read_cameras(description, range(clip.frames))
        poses = read_poses(cameras, clip.frames)
        anchor, numbers = choose_frames_by_angle(poses, anchors, settings, random, tracked=tracked)
        cameras = [cameras[number] for number in numbers]
    else:
        anchor, numbers = choose_frames(clip.frames, anchors, settings, random, tracked=tracked)
    transforms = choose_transforms(clip.width, clip.height, settings, random)
    offsets, sizes = _tracks_member(clip, anchor)
    # With a short step a frame can appear several times in a sample: it is read once.
    frames = sorted(set(numbers))
    _check_frames(clip, frames)
    offsets += clip.frame_offsets[frames].tolist()
    sizes += clip.frame_sizes[frames].tolist()
    # What only some settings need comes last.
    scored = by_score.needs_scores and clip.scores_size > 0
    if scored:
        offsets.append(clip.scores_offset)
        sizes.append(clip.scores_size)
    if settings.cameras and cameras is None:
        offsets.append(clip.json_offset)
        sizes.append(clip.json_size)
    tracks, *images = read_members(shard, offsets, sizes)
    if settings.cameras and cameras is None:
        cameras = read_cameras(images.pop(), numbers)
    positions, visibility, confidence = decode_frames(
        tracks, int(clip.anchors[anchor]), numbers, (clip.frames, points)
    )
    weights = None
    if scored:
        scores = decode_scores(images.pop(), (len(clip.anchors), points)).epipolar[anchor]
        visibility[:, by_score.left_out(scores)] = 0
        weights = by_score.weights(scores)
    positions, visibility, confidence = control_tracks(
        (positions, visibility, confidence), settings, random
    )
    return EncodedClip(
        key=clip.key,
        shard=str(shard),
        size=(clip.width, clip.height),
        transforms=transforms,
        images=[images[frames.index(number)] for number in numbers],
        positions=positions,
        visibility=visibility,
        confidence=confidence,
        random=random,
        cameras=cameras,
        track_weights=weights,
    )


@contextmanager
def named_clip(key: str, shard: str) -> Iterator[None]:
    """Add the clip's key, its shard and what to run to the message of a ShardError."""
    try:
        yield
    except ShardError as error:
        hint = "" if "pretrack verify" in str(error) else ": run 'pretrack verify'"
        raise ShardError(f"clip {key} in {shard}: {error}{hint}") from error


def _check_frames(clip: Clip, frames: list[int]) -> None:
    last = min(len(clip.frame_offsets), len(clip.frame_sizes)) - 1
    if frames[0] < 0 or frames[-1] > last:
        raise ShardError(f"the clips table has no offsets and sizes for all of the frames {frames}")


def _tracks_member(clip: Clip, anchor: int) -> tuple[list[int], list[int]]:
    """Return offset and size of the part of the tracks member that holds one anchor's tracks."""
    if len(clip.anchor_sizes) != len(clip.anchors):
        raise ShardError(
            f"the clips table has track sizes for {len(clip.anchor_sizes)} anchors, and the clip "
            f"has {len(clip.anchors)}"
        )
    # The anchors' tracks lie in the member one after the other.
    *before, size = clip.anchor_sizes[: anchor + 1].tolist()
    return [clip.tracks_offset + sum(before)], [size]
