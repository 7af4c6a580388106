"""A batch in one piece of memory, which decoding fills and workers send to the trainer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards.geometry import inside
from trainer.config import DataSettings
from trainer.data.batch import Batch


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch: clips B, frames per clip T, pixels per side S, points per clip N.

    teacher_frames: whether each clip has a second anchor frame in its original colours.
    """

    clips: int
    frames: int
    size: int
    points: int
    teacher_frames: bool

    @property
    def part_bytes(self) -> list[int]:
        """Bytes of positions, visibility, confidence, frames and teacher frames, in this order."""
        # Positions come first: as float32 they need an aligned start.
        points = self.clips * self.frames * self.points
        image = 3 * self.size * self.size
        return [
            8 * points,
            points,
            points,
            self.clips * self.frames * image,
            self.clips * self.teacher_frames * image,
        ]

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole batch."""
        return sum(self.part_bytes)


@dataclass(eq=False)
class PackedBatch:
    """B clips in one uint8 tensor, so that a worker sends one piece of memory and not six.

    memory:        uint8 [shape.num_bytes]; the tensors below are views of it
    positions:     float32 [B, T, N, 2], (x, y) in pixels of `frames`
    visibility:    uint8 [B, T, N], 255 = certainly visible
    confidence:    uint8 [B, T, N], 255 = certainly right
    frames:        uint8 [B, T, 3, S, S]
    teacher_frame: uint8 [B, 3, S, S], or [0, 3, S, S] without teacher frames
    keys:          the clips' keys [B]
    left_out:      per clip slot, a sentence for each clip that could not be read for it
    """

    memory: Tensor
    shape: BatchShape
    keys: list[str]
    left_out: list[list[str]]

    @classmethod
    def empty(cls, shape: BatchShape, memory: Tensor | None = None) -> PackedBatch:
        """Make a batch to be filled, in new memory or at the start of `memory` (uint8)."""
        memory = empty_memory(shape.num_bytes) if memory is None else memory[: shape.num_bytes]
        return cls(memory, shape, [""] * shape.clips, [[] for _ in range(shape.clips)])

    def __post_init__(self) -> None:
        b, t, s, n = self.shape.clips, self.shape.frames, self.shape.size, self.shape.points
        positions, visibility, confidence, frames, teacher_frame = self.memory.split(
            self.shape.part_bytes
        )
        self.positions = positions.view(torch.float32).view(b, t, n, 2)
        self.visibility = visibility.view(b, t, n)
        self.confidence = confidence.view(b, t, n)
        self.frames = frames.view(b, t, 3, s, s)
        self.teacher_frame = teacher_frame.view(-1, 3, s, s)

    def unpack(self, settings: DataSettings) -> Batch:
        """Return the batch that users see. Frames and positions share this batch's memory."""
        batch = Batch(
            frames=self.frames,
            positions=self.positions,
            visibility=self.visibility.to(torch.float32) / 255,
            confidence=self.confidence.to(torch.float32) / 255,
            inside=torch.from_numpy(inside(self.positions.numpy(), settings.size, settings.size)),
            key=self.keys,
        )
        if settings.colour.student_only:
            batch["teacher_frame"] = self.teacher_frame
        if settings.on_error == "skip":
            batch["left_out"] = [sentence for sentences in self.left_out for sentence in sentences]
        return batch


def empty_memory(count: int) -> Tensor:
    """Allocate `count` bytes without clearing them: uint8 [count]."""
    # NumPy asks the kernel for huge pages in large allocations, which torch does not: there are
    # fewer pages to find and clear.
    return torch.from_numpy(np.empty(count, np.uint8))
