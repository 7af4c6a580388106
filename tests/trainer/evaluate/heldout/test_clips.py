"""Held-out clips: the points of every model are the same, and angles are those of the cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.snapshot import open_snapshot
from shards.clip import Camera
from tests.helpers.scenic_clips import held_out
from tests.trainer.conftest import HEIGHT, WIDTH
from trainer.evaluate.heldout.clips import (
    relative_rotation,
)


def test_the_points_are_the_same_at_every_size(build: Path) -> None:
    snapshot = open_snapshot(build)
    both, small = held_out(snapshot, 56, 64), held_out(snapshot, 64)
    for one, other in zip(both.clips, small.clips, strict=True):
        assert torch.allclose(one.positions, other.positions, atol=1e-6)
        assert torch.equal(one.track_mask, other.track_mask)
        assert torch.equal(one.images[64], other.images[64])
        assert one.images[56].shape == (4, 3, 56, 56)
    clip = both.clips[0]
    assert clip.positions[0, 0].tolist() == pytest.approx(
        [(8 * 95 / 511 + 0.5) / WIDTH, (8 * 63 / 383 + 0.5) / HEIGHT], abs=1e-3
    )
    moved = clip.positions[1] - clip.positions[0]  # 2 frames of 3 px left and 1 px up
    assert moved.numpy() == pytest.approx(np.tile([-6 / WIDTH, -2 / HEIGHT], (36, 1)), abs=1e-3)


def test_rotations() -> None:
    eye, turned = ((1.0, 0, 0, 5, 0, 1, 0, 0, 0, 0, 1, 0), (0.0, -1, 0, 0, 1, 0, 0, 3, 0, 0, 1, 0))
    assert relative_rotation(Camera(1, 1, 0, 0, eye), Camera(2, 2, 0, 0, turned)) == pytest.approx(
        90
    )
    assert relative_rotation(
        Camera(1, 1, 0, 0, turned), Camera(2, 2, 0, 0, turned)
    ) == pytest.approx(0, abs=1e-5)
