"""Order of the clips: it follows from (clips, seed) alone, and a position is a count of batches.

An *epoch* is as many samples as there are clips, cut into global batches. A *pass* shows every clip
of a group once, or every clip of the dataset without groups. Without groups a pass is an epoch;
with them a small group makes several passes within an epoch, and the pass of a large group
continues in the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from shards.errors import PretrackError

SampleIndex = tuple[int, int]
"""(pass, clip): the number of the pass, from which a sample's augmentation is drawn, and the clip's
index."""


@dataclass(frozen=True, eq=False)
class ClipGroup:
    """Clips that share a weight: their indices [n], and the weight of their part of each epoch."""

    clips: NDArray[np.int64]
    weight: float


class ClipSampler(Sampler[list[SampleIndex]]):
    """Infinite batch sampler for one rank, starting at batch `start`.

    An epoch has as many samples as there are clips, cut into global batches of `batch_size`; a rank
    takes every world-th sample of a batch, starting at its own number. So all ranks take the same
    number of steps, and a global batch is the same for any number of ranks.

    Without groups an epoch is a permutation drawn from (seed, epoch), and the fewer than
    `batch_size` clips at its end are dropped (others in each epoch). With groups, each group fills
    its part of every epoch to within one clip, from an endless sequence of permutations of its own
    clips: nothing is dropped, and a clip is repeated only after all others of its group.

    With `shards` (the shard of each clip: [clips]) and a `window` of K, a permutation shuffles the
    shards, and then the clips within each K consecutive shards of that order.

    Raises PretrackError if the ranks cannot share a batch evenly, or if a batch has more clips than
    there are.
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
                f"'run.batch_size: {batch_size}' cannot be shared by {world} ranks: take a "
                f"multiple of {world}"
            )
        if batch_size > clips:
            raise PretrackError(
                f"'run.batch_size: {batch_size}' is more than the {clips} clips there are: make it "
                "smaller"
            )
        self.clips, self.batch_size, self.seed = clips, batch_size, seed
        self.rank, self.world, self.start = rank, world, start
        self.groups, self.shards, self.window = tuple(groups), shards, window

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch."""
        return self.clips // self.batch_size

    def __iter__(self) -> ClipSamplerIterator:
        return ClipSamplerIterator(self)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Return all (pass, clip) of an epoch in order: [steps_per_epoch * batch_size, 2]."""
        size = self.steps_per_epoch * self.batch_size
        if not self.groups:
            # Without groups a pass is an epoch, so both have the same number.
            clips = self._permutation(np.arange(self.clips), epoch)[:size]
            return np.stack([np.full(size, epoch), clips], axis=1)
        counts = split_by_weight([group.weight for group in self.groups], size)
        # Shuffle which group each position of the epoch belongs to, ...
        group_of_position = np.random.default_rng([self.seed, epoch, 0, 1]).permutation(
            np.repeat(np.arange(len(counts)), counts)
        )
        # ... then fill each group's positions from where its sequence stood after past epochs.
        indices = np.empty((size, 2), np.int64)
        for number, group_size in enumerate(counts):
            indices[group_of_position == number] = self._sequence_of_group(
                number, epoch * group_size, group_size
            )
        return indices

    def _sequence_of_group(self, number: int, start: int, count: int) -> NDArray[np.int64]:
        """Return `count` (pass, clip) of a group's endless sequence from `start` on: [count, 2]."""
        clips = self.groups[number].clips
        # The passes that [start, start + count) touches. Each is drawn by itself, so a position far
        # into the sequence needs no earlier draws.
        first, last = start // len(clips), (start + count - 1) // len(clips)
        permutations = [
            self._permutation(clips, pass_number, number + 1, 1)
            for pass_number in range(first, last + 1)
        ]
        passes = np.repeat(np.arange(first, last + 1), len(clips))
        offset = start - first * len(clips)
        # clips[:0] for a group that gets no clip at all: nothing cannot be concatenated.
        sequence = np.stack([passes, np.concatenate([*permutations, clips[:0]])], axis=1)
        return sequence[offset : offset + count]

    def _permutation(self, clips: NDArray[np.int64], *entropy: int) -> NDArray[np.int64]:
        """Shuffle clips by a generator seeded with (seed, *entropy): equal entropy, equal order."""
        random = np.random.default_rng([self.seed, *entropy])
        if self.shards is None or not self.window:
            return clips[random.permutation(len(clips))]
        # Shuffle the shards, number their windows, and sort the clips by (window, random number).
        shards, shard_of_clip = np.unique(self.shards[clips], return_inverse=True)
        window_of_clip = random.permutation(len(shards))[shard_of_clip] // self.window
        return clips[np.lexsort((random.random(len(clips)), window_of_clip))]


class ClipSamplerIterator(Iterator[list[SampleIndex]]):
    """A position in the order. torchdata's StatefulDataLoader saves its `state_dict`."""

    def __init__(self, sampler: ClipSampler) -> None:
        self._sampler, self._step = sampler, sampler.start
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def __iter__(self) -> ClipSamplerIterator:
        return self

    def __next__(self) -> list[SampleIndex]:
        s = self._sampler
        epoch, batch = divmod(self._step, s.steps_per_epoch)
        # An epoch's order is kept until it ends: drawing it touches every clip.
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, s.epoch(epoch)
        first = batch * s.batch_size
        # Strided by rank, so that the global batch does not depend on the number of ranks.
        indices = self._epoch[1][first + s.rank : first + s.batch_size : s.world]
        self._step += 1
        return [(pass_number, clip) for pass_number, clip in indices.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the next batch."""
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to where a `state_dict` was taken."""
        self._step = int(state["step"])


def split_by_weight(weights: Sequence[float], total: int) -> list[int]:
    """Split `total` in proportion to weights, by the largest-remainder method.

    Each part is within one of its exact value, and the parts add up to `total`.
    """
    exact = np.array(weights) / sum(weights) * total
    parts = np.floor(exact).astype(np.int64)
    # Largest remainder first; a stable sort breaks ties by order, so the split is reproducible.
    by_remainder = np.argsort(parts - exact, kind="stable")
    parts[by_remainder[: total - parts.sum()]] += 1
    return [int(part) for part in parts]
