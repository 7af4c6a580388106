"""Clips of snapshots as training samples: select, read, decode.

A sample follows from (snapshot, seed, pass, clip) alone, and a position in a run from a count of
batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from manifests.snapshot import Snapshot
from shards import jpeg
from shards.bucket import Url
from shards.errors import PretrackError, ShardError
from shards.reader import read_members
from trainer.data.augment import largest_box
from trainer.data.batch import Batch, first_item
from trainer.data.clip_reader import named_clip, read_clip
from trainer.data.clip_selection import check_scores, choose_clips, mixed_groups
from trainer.data.control import check_control
from trainer.data.encoded_clip import EncodedClip, decode_clip
from trainer.data.footage import Footage, footage_of
from trainer.data.member_cache import MemberCache
from trainer.data.packed_batch import BatchShape, PackedBatch
from trainer.data.sampler import ClipSampler, SampleIndex
from trainer.data.score_rule import ScoreRule
from trainer.data.settings import DataSettings

logger = logging.getLogger(__name__)

SUBSTITUTES = 10
"""With `on_error: skip`: clips that are tried in place of an unreadable one before reading fails.
That many failures in a row mean that the dataset is at fault, not a clip."""
REQUESTS = 8
"""Clips of a batch that a worker reads from a bucket at the same time."""


class ClipDataset(Dataset[Batch]):
    """The clips of one or more snapshots that fit the settings.

    Indexed by (pass, clip), see `SampleIndex`; the same index always gives the same sample, as a
    `Batch` without the axis B. `Loader` reads whole batches.

    max_epipolar_px, epipolar_weight_px: how tracks count by their scores (`TrackFilterSettings`)

    Raises PretrackError if no clip fits, if clips differ in their number of points, if their tracks
    count by their scores and none has any, or if `data.control` does not suit them. Reading
    an unreadable clip raises ShardError with its key, or replaces the clip, as `on_error` says.
    """

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        settings: DataSettings,
        seed: int,
        max_epipolar_px: float | None = None,
        epipolar_weight_px: float | None = None,
    ) -> None:
        self.settings, self.seed = settings, seed
        self.by_score = ScoreRule(max_epipolar_px, epipolar_weight_px)
        self.clips = choose_clips(snapshots, settings)
        self.points: int = self.clips.table["points"][0].as_py()
        check_control(settings, self.points, self.by_score)
        if self.by_score.needs_scores:
            check_scores(self.clips, snapshots, self.by_score)
        self.groups = mixed_groups(self.clips, snapshots, settings.weights)
        # Opened again, since those passed keep the tables that they have read in memory.
        self.snapshots = [Snapshot(s.out, s.name) for s in snapshots]
        self.tracked = [s.tracked for s in snapshots]
        self.remote = any(isinstance(s.out, Url) for s in snapshots)
        self._cache = (
            MemberCache(settings.cache.folder, settings.cache.gb)
            if settings.cache and self.remote
            else None
        )

    @cached_property
    def identity(self) -> str:
        """A digest of the clips and their order."""
        return self.clips.identity

    @cached_property
    def footage(self) -> Footage:
        """Names of what the clips show."""
        return footage_of(self.clips.table)

    def sampler(
        self, batch_size: int, rank: int = 0, world: int = 1, start: int = 0
    ) -> ClipSampler:
        """Make the batch sampler of a rank, mixed and shuffled as the settings say.

        Raises PretrackError if ranks cannot share a batch, or if it is larger than the dataset.
        """
        window = self.settings.shuffle_shards
        return ClipSampler(
            len(self),
            batch_size,
            self.seed,
            rank=rank,
            world=world,
            start=start,
            groups=self.groups,
            shards=self.clips.shards if window else None,
            window=window,
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: SampleIndex) -> Batch:
        batch = self.batch([index])
        # Other loaders would fail to stack lists of different lengths: log them here.
        for sentence in batch.pop("left_out", ()):
            logger.warning("left out: %s", sentence)
        return first_item(batch)

    def __getitems__(self, indices: list[SampleIndex]) -> list[Batch]:
        return [self[index] for index in indices]

    def batch(self, indices: Sequence[SampleIndex]) -> Batch:
        """Read and decode the samples of `indices` as one batch. Raises ShardError."""
        # Always as frames: only the loader's batches may be resized later.
        shape = self._frames_shape(len(indices))
        return self._load(indices, PackedBatch.empty(shape)).unpack(self.settings)

    def load(self, indices: Sequence[SampleIndex], memory: Tensor | None = None) -> PackedBatch:
        """Read and decode the samples of `indices`, as crops with `resize: device`.

        With `decode: device` they are only read.

        memory: uint8, at least `batch_shape(len(indices)).num_bytes`; None allocates it.

        Raises ShardError.
        """
        return self._load(indices, PackedBatch.empty(self.batch_shape(len(indices)), memory))

    def _load(self, indices: Sequence[SampleIndex], batch: PackedBatch) -> PackedBatch:
        """Fill a batch with the samples of `indices`, and return it. Raises ShardError."""
        candidates = [self._candidates(index) for index in indices]
        if self.remote:
            # Reading is mostly waiting for a server, so several clips are read at the same time.
            futures = [
                self._threads.submit(self._load_clip, batch, slot, clips)
                for slot, clips in enumerate(candidates)
            ]
            # Also where one fails: the other threads still write to the batch's memory.
            wait(futures)
            for future in futures:
                future.result()
            return batch
        # Read all clips, then decode all: each phase keeps its working set in the CPU's caches.
        encoded = [
            self._read_first(clips, batch.left_out[slot]) for slot, clips in enumerate(candidates)
        ]
        for slot, (clip, clips) in enumerate(zip(encoded, candidates, strict=True)):
            self._decode_first(clip, clips, batch, slot)
        return batch

    def batch_shape(self, clips: int) -> BatchShape:
        """Return the sizes of a batch of `clips` clips, as `load` makes it.

        Raises PretrackError if they follow from impossible sizes in the tables.
        """
        shape = self._frames_shape(clips)
        if self.settings.decode == "device":
            return replace(shape, jpeg_bytes=self.settings.frames * self._largest_jpeg)
        if self.settings.resize == "device":
            return replace(shape, crop_pixels=self._crop_pixels)
        return shape

    def _frames_shape(self, clips: int) -> BatchShape:
        s = self.settings
        return BatchShape(
            clips=clips,
            frames=s.frames,
            size=s.size,
            points=self.points,
            teacher_frames=s.colour.student_only,
            cameras=s.cameras,
            track_weights=self.by_score.weight_px is not None,
        )

    @cached_property
    def _crop_pixels(self) -> int:
        """Pixels that hold every box of every clip. Raises PretrackError."""
        columns = ["width", "height"]
        sizes = self.clips.table.select(columns).group_by(columns).aggregate([]).to_pylist()
        # Memory of this size is allocated before any image is read, and tables come from others.
        for size in sizes:
            if min(size.values()) < 1 or size["width"] * size["height"] > jpeg.LARGEST:
                folders = ", ".join(str(snapshot.out) for snapshot in self.snapshots)
                raise PretrackError(
                    f"the tables in {folders} are damaged: no clip has frames of "
                    f"{size['width']}x{size['height']} pixels"
                )
        boxes = [largest_box(size["width"], size["height"], self.settings) for size in sizes]
        return max(width * height for width, height in boxes)

    @cached_property
    def _largest_jpeg(self) -> int:
        """Bytes of the largest frame, by the tables. Raises PretrackError if it is impossible."""
        largest = self.clips.largest_frame
        if not 0 < largest <= 3 * jpeg.LARGEST:
            folders = ", ".join(str(snapshot.out) for snapshot in self.snapshots)
            raise PretrackError(
                f"the tables in {folders} are damaged: no clip has a frame of {largest} bytes"
            )
        return largest

    def read(self, index: SampleIndex) -> EncodedClip:
        """Read a sample's frames and tracks, without decoding its frames. Raises ShardError."""
        pass_number, clip_index = index
        clip = self.clips[clip_index]
        shard = self.snapshots[clip.folder].shard_path(clip.shard)
        with named_clip(clip.key, str(shard)):
            return read_clip(
                clip,
                shard,
                self.settings,
                np.random.default_rng([self.seed, pass_number, clip_index]),
                points=self.points,
                tracked=self.tracked[clip.folder],
                read_members=self._cache.read if self._cache else read_members,
                by_score=self.by_score,
            )

    def _candidates(self, index: SampleIndex) -> Iterator[SampleIndex]:
        """Yield the sample itself, then with `on_error: skip` the samples to try in its place.

        Those are drawn from the clip's group, or from all clips without weights.
        """
        yield index
        if self.settings.on_error == "stop":
            return
        pass_number, clip_index = index
        group = next(
            (group.clips for group in self.groups if clip_index in group.clips),
            np.arange(len(self)),
        )
        random = np.random.default_rng([self.seed, pass_number, clip_index, 2])
        for substitute in random.choice(group, SUBSTITUTES).tolist():
            yield pass_number, substitute

    def _load_clip(self, batch: PackedBatch, slot: int, candidates: Iterator[SampleIndex]) -> None:
        """Read and decode the first intact candidate into a slot. Raises ShardError."""
        clip = self._read_first(candidates, batch.left_out[slot])
        self._decode_first(clip, candidates, batch, slot)

    def _read_first(self, candidates: Iterator[SampleIndex], left_out: list[str]) -> EncodedClip:
        """Read the first candidate that can be read; add the errors of others to `left_out`.

        Raises ShardError at once with `on_error: stop`, else if no candidate can be read.
        """
        for index in candidates:
            try:
                return self.read(index)
            except ShardError as error:
                if self.settings.on_error == "stop":
                    raise
                left_out.append(str(error))
        raise ShardError(
            f"{len(left_out)} clips in a row could not be read, the last: {left_out[-1]}"
        )

    def _decode_first(
        self,
        clip: EncodedClip,
        candidates: Iterator[SampleIndex],
        batch: PackedBatch,
        slot: int,
    ) -> None:
        """Decode a clip into a slot, or else the first of the remaining candidates.

        Raises ShardError as `_read_first` does.
        """
        while True:
            try:
                with named_clip(clip.key, clip.shard):
                    return decode_clip(clip, batch, slot, self.settings)
            except ShardError as error:
                if self.settings.on_error == "stop":
                    raise
                batch.left_out[slot].append(str(error))
            clip = self._read_first(candidates, batch.left_out[slot])

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(REQUESTS)

    def __getstate__(self) -> dict[str, Any]:
        # Threads cannot be sent to workers.
        return {name: value for name, value in self.__dict__.items() if name != "_threads"}
