"""Features where they are wanted: at track points, and in crops of reference frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.errors import SettingsError
from shards.geometry import normalised, normalised_corners


def sample_points(features: Tensor, points: Tensor, size: int, align_corners: bool) -> Tensor:
    """Bilinear samples of patch maps at points: [B, h, w, D], [B, N, 2] → [B, N, D].

    Points are (x, y) in pixels of the square of `size` pixels that the features were made from, pixel centres at integers; those
    outside are moved to its border. With `align_corners` (3DPoV as published) pixel 0 is read at the centre of the first patch and
    pixel size - 1 at the centre of the last; without it every patch's feature lies at the centre of its own pixels.
    """
    x, y = points.clamp(0, size - 1).unbind(-1)
    place = normalised_corners if align_corners else normalised
    features = features.to(
        torch.promote_types(features.dtype, torch.float32)
    )  # bfloat16 coordinates would be pixels off
    grid = torch.stack([place(x, size), place(y, size)], dim=-1).to(features.dtype)
    samples = torch.nn.functional.grid_sample(
        features.movedim(-1, 1),
        grid.unsqueeze(1),
        mode="bilinear",
        padding_mode="border",
        align_corners=align_corners,
    )
    return samples[:, :, 0].transpose(1, 2)


@dataclass(frozen=True)
class References:
    """For each clip R crops of frames in the batch; all [B, R] int64.

    frame: index into the batch's frames, clip by clip (b * T + t)
    top, left: first row and column of the crop on the patch grid
    """

    frame: Tensor
    top: Tensor
    left: Tensor
    across_ranks: bool = False
    """Whether `frame` counts through the batches of all ranks, one after the other, and not this rank's alone."""


def check_references(clips: int, frames: int, count: int) -> None:
    """Raises SettingsError if `clips` that go through the model together have too few `frames` for `count` references a clip."""
    if (clips - 1) * frames < count - 1:
        raise SettingsError(
            f"'references.count: {count}' takes {count - 1} frames of other clips, and where {clips} go through the model "
            f"together there are {(clips - 1) * frames}: enlarge 'run.batch_size', lower 'run.accumulate' if it is above 1, or set "
            "'references.count=1' to use only a clip's own frames"
        )


def choose_references(
    clips: int, frames: int, count: int, grid: int, side: int, generator: torch.Generator
) -> References:
    """Draws references for a batch (3DPoV), on the CPU.

    For each clip: count - 1 frames of the other clips, uniformly without replacement, and last one frame of its own that is neither
    its first nor its last; in each a square of `side` patches anywhere on the `grid`.
    """
    check_references(clips, frames, count)
    keys = torch.rand(clips, clips, frames, generator=generator)
    keys[torch.arange(clips), torch.arange(clips)] = -1
    others = keys.flatten(1).topk(count - 1, dim=1).indices
    own = torch.arange(clips) * frames + torch.randint(1, frames - 1, (clips,), generator=generator)
    corners = torch.randint(0, grid - side + 1, (2, clips, count), generator=generator)
    return References(torch.cat([others, own[:, None]], dim=1), corners[0], corners[1])


def rank_references(references: References, clips: int, rank: int) -> References:
    """Of references drawn for the clips of all ranks, `clips` each, those of one rank; they may lie in frames of the others."""
    own = slice(rank * clips, (rank + 1) * clips)
    return References(
        references.frame[own], references.top[own], references.left[own], across_ranks=True
    )


def frames_of_clips(clips: int, frames: int, chosen: Sequence[int]) -> Tensor:
    """Of every clip the `chosen` frames, as indices into a batch's frames: [clips * len(chosen)], clip by clip."""
    return (torch.arange(clips)[:, None] * frames + torch.tensor(chosen)).flatten()


def needed_frames(frames: int, *wanted: Tensor) -> tuple[Tensor, ...]:
    """Which of `frames` frames appear in any of the `wanted` index tensors, in order, and each of those by its place among them."""
    needed = torch.unique(torch.cat([indices.flatten() for indices in wanted]))
    place = torch.full((frames,), -1)
    place[needed] = torch.arange(len(needed))
    return needed, *(place[indices] for indices in wanted)


def crop_references(features: Tensor, references: References, side: int) -> Tensor:
    """Cuts the crops out of patch maps: [B * T, h, w, D] → [B, R, side * side, D], row by row."""
    step = torch.arange(side)
    rows = (references.top[..., None] + step)[..., :, None]
    columns = (references.left[..., None] + step)[..., None, :]
    place = (references.frame[..., None, None], rows, columns)
    return features[tuple(index.to(features.device, non_blocking=True) for index in place)].flatten(
        2, 3
    )
