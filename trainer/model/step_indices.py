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
from trainer.model.reference_queue import QueueDraws


@dataclass(frozen=True)
class StepIndices:
    """Indices into B clips of T frames each, int64, all on one device.

    compared:        [F]      frames compared with the anchor frame, 0..T-1
    compared_frames: [B * F]  the same frames of every clip, as b * T + t
    tail_frames:     [M]      frames that go through the student's tail, as b * T + t
    tracked:         [B * F]  the compared frames, as positions in `tail_frames`
    references:      the crops, none with a queue; their `frame` is a position in `tail_frames`, or
                     in those of all ranks, one after the other (`across_ranks`)
    side:            of a crop, in patches
    queue:           with `references.kind: queue`, what it stores and gives
    """

    compared: Tensor
    compared_frames: Tensor
    tail_frames: Tensor
    tracked: Tensor
    references: References
    side: int
    queue: QueueDraws | None = None

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in the order of the fields."""
        r = self.references
        indices = [self.compared, self.compared_frames, self.tail_frames, self.tracked]
        of_queue = self.queue.tensors() if self.queue else []
        return [*indices, r.frame, r.top, r.left, *of_queue]

    def with_tensors(self, tensors: Sequence[Tensor]) -> StepIndices:
        """Return the same indices with other tensors, in the order of `tensors`."""
        compared, compared_frames, tail_frames, tracked, frame, top, left, *of_queue = tensors
        return StepIndices(
            compared,
            compared_frames,
            tail_frames,
            tracked,
            references=References(frame, top, left, self.references.across_ranks),
            side=self.side,
            queue=self.queue.with_tensors(of_queue) if self.queue else None,
        )


def make_indices(
    clips: int,
    frames: int,
    *,
    compared: Sequence[int],
    references: References,
    side: int,
    fixed_shapes: bool = False,
    queue: QueueDraws | None = None,
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
        queue=queue,
    )
