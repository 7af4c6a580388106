"""Clips of a snapshot as training samples: a sample follows from (snapshot, seed, pass, index) alone, a place from a count."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from manifests.snapshot import Snapshot
from shards.bucket import Url
from shards.codec import decode_frames
from shards.errors import ShardError
from shards.files import Location
from shards.reader import read_members
from trainer.config import DataSettings
from trainer.data.augment import choose_frames, choose_transforms
from trainer.data.batch import PackedBatch, Sample, first_of
from trainer.data.clip_table import Clip, choose_clips, mixed_groups
from trainer.data.member_cache import MemberCache
from trainer.data.sampler import ClipSampler, Item

logger = logging.getLogger(__name__)

SUBSTITUTES = 10
"""With `on_error: skip`: clips in a row that may be unreadable before the data as a whole is held to be at fault."""
REQUESTS = 8
"""Clips of a batch that a worker reads from a bucket at the same time."""


class ClipDataset(Dataset[Sample]):
    """The clips of one or more snapshots that fit the settings. Indexed by (pass, index); the same item is always the same sample.

    Raises PretrackError if nothing fits, or if clips differ in their number of points. A clip that cannot be read raises ShardError
    with its key when it is asked for, or gives another one, as `on_error` says.
    """

    def __init__(self, snapshots: Sequence[Snapshot], settings: DataSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.clips = choose_clips(snapshots, settings)
        self.points: int = self.clips.table["points"][0].as_py()
        self.groups = mixed_groups(self.clips, snapshots, settings.weights)
        self.snapshots = [
            Snapshot(s.out, s.name) for s in snapshots
        ]  # without the tables that they have read
        self.remote = any(isinstance(s.out, Url) for s in snapshots)
        self._cache = (
            MemberCache(settings.cache.folder, settings.cache.gb)
            if settings.cache and self.remote
            else None
        )

    @cached_property
    def identity(self) -> str:
        """A digest of which clips these are, and in what order."""
        return self.clips.identity

    def order(self, batch_size: int, rank: int = 0, world: int = 1, start: int = 0) -> ClipSampler:
        """The order in which a rank trains on them, mixed and shuffled as the settings say. Raises PretrackError."""
        window = self.settings.shuffle_shards
        shards = self.clips.shards if window else None
        return ClipSampler(
            len(self),
            batch_size,
            self.seed,
            rank,
            world,
            start,
            groups=self.groups,
            shards=shards,
            window=window,
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: Item) -> Sample:
        batch = self.batch([item])
        for sentence in batch.pop(
            "left_out", ()
        ):  # other loaders would not know what to do with it
            logger.warning("left out: %s", sentence)
        return first_of(batch)

    def __getitems__(self, items: list[Item]) -> list[Sample]:
        return [self[item] for item in items]

    def batch(self, items: Sequence[Item]) -> Sample:
        """The samples of items, together. Raises ShardError."""
        return self.decode(items).sample(self.settings)

    def decode(self, items: Sequence[Item], memory: Tensor | None = None) -> PackedBatch:
        """The samples of items as they come from the shards, in `memory` (uint8, `memory_of(len(items))` of it) if that is given.

        Raises ShardError.
        """
        batch = self.empty(len(items), memory)
        clips = [self.fill(batch, place, item) for place, item in enumerate(items)]
        if self.remote:  # several at a time: most of it is waiting
            running = [self._threads.submit(_to_the_end, clip) for clip in clips]
            wait(running)  # also where one fails: the others write to the batch's memory
            for future in running:
                future.result()
            return batch
        for clip in clips:  # all are read, then all are decoded, each step with what it needs in the processor's caches
            next(clip, None)
        for clip in clips:
            _to_the_end(clip)
        return batch

    def empty(self, clips: int, memory: Tensor | None = None) -> PackedBatch:
        """A batch of so many clips to be filled."""
        s = self.settings
        return PackedBatch.empty(
            clips, s.frames, s.size, self.points, s.colour.student_only, memory
        )

    def memory_of(self, clips: int) -> int:
        """Bytes that a decoded batch of so many clips takes."""
        s = self.settings
        return PackedBatch.bytes_of(clips, s.frames, s.size, self.points, s.colour.student_only)

    def fill(self, batch: PackedBatch, place: int, item: Item) -> Iterator[None]:
        """Puts an item's clip, or one in its stead, in its place, in two steps: read it and unpack its tracks; decode its images.

        Raises ShardError on the way.
        """
        turn, index = item
        if self.settings.on_error == "stop":
            yield from self._read(batch, place, turn, index)
            return
        for candidate in self._candidates(turn, index):
            try:
                yield from self._read(batch, place, turn, candidate)
                return
            except ShardError as error:
                batch.left_out[place].append(str(error))
        failed = batch.left_out[place]
        raise ShardError(f"{len(failed)} clips in a row could not be read, the last: {failed[-1]}")

    def _candidates(self, turn: int, index: int) -> Iterator[int]:
        """The clip itself, then some drawn from its group, or from all where there are none."""
        yield index
        group = next(
            (group.clips for group in self.groups if index in group.clips), np.arange(len(self))
        )
        yield from (
            np.random.default_rng([self.seed, turn, index, 2]).choice(group, SUBSTITUTES).tolist()
        )

    def _read(self, batch: PackedBatch, place: int, turn: int, index: int) -> Iterator[None]:
        clip = self.clips[index]
        path = self.snapshots[clip.folder].shard_path(clip.shard)
        random = np.random.default_rng([self.seed, turn, index])
        try:
            yield from self._decode(batch, place, clip, path, random)
        except ShardError as error:
            hint = "" if "pretrack verify" in str(error) else ": run 'pretrack verify'"
            raise ShardError(f"clip {clip.key} in {path}: {error}{hint}") from error

    def _decode(
        self,
        batch: PackedBatch,
        place: int,
        clip: Clip,
        path: Location,
        random: np.random.Generator,
    ) -> Iterator[None]:
        s = self.settings
        anchor, numbers = choose_frames(clip.frames, clip.anchors.tolist(), s, random)
        views = choose_transforms(clip.width, clip.height, s, random)
        packed, *images = self._members(clip, path, anchor, numbers)
        batch.follow(
            place,
            views,
            *decode_frames(packed, int(clip.anchors[anchor]), numbers, (clip.frames, self.points)),
        )
        yield
        batch.show(place, views, images, (clip.width, clip.height), s, random)
        batch.keys[place] = clip.key

    def _members(self, clip: Clip, path: Location, anchor: int, numbers: list[int]) -> list[bytes]:
        """The packed tracks of an anchor and the images of frames; a frame that is wanted several times is read once."""
        frames = sorted(set(numbers))
        last = min(len(clip.frame_offsets), len(clip.frame_sizes)) - 1
        if frames[0] < 0 or frames[-1] > last:
            raise ShardError(f"the tables do not tell where frames {frames} lie")
        if len(clip.anchor_sizes) != len(clip.anchors):
            raise ShardError(
                f"the tables tell where the tracks of {len(clip.anchor_sizes)} of {len(clip.anchors)} anchors lie"
            )
        *before, size = clip.anchor_sizes[: anchor + 1].tolist()
        offsets = [clip.tracks_offset + sum(before), *clip.frame_offsets[frames].tolist()]
        sizes = [size, *clip.frame_sizes[frames].tolist()]
        packed, *images = (self._cache.read if self._cache else read_members)(path, offsets, sizes)
        return [packed, *(images[frames.index(number)] for number in numbers)]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(REQUESTS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_threads"}


def _to_the_end(steps: Iterator[None]) -> None:
    for _ in steps:
        pass
