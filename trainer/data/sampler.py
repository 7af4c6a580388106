"""The order of clips: it follows from (clips, seed) alone, and a place in it is a count of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from shards.errors import PretrackError

SampleIndex = tuple[int, int]
"""(pass, index of the clip): what a sample is made from. Each clip is shown once a pass; without weights a pass is an epoch."""


@dataclass(frozen=True, eq=False)
class ClipGroup:
    """Clips that share a weight: their indices [n], and the part of every epoch that they make up, compared to other groups'."""

    clips: NDArray[np.int64]
    weight: float


class ClipSampler(Sampler[list[SampleIndex]]):
    """Which clips a rank reads, batch by batch and without end, from batch `start` on.

    An epoch has as many clips as there are, cut into global batches of `batch_size`; a rank takes every world-th clip of each,
    beginning at its own number. So all ranks take the same number of steps, whatever their number.

    Without groups an epoch is a permutation drawn from (seed, epoch), and the fewer than `batch_size` clips at its end are dropped
    (other ones each epoch). With groups each fills its part of every epoch to within one clip, from an endless row of permutations
    of its own clips: nothing is dropped, and a clip comes again when all others of its group have been shown.

    With `shards` (the shard of each clip: [clips]) and a `window` of K, a permutation is one of shards, and one of the clips within
    each K shards of that.
    """

    def __init__(
        self,
        clips: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
        *,
        groups: Sequence[ClipGroup] = (),
        shards: NDArray[np.int64] | None = None,
        window: int = 0,
    ) -> None:
        if batch_size % world:
            raise PretrackError(
                f"'run.batch_size: {batch_size}' cannot be shared by {world} ranks: take a multiple of {world}"
            )
        if batch_size > clips:
            raise PretrackError(
                f"'run.batch_size: {batch_size}' is more than the {clips} clips there are: make it smaller"
            )
        self.clips, self.batch_size, self.seed, self.rank, self.world, self.start = (
            clips,
            batch_size,
            seed,
            rank,
            world,
            start,
        )
        self.groups, self.shards, self.window = tuple(groups), shards, window

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch."""
        return self.clips // self.batch_size

    def __iter__(self) -> ClipSamplerIterator:
        return ClipSamplerIterator(self)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """All (pass, index) of an epoch in order: [steps_per_epoch * batch_size, 2]."""
        size = self.steps_per_epoch * self.batch_size
        if not self.groups:
            order = self._permutation(np.arange(self.clips), epoch)[:size]
            return np.stack([np.full(size, epoch), order], axis=1)
        quotas = split_by_weight([group.weight for group in self.groups], size)
        turns = np.random.default_rng([self.seed, epoch, 0, 1]).permutation(
            np.repeat(np.arange(len(quotas)), quotas)
        )
        items = np.empty((size, 2), np.int64)
        for number, quota in enumerate(quotas):
            items[turns == number] = self._row(number, epoch * quota, quota)
        return items

    def _row(self, number: int, start: int, count: int) -> NDArray[np.int64]:
        """From a group's endless row of permutations `count` (pass, index) from a place on: [count, 2]."""
        clips = self.groups[number].clips
        first, last = start // len(clips), (start + count - 1) // len(clips)
        rows = [self._permutation(clips, turn, number + 1, 1) for turn in range(first, last + 1)]
        turns = np.repeat(np.arange(first, last + 1), len(clips))
        skipped = start - first * len(clips)
        return np.stack([turns, np.concatenate([*rows, clips[:0]])], axis=1)[
            skipped : skipped + count
        ]

    def _permutation(self, clips: NDArray[np.int64], *entropy: int) -> NDArray[np.int64]:
        random = np.random.default_rng([self.seed, *entropy])
        if self.shards is None or not self.window:
            return clips[random.permutation(len(clips))]
        shards, places = np.unique(self.shards[clips], return_inverse=True)
        windows = random.permutation(len(shards))[places] // self.window
        return clips[np.lexsort((random.random(len(clips)), windows))]


class ClipSamplerIterator(Iterator[list[SampleIndex]]):
    """A place in the order. Its `state_dict` is what torchdata's StatefulDataLoader keeps of it."""

    def __init__(self, order: ClipSampler) -> None:
        self._order, self._step = order, order.start
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def __iter__(self) -> ClipSamplerIterator:
        return self

    def __next__(self) -> list[SampleIndex]:
        order = self._order
        epoch, batch = divmod(self._step, order.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, order.epoch(epoch)
        first = batch * order.batch_size
        chosen = self._epoch[1][first + order.rank : first + order.batch_size : order.world]
        self._step += 1
        return [(turn, index) for turn, index in chosen.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """The number of the next batch."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to where a `state_dict` was taken."""
        self._step = int(state["step"])


def split_by_weight(weights: Sequence[float], total: int) -> list[int]:
    """`total` split in proportion to weights, each within one of its exact part; rounding favours the largest rests."""
    exact = np.array(weights, np.float64) / sum(weights) * total
    parts = np.floor(exact).astype(np.int64)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: total - parts.sum()]] += 1
    return [int(part) for part in parts]
