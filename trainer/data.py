"""Clips of a snapshot as training samples: a sample follows from (snapshot, seed, pass, index) alone, a place from a count."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import repeat
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Any, NotRequired, TypedDict, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from manifests.snapshot import Snapshot
from shards.bucket import Url
from shards.codec import decode_frames
from shards.errors import PretrackError, ShardError
from shards.files import Location
from shards.geometry import View, inside
from shards.reader import read_members
from trainer.cache import MemberCache
from trainer.clips import Clip, choose_clips, mixed_groups
from trainer.config import DataSettings, TrackSettings
from trainer.order import ClipOrder, Item
from trainer.views import change_colours, choose_frames, choose_views, seen_by, show

logger = logging.getLogger(__name__)

SECONDS_TO_STOP = 30
"""How long a worker that was sent SIGTERM goes on, for a run that means to finish its step: as long as Slurm waits by default."""
SUBSTITUTES = 10
"""With `on_error: skip`: clips in a row that may be unreadable before the data as a whole is held to be at fault."""
REQUESTS = 8
"""Clips of a batch that a worker reads from a bucket at the same time."""


class Sample(TypedDict):
    """A training sample, or with one more axis B in front (and lists of keys and sentences) a batch of them.

    frames:        uint8   [T, 3, S, S]  RGB; frame 0 is the anchor
    teacher_frame: uint8   [3, S, S]     with `colour.student_only`: the anchor frame in its own colours
    positions:     float32 [T, N, 2]     (x, y) in pixels of these frames, pixel centres at integers
    visibility:    float32 [T, N]        probability of being visible, 0..1
    confidence:    float32 [T, N]        probability that the position is right, 0..1
    inside:        bool    [T, N]        whether the position lies in the frame
    left_out:      with `on_error: skip`, of a batch: a sentence for each clip that should be in it and could not be read
    """

    frames: Tensor
    teacher_frame: NotRequired[Tensor]
    positions: Tensor
    visibility: Tensor
    confidence: Tensor
    inside: Tensor
    key: str
    left_out: NotRequired[list[str]]


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
        self.snapshots = [Snapshot(s.out, s.name) for s in snapshots]  # without the tables that they have read
        self.remote = any(isinstance(s.out, Url) for s in snapshots)
        self._cache = MemberCache(settings.cache.folder, settings.cache.gb) if settings.cache and self.remote else None

    @cached_property
    def identity(self) -> str:
        """A digest of which clips these are, and in what order."""
        return self.clips.identity

    def order(self, batch_size: int, rank: int = 0, world: int = 1, start: int = 0) -> ClipOrder:
        """The order in which a rank trains on them, mixed and shuffled as the settings say. Raises PretrackError."""
        window = self.settings.shuffle_shards
        shards = self.clips.shards if window else None
        return ClipOrder(len(self), batch_size, self.seed, rank, world, start, groups=self.groups, shards=shards, window=window)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, item: Item) -> Sample:
        batch = self.batch([item])
        for sentence in batch.pop("left_out", ()):  # other loaders would not know what to do with it
            logger.warning("left out: %s", sentence)
        return first_of(batch)

    def __getitems__(self, items: list[Item]) -> list[Sample]:
        return [self[item] for item in items]

    def batch(self, items: Sequence[Item]) -> Sample:
        """The samples of items, together. Raises ShardError."""
        return self.decode(items).sample(self.settings)

    def decode(self, items: Sequence[Item]) -> Decoded:
        """A batch as a worker sends it: nothing is copied on the way. Raises ShardError."""
        s = self.settings
        batch = Decoded.empty(len(items), s.frames, s.size, self.points, s.colour.student_only)
        run = self._threads.map if self.remote else map  # from a bucket several at a time: most of it is waiting
        list(run(self._fill, repeat(batch), range(len(items)), items))
        return batch

    def _fill(self, batch: Decoded, place: int, item: Item) -> None:
        turn, index = item
        if self.settings.on_error == "stop":
            self._read(batch, place, turn, index)
            return
        for candidate in self._candidates(turn, index):
            try:
                self._read(batch, place, turn, candidate)
                return
            except ShardError as error:
                batch.left_out[place].append(str(error))
        failed = batch.left_out[place]
        raise ShardError(f"{len(failed)} clips in a row could not be read, the last: {failed[-1]}")

    def _candidates(self, turn: int, index: int) -> Iterator[int]:
        """The clip itself, then some drawn from its group, or from all where there are none."""
        yield index
        group = next((group.clips for group in self.groups if index in group.clips), np.arange(len(self)))
        yield from np.random.default_rng([self.seed, turn, index, 2]).choice(group, SUBSTITUTES).tolist()

    def _read(self, batch: Decoded, place: int, turn: int, index: int) -> None:
        """Reads a clip into its place."""
        clip = self.clips[index]
        path = self.snapshots[clip.folder].shard_path(clip.shard)
        random = np.random.default_rng([self.seed, turn, index])
        try:
            self._decode(batch, place, clip, path, random)
        except ShardError as error:
            hint = "" if "pretrack verify" in str(error) else ": run 'pretrack verify'"
            raise ShardError(f"clip {clip.key} in {path}: {error}{hint}") from error

    def _decode(self, batch: Decoded, place: int, clip: Clip, path: Location, random: np.random.Generator) -> None:
        s = self.settings
        anchor, numbers = choose_frames(clip.frames, clip.anchors.tolist(), s, random)
        views = choose_views(clip.width, clip.height, s, random)
        packed, *images = self._members(clip, path, numbers)
        batch.show(place, views, images, (clip.width, clip.height), s, random)
        shape = (len(clip.anchors), clip.frames, self.points)
        batch.follow(place, views, *decode_frames(packed, anchor, numbers, shape))
        batch.keys[place] = clip.key

    def _members(self, clip: Clip, path: Location, numbers: list[int]) -> list[bytes]:
        """The packed tracks and the images of frames; a frame that is wanted several times is read once."""
        frames = sorted(set(numbers))
        last = min(len(clip.frame_offsets), len(clip.frame_sizes)) - 1
        if frames[0] < 0 or frames[-1] > last:
            raise ShardError(f"the tables do not tell where frames {frames} lie")
        offsets = [clip.tracks_offset, *clip.frame_offsets[frames].tolist()]
        sizes = [clip.tracks_size, *clip.frame_sizes[frames].tolist()]
        packed, *images = (self._cache.read if self._cache else read_members)(path, offsets, sizes)
        return [packed, *(images[frames.index(number)] for number in numbers)]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(REQUESTS)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_threads"}


@dataclass(eq=False)
class Decoded:
    """A batch in one piece of memory, so that a worker hands over one piece and not six.

    Its parts are views of that: positions float32 [B, T, N, 2]; visibility and confidence uint8 [B, T, N], 255 = certain; frames
    uint8 [B, T, 3, S, S]; and teacher_frame uint8 [B, 3, S, S], or of size 0.
    """

    memory: Tensor
    shape: tuple[int, int, int, int]
    keys: list[str]
    left_out: list[list[str]]

    @classmethod
    def empty(cls, batch: int, frames: int, size: int, points: int, own: bool) -> Decoded:
        """Memory for a batch of B x T frames of S pixels a side with N points; with `own`, also for the teacher's."""
        count = batch * frames * points * (8 + 2) + (batch * frames + batch * own) * 3 * size * size
        if get_worker_info() is None:
            memory = torch.empty(count, dtype=torch.uint8)
        else:  # shared with the main process from the beginning, as torch's default_collate does it
            memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(count))  # type: ignore[call-overload]
        return cls(memory, (batch, frames, size, points), [""] * batch, [[] for _ in range(batch)])

    def __post_init__(self) -> None:
        b, t, s, n = self.shape
        own = self.memory.numel() - b * t * (n * 10 + 3 * s * s)
        sizes = [8 * b * t * n, b * t * n, b * t * n, b * t * 3 * s * s, own]
        positions, visibility, confidence, frames, teacher_frame = self.memory.split(sizes)
        self.positions = positions.view(torch.float32).view(b, t, n, 2)
        self.visibility, self.confidence = visibility.view(b, t, n), confidence.view(b, t, n)
        self.frames, self.teacher_frame = frames.view(b, t, 3, s, s), teacher_frame.view(-1, 3, s, s)

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoded, (self.memory, self.shape, self.keys, self.left_out)

    def pin_memory(self) -> Decoded:
        """The same in pinned memory: what torch's loader asks for."""
        return Decoded(self.memory.pin_memory(), self.shape, self.keys, self.left_out)

    def show(
        self,
        place: int,
        views: Sequence[View],
        images: Sequence[bytes],
        size: tuple[int, int],
        settings: DataSettings,
        random: np.random.Generator,
    ) -> None:
        """Puts what is seen of JPEGs [T] of frames of `size` (width, height) at a place. Raises ShardError for a damaged one."""
        frames = self.frames[place]
        show(views, images, size, settings.reduced_decoding, frames.numpy())
        if settings.colour.student_only:
            self.teacher_frame[place] = frames[0]
        if settings.colour.changes:
            frames[:] = change_colours(frames, settings.colour, random)

    def follow(
        self,
        place: int,
        views: Sequence[View],
        positions: NDArray[np.float32],
        visibility: NDArray[np.uint8],
        confidence: NDArray[np.uint8],
    ) -> None:
        """Puts tracks at a place: stored positions [T, N, 2], as they lie in what is seen; visibility and confidence [T, N]."""
        self.positions[place] = torch.from_numpy(seen_by(views, positions))
        self.visibility[place], self.confidence[place] = torch.from_numpy(visibility), torch.from_numpy(confidence)

    def sample(self, settings: DataSettings) -> Sample:
        """The batch as it is handed out."""
        sample = Sample(
            frames=self.frames,
            positions=self.positions,
            visibility=self.visibility.to(torch.float32) / 255,
            confidence=self.confidence.to(torch.float32) / 255,
            inside=torch.from_numpy(inside(self.positions.numpy(), settings.size, settings.size)),
            key=self.keys,  # type: ignore[typeddict-item]
        )
        if settings.colour.student_only:
            sample["teacher_frame"] = self.teacher_frame
        if settings.on_error == "skip":
            sample["left_out"] = [sentence for sentences in self.left_out for sentence in sentences]
        return sample


