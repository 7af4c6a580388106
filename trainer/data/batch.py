"""The batch type that the loader yields and the training step takes."""

from __future__ import annotations

from typing import NotRequired, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.settings import TrackFilterSettings


class Batch(TypedDict):
    """B clips with T frames of S x S pixels and N tracked points each.

    Shapes are per batch. An indexed item of `ClipDataset`, and an item of `StreamedClips`, is the
    same without the axis B: its `frames` are [T, 3, S, S] and its `key` is one string.

    frames:        uint8   [B, T, 3, S, S]  RGB; frame 0 is the anchor frame. With `data.resize:
                                            device` the loader yields crops, boxes and colours
                                            instead, and `device_frames.make_frames` makes frames;
                                            with `data.decode: device` JPEGs in place of crops
    teacher_frame: uint8   [B, 3, S, S]     the anchor frame before colour changes; only with
                                            `colour.student_only`
    positions:     float32 [B, T, N, 2]     (x, y) in pixels of `frames`, pixel centres at integers
    visibility:    float32 [B, T, N]        probability of being visible, 0..1
    confidence:    float32 [B, T, N]        probability that the position is right, 0..1
    inside:        bool    [B, T, N]        whether the position lies in the frame
    key:           B strings                the clips' keys
    crops:         uint8   [B, T, P, 3]     RGB pixels of each frame's box, row by row; P is that of
                                            the largest box of the dataset, or of the batch with
                                            `data.decode: device`; others end earlier
    jpegs:         uint8   [B, Q]           JPEGs of each clip's frames, one after the other; on the
                                            host, as an array of NumPy, like the next two
    jpeg_sizes:    int32   [B, T]           bytes of each of them
    corners:       int32   [B, T, 2]        left and top pixel of each frame's box
    boxes:         int32   [B, T, 3]        height and width of each box, and 1 for a flip; on the
                                            host, as an array of NumPy
    colours:       float64 [B, T, 10]       `ColourChange.numbers`; on the host like `boxes`; only
                                            if colours may change
    intrinsics:    float32 [B, T, 3, 3]     pinhole cameras of `frames`, in their pixels; only with
                                            `data.cameras`, as the next two
    world_to_camera: float32 [B, T, 3, 4]   OpenCV's axes; one world per clip, in its source's units
    posed:         bool    [B]              whether all T frames have a usable camera; those without
                                            have the identity
    track_weights: float32 [B, N]           how much each track counts, 0..1; only with
                                            `tracks.epipolar_weight_px`
    left_out:      strings                  one sentence per clip that was replaced because it could
                                            not be read; only with `on_error: skip`, and only until
                                            the loader has logged them
    """

    frames: Tensor
    teacher_frame: NotRequired[Tensor]
    positions: Tensor
    visibility: Tensor
    confidence: Tensor
    inside: Tensor
    key: str | list[str]
    crops: NotRequired[Tensor]
    jpegs: NotRequired[NDArray[np.uint8]]
    jpeg_sizes: NotRequired[NDArray[np.int32]]
    corners: NotRequired[NDArray[np.int32]]
    boxes: NotRequired[NDArray[np.int32]]
    colours: NotRequired[NDArray[np.float64]]
    intrinsics: NotRequired[Tensor]
    world_to_camera: NotRequired[Tensor]
    posed: NotRequired[Tensor]
    track_weights: NotRequired[Tensor]
    left_out: NotRequired[list[str]]


def slice_batch(batch: Batch, clips: slice) -> Batch:
    """Return the clips of a slice along the axis B, as views of the batch's memory."""
    return cast(Batch, {name: value[clips] for name, value in batch.items()})  # type: ignore[index]


def first_item(batch: Batch) -> Batch:
    """Return the first clip of a batch, without the axis B."""
    return cast(Batch, {name: value[0] for name, value in batch.items()})  # type: ignore[index]


def track_mask(batch: Batch, settings: TrackFilterSettings) -> Tensor:
    """Return which points count: bool [B, T, N], or [T, N] for an item without the axis B."""
    visible = (batch["visibility"] > settings.visibility) & (
        batch["confidence"] >= settings.confidence
    )
    # A point of the anchor frame is visible by definition: tracking started from it.
    visible[..., 0, :] = True
    return visible & batch["inside"] if settings.mask_outside else visible
