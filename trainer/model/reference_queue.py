"""References from a queue of the teacher's patches, as in NeCo, instead of crops of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shards.errors import SettingsError
from trainer.distributed import all_gather


@dataclass(frozen=True)
class QueueDraws:
    """What a part of a step stores in the queue and takes from it; int64.

    stored: [B, S]        patches of each clip's anchor frame, row by row
    slots:  [B * S * W]   entries that those of all W ranks replace, rank by rank
    drawn:  [B, R, P]     entries that are this rank's references
    """

    stored: Tensor
    slots: Tensor
    drawn: Tensor

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the order of the fields."""
        return [self.stored, self.slots, self.drawn]

    def with_tensors(self, tensors: Sequence[Tensor]) -> QueueDraws:
        """Return the same draws with other tensors, in the order of `tensors`."""
        return QueueDraws(*tensors)


class ReferenceQueue(nn.Module):
    """The last patches that the teacher embedded, in a ring buffer: `vectors` [size, E].

    All ranks hold the same vectors, so that one rank's checkpoint is enough. How many entries are
    filled follows from the number of parts before (`draw_from_queue`), and is no state.
    """

    vectors: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, width))

    @torch.no_grad()
    def exchange(self, patches: Tensor, draws: QueueDraws) -> Tensor:
        """Store embedded patches [B, S, E], then return references [B, R, P, E], without gradient.

        Every rank must call this: the patches of all ranks are gathered.
        """
        self.vectors.index_copy_(0, draws.slots, all_gather(patches.flatten(0, 1)))
        return self.vectors[draws.drawn]


def take_patches(maps: Tensor, chosen: Tensor) -> Tensor:
    """Take patches [B, S], numbered row by row, of maps [B, h, w, D]: [B, S, D]."""
    return torch.take_along_dim(maps.flatten(1, 2), chosen[..., None], dim=1)


def check_queue(clips: int, size: int, stored: int) -> None:
    """Raise SettingsError if `clips` clips, a part of a step on all ranks, overfill the queue."""
    if clips * stored > size:
        raise SettingsError(
            f"'references.queue: {size}' is too short for the {clips * stored} patches that "
            f"{clips} clips store in it at once ('references.stored: {stored}'): enlarge it, or "
            "store fewer"
        )


def draw_from_queue(
    clips: int,
    *,
    parts_before: int,
    size: int,
    grid: int,
    stored: int,
    references: tuple[int, int],
    generator: torch.Generator,
) -> QueueDraws:
    """Draw for `clips` clips, those of all ranks, on the CPU.

    parts_before: parts of steps that have stored as many patches before
    size, grid:   entries of the queue; side of the patch grid
    stored:       patches per clip that are stored, S, drawn without replacement
    references:   R, P: references per clip, and patches in each, drawn without replacement from the
                  filled entries, these patches included. While there are fewer, some repeat.
    """
    count, patches = references
    new = clips * stored
    slots = (parts_before * new + torch.arange(new)) % size
    filled = min(size, (parts_before + 1) * new)
    keys = torch.rand(clips, count, max(filled, patches), generator=generator)
    return QueueDraws(
        stored=torch.rand(clips, grid**2, generator=generator).topk(stored, dim=1).indices,
        slots=slots,
        drawn=keys.topk(patches, dim=2).indices % filled,
    )


def rank_draws(draws: QueueDraws, clips: int, rank: int) -> QueueDraws:
    """Return one rank's part of draws that were made for all ranks, with `clips` clips each."""
    rows = slice(rank * clips, (rank + 1) * clips)
    return QueueDraws(draws.stored[rows], draws.slots, draws.drawn[rows])
