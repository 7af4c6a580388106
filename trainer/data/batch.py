"""A batch of training samples: as it is put together in one piece of memory, and as it is handed out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shards.geometry import FrameTransform, inside
from trainer.config import DataSettings, TrackFilterSettings
from trainer.data.augment import change_colours, seen_by, show


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


@dataclass(eq=False)
class PackedBatch:
    """A batch in one piece of memory, so that it travels as one piece and not as six.

    Its parts are views of that: positions float32 [B, T, N, 2]; visibility and confidence uint8 [B, T, N], 255 = certain; frames
    uint8 [B, T, 3, S, S]; and teacher_frame uint8 [B, 3, S, S], or of size 0.
    """

    memory: Tensor
    shape: tuple[int, int, int, int]
    keys: list[str]
    left_out: list[list[str]]

    @staticmethod
    def bytes_of(batch: int, frames: int, size: int, points: int, own: bool) -> int:
        """The memory of a batch of B x T frames of S pixels a side with N points; with `own`, also of the teacher's frames."""
        return batch * frames * points * (8 + 2) + (batch * frames + batch * own) * 3 * size * size

    @classmethod
    def empty(
        cls,
        batch: int,
        frames: int,
        size: int,
        points: int,
        own: bool,
        memory: Tensor | None = None,
    ) -> PackedBatch:
        """A batch to be filled, in memory of its own or at the beginning of that given."""
        count = cls.bytes_of(batch, frames, size, points, own)
        memory = empty_memory(count) if memory is None else memory[:count]
        return cls(memory, (batch, frames, size, points), [""] * batch, [[] for _ in range(batch)])

    def __post_init__(self) -> None:
        b, t, s, n = self.shape
        own = self.memory.numel() - b * t * (n * 10 + 3 * s * s)
        sizes = [8 * b * t * n, b * t * n, b * t * n, b * t * 3 * s * s, own]
        positions, visibility, confidence, frames, teacher_frame = self.memory.split(sizes)
        self.positions = positions.view(torch.float32).view(b, t, n, 2)
        self.visibility, self.confidence = visibility.view(b, t, n), confidence.view(b, t, n)
        self.frames, self.teacher_frame = (
            frames.view(b, t, 3, s, s),
            teacher_frame.view(-1, 3, s, s),
        )

    def show(
        self,
        place: int,
        views: Sequence[FrameTransform],
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
        views: Sequence[FrameTransform],
        positions: NDArray[np.float32],
        visibility: NDArray[np.uint8],
        confidence: NDArray[np.uint8],
    ) -> None:
        """Puts tracks at a place: stored positions [T, N, 2], as they lie in what is seen; visibility and confidence [T, N]."""
        self.positions[place] = torch.from_numpy(seen_by(views, positions))
        self.visibility[place], self.confidence[place] = (
            torch.from_numpy(visibility),
            torch.from_numpy(confidence),
        )

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


def empty_memory(count: int) -> Tensor:
    """Bytes [count]. NumPy asks for huge pages where there are many, which torch does not: there are fewer to find and clear."""
    return torch.from_numpy(np.empty(count, np.uint8))


def first_of(batch: Sample) -> Sample:
    """The first sample of a batch."""
    return cast(Sample, {name: value[0] for name, value in batch.items()})  # type: ignore[index]


def track_mask(sample: Sample, settings: TrackFilterSettings) -> Tensor:
    """Which points count: [..., T, N] bool. In the anchor frame, frame 0, a point is visible by definition: it was put there."""
    visible = (sample["visibility"] > settings.visibility) & (
        sample["confidence"] >= settings.confidence
    )
    visible[..., 0, :] = True
    return visible & sample["inside"] if settings.mask_outside else visible