def first_of(batch: Sample) -> Sample:
    """The first sample of a batch."""
    return cast(Sample, {name: value[0] for name, value in batch.items()})  # type: ignore[index]


def counted(sample: Sample, settings: TrackSettings) -> Tensor:
    """Which points count: [..., T, N] bool. In the anchor frame, frame 0, a point is visible by definition: it was put there."""
    visible = (sample["visibility"] > settings.visibility) & (sample["confidence"] >= settings.confidence)
    visible[..., 0, :] = True
    return visible & sample["inside"] if settings.mask_outside else visible


class Loader:
    """Batches of a rank, without end, read by `workers` processes (0: by this one), and the place reached in them.

    Iterating goes on from that place, with the same workers; so does another loader that was given its `state_dict()`, whatever its
    number of workers and ranks. `skipped` counts the clips that were left out because they could not be read.
    """

    def __init__(self, dataset: ClipDataset, order: ClipOrder, workers: int = 0, pin: bool = False) -> None:
        self.dataset, self.order, self.step, self.skipped = dataset, order, order.start, 0
        self._loader: DataLoader[Decoded] = DataLoader(
            _Batches(dataset),
            batch_sampler=order,
            num_workers=workers,
            pin_memory=pin,
            collate_fn=_as_it_is,
            worker_init_fn=partial(begin_worker, dict(os.environ)),
            prefetch_factor=4 if workers else None,
            persistent_workers=workers > 0,
            multiprocessing_context=clean_processes() if workers and dataset.remote else None,
        )
        end_with_process(self._loader)
        # while all of it is there: torch waits long for workers that the collector of cycles takes apart
        weakref.finalize(self, end_workers, self._loader).atexit = False

    def __iter__(self) -> Iterator[Sample]:
        """Raises ShardError for a clip that cannot be read."""
        self.order.start = self.step
        try:
            for decoded in self._loader:
                self.step += 1
                batch = decoded.sample(self.dataset.settings)
                self._report(batch)
                yield batch
        except PretrackError as error:
            raise unwrapped(error) from error

    def state_dict(self) -> dict[str, Any]:
        """The place reached: how many batches were handed out since the beginning, to every rank, and what they are made of."""
        return {"step": self.step, "batch_size": self.order.batch_size, "seed": self.order.seed, "clips": self.dataset.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a place. Raises PretrackError if it is one among other batches. Iterate anew afterwards."""
        ours = self.state_dict()
        if changed := [name for name in ("batch_size", "seed", "clips") if ours[name] != state.get(name)]:
            raise PretrackError(f"this place was reached among other batches ({', '.join(changed)} differ)")
        self.step = int(state["step"])

    def _report(self, batch: Sample) -> None:
        for sentence in batch.pop("left_out", ()):
            self.skipped += 1
            logger.warning("left out (%d so far): %s", self.skipped, sentence)


class _Batches(Dataset[Decoded]):
    """A dataset that gives torch's loader whole batches."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, items: list[Item]) -> Decoded:
        return self.dataset.decode(items)


def end_with_process(loader: DataLoader[Any]) -> None:
    """Lets a loader's workers go when this process ends: the SIGTERM that Python sends them then, they would put off."""
    watched = weakref.ref(loader)
    atexit.register(lambda: end_workers(watched()))


def end_workers(loader: DataLoader[Any] | None) -> None:
    """Ends a loader's workers, if it is there and has any."""
    iterator = getattr(loader, "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


def _as_it_is(batch: Any) -> Any:
    return batch


def unwrapped(error: PretrackError) -> PretrackError:
    """An error as it was raised: from a worker it comes wrapped in that worker's traceback, whose last line is the sentence."""
    kind = type(error)
    return kind(str(error).strip().splitlines()[-1].removeprefix(f"{kind.__module__}.{kind.__qualname__}: "))


def clean_processes() -> BaseContext:
    """Where workers come from that read a store, whose threads do not survive a fork of this process: forks of one that has none.

    They share the memory of what that one has imported; workers that start from nothing take 360 MB each.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["trainer.forkserver"])
    return context


def begin_worker(environment: dict[str, str], worker: int) -> None:
    """Makes a worker ready. Its environment may be that of an earlier loader, with other credentials."""
    gc.freeze()  # what the process that it was forked from has thrown away is not to be taken apart here a second time
    os.environ.update(environment)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_STOP))  # which ends it
    cv2.setNumThreads(0)
