"""Sampling of patch features: at track points, and in crops of reference frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.errors import SettingsError
from shards.geometry import normalised, normalised_corners


def sample_points(features: Tensor, points: Tensor, size: int, align_corners: bool) -> Tensor:
    """Sample patch maps bilinearly at points: [B, h, w, D], [B, N, 2] → [B, N, D].

    points: (x, y) in pixels of the square of `size` pixels that the features were made from, pixel
    centres at integers; points outside are clamped to its border.

    With `align_corners` (3DPoV as published) pixel 0 is read at the centre of the first patch and
    pixel size - 1 at the centre of the last. Without it every patch's feature lies at the centre of
    the patch's own pixels.
    """
    x, y = points.clamp(0, size - 1).unbind(-1)
    normalise = normalised_corners if align_corners else normalised
    # grid_sample takes coordinates in the features' type, and bfloat16 ones would be pixels off.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    grid = torch.stack([normalise(x, size), normalise(y, size)], dim=-1).to(features.dtype)
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
    """R reference crops per clip, of frames in the batch; all tensors [B, R] int64.

    frame:     index into the batch's frames, clip by clip (b * T + t)
    top, left: first row and column of the crop on the patch grid
    """

    frame: Tensor
    top: Tensor
    left: Tensor
    across_ranks: bool = False
    """Whether `frame` indexes the concatenated batches of all ranks, not this rank's batch."""


def check_references(clips: int, frames: int, count: int) -> None:
    """Check that batches have enough frames for references.

    Raises SettingsError if `clips` clips of `frames` frames each, which go through the model
    together, are too few for `count` references per clip.
    """
    if (clips - 1) * frames < count - 1:
        raise SettingsError(
            f"'references.count: {count}' takes {count - 1} frames of other clips, and where "
            f"{clips} go through the model together there are {(clips - 1) * frames}: enlarge "
            "'run.batch_size', lower 'run.accumulate' if it is above 1, or set "
            "'references.count=1' to use only a clip's own frames"
        )


def choose_references(
    clips: int, frames: int, count: int, *, grid: int, side: int, generator: torch.Generator
) -> References:
    """Draw the references of a batch (3DPoV), on the CPU.

    Per clip: count - 1 frames of the other clips, uniformly without replacement, then one of its
    own frames that is neither the first nor the last. In each, a square of `side` patches anywhere
    on the grid of `grid` x `grid` patches.

    Raises SettingsError for too few clips.
    """
    check_references(clips, frames, count)
    # The largest of random keys are a draw without replacement; a clip's own keys never win.
    keys = torch.rand(clips, clips, frames, generator=generator)
    keys[torch.arange(clips), torch.arange(clips)] = -1
    others = keys.flatten(1).topk(count - 1, dim=1).indices
    # The own frame is neither the anchor (frame 0) nor the last frame.
    own = torch.arange(clips) * frames + torch.randint(1, frames - 1, (clips,), generator=generator)
    corners = torch.randint(0, grid - side + 1, (2, clips, count), generator=generator)
    return References(torch.cat([others, own[:, None]], dim=1), corners[0], corners[1])


def rank_references(references: References, clips: int, rank: int) -> References:
    """Return one rank's part of references that were drawn for all ranks, with `clips` clips each.

    Its crops can be of other ranks' frames.
    """
    rows = slice(rank * clips, (rank + 1) * clips)
    return References(
        references.frame[rows], references.top[rows], references.left[rows], across_ranks=True
    )


def frames_of_clips(clips: int, frames: int, chosen: Sequence[int]) -> Tensor:
    """Return indices of the `chosen` frames of every clip: [clips * len(chosen)], clip by clip.

    They index the frames of a batch, b * frames + t.
    """
    return (torch.arange(clips)[:, None] * frames + torch.tensor(chosen)).flatten()


def needed_frames(frames: int, *wanted: Tensor) -> tuple[Tensor, ...]:
    """Return which of `frames` frames are in any index tensor, and those tensors renumbered.

    The first tensor returned is sorted; each other one has the shape of its `wanted` tensor and
    indexes the first.
    """
    needed = torch.unique(torch.cat([indices.flatten() for indices in wanted]))
    # -1 for frames that are not needed: no index tensor refers to them.
    new_index = torch.full((frames,), -1)
    new_index[needed] = torch.arange(len(needed))
    return needed, *(new_index[indices] for indices in wanted)


def crop_references(features: Tensor, references: References, side: int) -> Tensor:
    """Crop references from patch maps on the same device, row by row.

    [B * T, h, w, D] → [B, R, side * side, D]
    """
    # Three broadcast index tensors [B, R, side, side] gather all crops at once.
    step = torch.arange(side, device=references.top.device)
    rows = (references.top[..., None] + step)[..., :, None]
    columns = (references.left[..., None] + step)[..., None, :]
    return features[references.frame[..., None, None], rows, columns].flatten(2, 3)
