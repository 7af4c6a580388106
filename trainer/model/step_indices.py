"""Which frames and patches a step uses, as index tensors.

They depend on no pixel, so they are made on the CPU and go to the device in one piece. An index
made while the model runs, such as a list, would make the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.model.feature_sampling import References, frames_of_clips, needed_frames


@dataclass(frozen=True)
class StepIndices:
    """Indices into B clips of T frames each, int64, all on one device.

    compared:        [F]      frames compared with the anchor frame, 0..T-1
    compared_frames: [B * F]  the same frames of every clip, as b * T + t
    tail_frames:     [M]      frames that go through the student's tail, as b * T + t
    tracked:         [B * F]  the compared frames, as positions in `tail_frames`
    references:      the crops; their `frame` is a position in `tail_frames`, or in those of all
                     ranks, one after the other (`across_ranks`)
    side:            of a crop, in patches
    """

    compared: Tensor
    compared_frames: Tensor
    tail_frames: Tensor
    tracked: Tensor
    references: References
    side: int


def make_indices(
    clips: int,
    frames: int,
    *,
    compared: Sequence[int],
    references: References,
    side: int,
    fixed_shapes: bool = False,
) -> StepIndices:
    """Return the indices of a step, on the CPU. A frame that no index needs is left out.

    clips, frames: B and T
    compared:      frame indices 0..T-1, increasing
    references:    R crops per clip of `side` x `side` patches, of frames b * T + t
    fixed_shapes:  fill `tail_frames` up to the most frames that any R references per clip can need,
                   by repeating the last one. No index refers to the repetitions.
    """
    compared_frames = frames_of_clips(clips, frames, compared)
    if references.across_ranks:
        # Other ranks may have drawn any of this rank's frames, so all go through the tail.
        tail_frames, tracked = torch.arange(clips * frames), compared_frames
    else:
        tail_frames, tracked, drawn = needed_frames(
            clips * frames, compared_frames, references.frame
        )
        references = References(drawn, references.top, references.left)
    if fixed_shapes:
        most = min(clips * frames, len(tracked) + references.frame.numel())
        missing = max(0, most - len(tail_frames))
        tail_frames = torch.cat([tail_frames, tail_frames[-1:].expand(missing)])
    return StepIndices(
        compared=torch.tensor(compared),
        compared_frames=compared_frames,
        tail_frames=tail_frames,
        tracked=tracked,
        references=references,
        side=side,
    )


def pack_indices(parts: Sequence[StepIndices]) -> Tensor:
    """Return the indices of all parts of a step in one piece, int64 [n]."""
    return torch.cat([tensor.flatten() for part in parts for tensor in _tensors(part)])


def unpack_indices(packed: Tensor, parts: Sequence[StepIndices]) -> list[StepIndices]:
    """Return `parts` with their tensors as views of `packed`, which can be on another device."""
    originals = [_tensors(part) for part in parts]
    pieces = iter(packed.split([tensor.numel() for part in originals for tensor in part]))
    unpacked = []
    for part, tensors in zip(parts, originals, strict=True):
        compared, compared_frames, tail_frames, tracked, frame, top, left = (
            next(pieces).view(tensor.shape) for tensor in tensors
        )
        references = References(frame, top, left, part.references.across_ranks)
        unpacked.append(
            StepIndices(compared, compared_frames, tail_frames, tracked, references, part.side)
        )
    return unpacked


def _tensors(indices: StepIndices) -> list[Tensor]:
    """Return the tensors of a part, in the order of the fields."""
    i, r = indices, indices.references
    return [i.compared, i.compared_frames, i.tail_frames, i.tracked, r.frame, r.top, r.left]
