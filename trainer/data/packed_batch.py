"""A batch in one piece of memory, which decoding fills and workers send to the trainer."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from shards.errors import PretrackError
from shards.geometry import inside
from trainer.data.batch import Batch
from trainer.data.colour import COLOUR_NUMBERS
from trainer.data.settings import DataSettings


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch: clips B, frames per clip T, pixels per side S, points per clip N.

    teacher_frames: whether each clip has a second anchor frame in its original colours
    crop_pixels:    pixels of the largest crop, P, if frames are still to be resized (`data.resize:
                    device`); the batch then has crops instead of frames
    jpeg_bytes:     bytes for the JPEGs of a clip, Q, if frames are still to be decoded too
                    (`data.decode: device`); the batch then has JPEGs instead of frames
    cameras:        whether it has the frames' cameras (`data.cameras`)
    track_weights:  whether it has weights of tracks (`tracks.epipolar_weight_px`)
    """

    clips: int
    frames: int
    size: int
    points: int
    teacher_frames: bool
    crop_pixels: int = 0
    jpeg_bytes: int = 0
    cameras: bool = False
    track_weights: bool = False

    @property
    def parts(self) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Data type and shape of each tensor of a `PackedBatch`, in the order of its memory."""
        # Larger numbers come first, because they need an aligned start.
        points = (self.clips, self.frames, self.points)
        crops = self.clips if self.crop_pixels else 0
        encoded = self.clips if self.jpeg_bytes else 0
        unfinished = crops + encoded
        resized = self.clips - unfinished
        posed = self.clips if self.cameras else 0
        weighted = self.clips if self.track_weights else 0
        return [
            (torch.float32, (*points, 2)),
            (torch.float64, (unfinished, self.frames, COLOUR_NUMBERS)),
            (torch.float32, (posed, self.frames, 3, 3)),
            (torch.float32, (posed, self.frames, 3, 4)),
            (torch.float32, (weighted, self.points)),
            (torch.int32, (unfinished, self.frames, 3)),
            (torch.int32, (encoded, self.frames, 2)),
            (torch.int32, (encoded, self.frames)),
            (torch.uint8, points),
            (torch.uint8, points),
            (torch.uint8, (posed,)),
            (torch.uint8, (resized, self.frames, 3, self.size, self.size)),
            (torch.uint8, (resized * self.teacher_frames, 3, self.size, self.size)),
            (torch.uint8, (crops, self.frames, self.crop_pixels, 3)),
            (torch.uint8, (encoded, self.jpeg_bytes)),
        ]

    @property
    def part_bytes(self) -> list[int]:
        """Bytes of each part."""
        return [dtype.itemsize * prod(shape) for dtype, shape in self.parts]

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole batch."""
        return sum(self.part_bytes)


@dataclass(eq=False)
class PackedBatch:
    """B clips in one uint8 tensor, so that a worker sends one piece of memory and not many.

    memory:        uint8 [shape.num_bytes]; the tensors below are views of it
    positions:     float32 [B, T, N, 2], (x, y) in pixels of the resized frames
    visibility:    uint8 [B, T, N], 255 = certainly visible
    confidence:    uint8 [B, T, N], 255 = certainly right
    frames:        uint8 [B, T, 3, S, S]
    teacher_frame: uint8 [B, 3, S, S], or [0, 3, S, S] without teacher frames
    crops, boxes, corners, jpegs, jpeg_sizes: as in `Batch`
    colours:       float64 [B, T, COLOUR_NUMBERS], as in `Batch`
    intrinsics, world_to_camera, posed: as in `Batch`, of 0 clips without `shape.cameras`
    track_weights: as in `Batch`, of 0 clips without `shape.track_weights`
    keys:          the clips' keys [B]
    left_out:      per clip slot, a sentence for each clip that could not be read for it

    Pictures are in one of three forms, and the others have 0 clips: frames and teacher frames;
    with `shape.crop_pixels` crops; with `shape.jpeg_bytes` JPEGs, their sizes and corners. Boxes
    and colours come with crops and with JPEGs.
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
        (
            self.positions,
            self.colours,
            self.intrinsics,
            self.world_to_camera,
            self.track_weights,
            self.boxes,
            self.corners,
            self.jpeg_sizes,
            self.visibility,
            self.confidence,
            self.posed,
            self.frames,
            self.teacher_frame,
            self.crops,
            self.jpegs,
        ) = (
            part.view(dtype).view(shape)
            for part, (dtype, shape) in zip(
                self.memory.split(self.shape.part_bytes), self.shape.parts, strict=True
            )
        )

    def copy_from(self, other: PackedBatch) -> None:
        """Copy another batch of this shape, without unused memory after its crops or JPEGs."""
        fixed = self.shape.num_bytes - self.crops.numel() - self.jpegs.numel()
        self.memory[:fixed].copy_(other.memory[:fixed])
        if self.shape.crop_pixels:
            sizes = self.boxes[..., :2].prod(-1).flatten().tolist()
            pairs = zip(self.crops.flatten(0, 1), other.crops.flatten(0, 1), strict=True)
        else:
            sizes = self.jpeg_sizes.sum(-1).tolist()
            pairs = zip(self.jpegs, other.jpegs, strict=True)
        for (ours, theirs), size in zip(pairs, sizes, strict=True):
            ours[:size].copy_(theirs[:size])

    def unpack(self, settings: DataSettings) -> Batch:
        """Return the batch that users see. Frames and positions share this batch's memory."""
        images: dict[str, Any] = {"frames": self.frames}
        if self.shape.crop_pixels:
            images = {"crops": self.crops}
        elif self.shape.jpeg_bytes:
            # Views: decoders are done with the JPEGs when they return.
            images = {
                "jpegs": self.jpegs.numpy(),
                "jpeg_sizes": self.jpeg_sizes.numpy(),
                "corners": self.corners.numpy(),
            }
        elif settings.colour.student_only:
            images["teacher_frame"] = self.teacher_frame
        if "frames" not in images:
            # Copies: an asynchronous copy to a device from within pinned memory that torch does not
            # recognise would not keep that memory from being reused.
            images["boxes"] = self.boxes.numpy().copy()
            if settings.colour.changes:
                images["colours"] = self.colours.numpy().copy()
        tracks = {
            "positions": self.positions,
            "visibility": self.visibility.to(torch.float32) / 255,
            "confidence": self.confidence.to(torch.float32) / 255,
            "inside": torch.from_numpy(
                inside(self.positions.numpy(), settings.size, settings.size)
            ),
        }
        if self.shape.cameras:
            tracks["intrinsics"] = self.intrinsics
            tracks["world_to_camera"] = self.world_to_camera
            tracks["posed"] = self.posed.to(torch.bool)
        if self.shape.track_weights:
            tracks["track_weights"] = self.track_weights
        batch = cast(Batch, images | tracks | {"key": self.keys})
        if settings.on_error == "skip":
            batch["left_out"] = [sentence for sentences in self.left_out for sentence in sentences]
        return batch


def empty_memory(count: int) -> Tensor:
    """Allocate `count` bytes without clearing them: uint8 [count]. Raises PretrackError."""
    # NumPy asks the kernel for huge pages in large allocations, which torch does not: there are
    # fewer pages to find and clear.
    try:
        return torch.from_numpy(np.empty(count, np.uint8))
    except MemoryError as error:
        raise PretrackError(
            f"a batch of {count / 1e6:.0f} MB does not fit in memory: take smaller batches, or, "
            "with 'data.resize: device', leave clips of large frames out"
        ) from error
