"""Which views and correspondences of a batch a step uses, drawn on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.multiview.settings import MultiviewSettings

LARGEST_KEY = 2**62


@dataclass(frozen=True)
class SetDraws:
    """What a part of a step draws for B sets that show M views each.

    order:  [B, M]         frames that are shown, 0..T-1; the first is view 0, the origin of rays
    posed:  [B]            0 where rays are dropped, else 1
    first:  [P]            for each of the P pairs of views, the earlier one in the set,
    second: [P]            and the later one
    keys:   [B, P, N]      random keys 0..2^62 of the correspondences that each pair may have
    """

    order: Tensor
    posed: Tensor
    first: Tensor
    second: Tensor
    keys: Tensor

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the order of the fields."""
        return [self.order, self.posed, self.first, self.second, self.keys]

    def with_tensors(self, tensors: Sequence[Tensor]) -> SetDraws:
        """Return the same draws with other tensors, in the order of `tensors`."""
        return SetDraws(*tensors)


def draw_sets(
    sets: int,
    *,
    frames: int,
    points: int,
    settings: MultiviewSettings,
    generator: torch.Generator,
) -> SetDraws:
    """Draw views, dropped poses and keys for `sets` sets of `frames` frames and `points` tracks.

    All sets show equally many views.
    """
    views = frames
    if frames > 1 and torch.rand((), generator=generator) < settings.fewer_views:
        views = int(torch.randint(1, frames, (), generator=generator))
    order = torch.rand(sets, frames, generator=generator).argsort(dim=1)[:, :views]
    posed = (torch.rand(sets, generator=generator) >= settings.drop_poses).long()
    first, second = torch.triu_indices(views, views, 1)
    keys = torch.randint(LARGEST_KEY, (sets, len(first), points), generator=generator)
    return SetDraws(order, posed, first, second, keys)


def sets_of_rank(draws: SetDraws, rank: int, world: int) -> SetDraws:
    """Return one rank's share of draws for all ranks, whose clips the sampler deals in turn."""
    own = slice(rank, None, world)
    return SetDraws(draws.order[own], draws.posed[own], draws.first, draws.second, draws.keys[own])


@dataclass(frozen=True)
class Correspondences:
    """Q correspondences per set: a point in one view, and the same point in another.

    query, target: [B, Q] views 0..M-1
    point:         [B, Q] track 0..N-1
    counted:       [B, Q] float32: 1, or 0 for those that fill up a set with fewer than Q
    """

    query: Tensor
    target: Tensor
    point: Tensor
    counted: Tensor


def choose_correspondences(
    mask: Tensor, draws: SetDraws, count: int, both: bool
) -> Correspondences:
    """Choose up to `count` correspondences per set, uniformly without replacement.

    mask: bool [B, M, N], whether a track counts in a view
    both: whether the earlier view may be the one that is searched

    Runs on the device of the mask, without waiting for it.
    """
    points = mask.shape[2]
    valid = mask[:, draws.first] & mask[:, draws.second]
    keys = torch.where(valid, draws.keys, -1).flatten(1)
    largest, chosen = keys.topk(min(count, keys.shape[1]), dim=1)
    pair = chosen.div(max(1, points), rounding_mode="floor")
    earlier, later = draws.first[pair], draws.second[pair]
    # The lowest bit of a random key is a fair coin.
    swapped = (largest % 2 == 1) & both
    return Correspondences(
        query=torch.where(swapped, later, earlier),
        target=torch.where(swapped, earlier, later),
        point=chosen % max(1, points),
        counted=(largest >= 0).float(),
    )
