"""Batches: which points count, and what a batch takes of memory."""

from __future__ import annotations

import torch

from trainer.data.batch import Batch, first_item, slice_batch, track_mask
from trainer.data.device_batches import to_device
from trainer.data.packed_batch import BatchShape, PackedBatch
from trainer.data.settings import TrackFilterSettings


def test_points_at_or_below_a_threshold_do_not_count() -> None:
    sample = Batch(
        frames=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        positions=torch.zeros(2, 3, 2),
        visibility=torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.95, 0.95]]),
        confidence=torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]]),
        inside=torch.ones(2, 3, dtype=torch.bool),
        key="a",
    )
    assert track_mask(sample, TrackFilterSettings())[1].tolist() == [False, True, False]
    assert track_mask(sample, TrackFilterSettings(confidence=0))[1].tolist() == [False, True, True]


def test_a_slice_has_the_tensors_and_keys_of_its_clips() -> None:
    batch = Batch(
        frames=torch.arange(3).view(3, 1),
        positions=torch.arange(3).view(3, 1),
        visibility=torch.arange(3).view(3, 1),
        confidence=torch.arange(3).view(3, 1),
        inside=torch.arange(3).view(3, 1),
        key=["a", "b", "c"],
    )
    part = to_device(slice_batch(batch, slice(1, 3)), torch.device("cpu"))
    assert part.keys() == batch.keys()
    assert part["key"] == ["b", "c"]
    assert part["frames"].tolist() == part["inside"].tolist() == [[1], [2]]
    assert first_item(batch)["key"] == "a"
    assert first_item(part)["positions"].tolist() == [1]


def test_memory_of_a_batch_is_what_was_worked_out_by_hand() -> None:
    shape = BatchShape(clips=2, frames=4, size=8, points=5, teacher_frames=True)
    # 40 points of 8 + 1 + 1 bytes; 8 frames and 2 teacher frames of 3 * 8 * 8 bytes
    assert shape.num_bytes == 400 + 10 * 192
    batch = PackedBatch.empty(shape, torch.zeros(5000, dtype=torch.uint8))
    assert batch.memory.numel() == 2320
    for name, size in (
        ("positions", (2, 4, 5, 2)),
        ("visibility", (2, 4, 5)),
        ("confidence", (2, 4, 5)),
        ("frames", (2, 4, 3, 8, 8)),
        ("teacher_frame", (2, 3, 8, 8)),
    ):
        part = getattr(batch, name)
        assert part.shape == size
        part[:] = 1  # no part overlaps another
    assert (batch.positions == 1).all()
    assert batch.memory[320:].eq(1).all()
    plain = PackedBatch.empty(BatchShape(2, 4, 8, 5, teacher_frames=False))
    assert plain.memory.numel() == 400 + 8 * 192
    assert plain.teacher_frame.shape == (0, 3, 8, 8)
