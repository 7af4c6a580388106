"""How often `torch.compile` compiles, and that filled-up batches give the same tracks.

Graphs are traced as for a GPU, and then run by PyTorch's ordinary kernels ("eager").
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from pipeline.cotracker3.memory import encoder_bytes, set_bytes
from pipeline.cotracker3.model import CoTracker3, TrackEstimates
from pipeline.cotracker3.tracking import _QueryBatch, _track_in_parts, encode
from pipeline.cotracker3.weights import load_model

POINTS = 4


@pytest.fixture
def compiled(small_maps: None) -> tuple[CoTracker3, CompileCounter]:
    torch.compiler.reset()
    counter = CompileCounter()
    model = load_model("random_offline")
    model.compile_parts(backend=counter)
    return model, counter


def refined(model: CoTracker3, sets: int, frames: int, clips: int = 2) -> TrackEstimates:
    """Track query sets through random feature maps, at most four at once."""
    generator = torch.Generator().manual_seed(frames)
    maps = [
        torch.randn(clips * frames, 24 >> level, 32 >> level, 128, generator=generator)
        for level in range(4)
    ]
    batch = _QueryBatch(
        torch.arange(frames).repeat(sets, 1),
        torch.zeros(sets, POINTS, dtype=torch.long),
        torch.rand(sets, POINTS, 2, generator=generator) * 22,
    )
    return _track_in_parts(
        model, maps, batch, fast=False, iterations=2, memory=8 * set_bytes(frames, POINTS, False)
    )


@pytest.mark.slow
@torch.no_grad()
def test_a_build_compiles_the_encoder_once_and_an_iteration_twice(
    compiled: tuple[CoTracker3, CompileCounter],
) -> None:
    """Clips of 4 frames, then shorter and longer ones, alone and together, with few query sets."""
    model, counter = compiled
    memory = 8 * encoder_bytes(False)  # four frames at once
    for frames in (5, 3):
        encode(model, torch.zeros(1, frames, 3, 24, 32, dtype=torch.uint8), memory=memory)
    assert counter.frame_count == 1
    for sets, clips in ((4, 2), (3, 2), (1, 1)):
        refined(model, sets, 4, clips)
    assert counter.frame_count == 2
    for sets, frames, clips in ((1, 3, 1), (4, 5, 2), (2, 6, 1)):
        refined(model, sets, frames, clips)
    assert counter.frame_count == 3


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("sets", [1, 5])
def test_rows_that_fill_up_a_batch_change_no_track(
    compiled: tuple[CoTracker3, CompileCounter], sets: int
) -> None:
    """One set is filled up to two; five are split into three and two."""
    got, expected = (
        refined(model, sets, 3) for model in (compiled[0], load_model("random_offline"))
    )
    assert got.positions.shape == (sets, 3, POINTS, 2)
    for name in ("positions", "visibility", "confidence"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=0, atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
def test_frames_that_fill_up_a_batch_change_no_map(
    compiled: tuple[CoTracker3, CompileCounter],
) -> None:
    """Five frames, four at once: the last is filled up by copies of itself."""
    video = torch.randint(0, 256, (1, 5, 3, 24, 32), generator=torch.Generator().manual_seed(0))
    got: list[Tensor] = encode(compiled[0], video, memory=8 * encoder_bytes(False))
    for level, expected in zip(got, encode(load_model("random_offline"), video), strict=True):
        assert len(level) == 5
        torch.testing.assert_close(level, expected, rtol=0, atol=1e-4)
