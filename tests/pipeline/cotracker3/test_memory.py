"""What CoTracker3 would do on a GPU, counted on a fake one: memory, waiting, and memory layout."""

from __future__ import annotations

import pytest
import torch

from pipeline.cotracker3.memory import clips_at_once, encoder_bytes, set_bytes
from pipeline.cotracker3.model import CoTracker3
from pipeline.cotracker3.tracking import _QueryBatch, _track_sliding, _track_whole, encode, track
from pipeline.network_trackers.instance_norm import channels_last_norm, instance_norm
from tests.helpers.fake_gpu import FakeGpu

FRAME = (3, 256, 456)
GB = 1 << 30


def network(window: int = 60) -> CoTracker3:
    return CoTracker3(window).eval().requires_grad_(False)


def dtype_of(fast: bool) -> torch.dtype:
    return torch.bfloat16 if fast else torch.float32


@pytest.mark.parametrize("fast", [True, False])
def test_encoding_a_frame_takes_the_bytes_that_the_rule_counts(
    fake_gpu: FakeGpu, fast: bool
) -> None:
    peaks = []
    for frames in (2, 6):
        gpu = FakeGpu()
        with gpu.making_tensors():
            model, video = network(), torch.zeros(1, frames, *FRAME, dtype=torch.uint8)
        with gpu, torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=fast):
            encode(model, video, dtype_of(fast), memory=64 * GB)
        peaks.append(gpu.peak_bytes)
    per_frame = (peaks[1] - peaks[0]) / 4
    assert 0.9 * encoder_bytes(fast) < per_frame <= encoder_bytes(fast)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fast", "window", "frames", "grid"),
    [
        (True, 60, 24, 16),
        (True, 60, 48, 16),
        (True, 60, 24, 4),  # virtual tracks take more than so few points
        (False, 60, 24, 16),
        (True, 16, 24, 16),
    ],
)
def test_refining_a_query_set_takes_the_bytes_that_the_rule_counts(
    fake_gpu: FakeGpu, fast: bool, window: int, frames: int, grid: int
) -> None:
    points = grid**2
    peaks = []
    for sets in (1, 3):
        gpu = FakeGpu()
        with gpu.making_tensors():
            model = network(window)
            maps = [
                torch.zeros(frames, 96 >> level, 128 >> level, 128, dtype=dtype_of(fast))
                for level in range(4)
            ]
            batch = _QueryBatch(
                torch.zeros(sets, frames, dtype=torch.long),
                torch.zeros(sets, points, dtype=torch.long),
                torch.zeros(sets, points, 2),
            )
        with gpu, torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=fast):
            (_track_whole if window == 60 else _track_sliding)(model, maps, batch, 1)
        peaks.append(gpu.peak_bytes)
    per_set = (peaks[1] - peaks[0]) / 2
    rule = set_bytes(min(frames, window), points, fast)
    assert 0.75 * rule < per_set <= rule


@pytest.mark.slow
@pytest.mark.parametrize(("frames", "anchors"), [(24, (0,)), (24, (0, 8, 16)), (48, (0, 16, 32))])
def test_tracking_as_many_clips_as_the_rule_says_fits_the_memory(
    fake_gpu: FakeGpu, frames: int, anchors: tuple[int, ...]
) -> None:
    """And uses more than half of it. Beside it there are the weights, in both precisions."""
    memory = GB
    clips = clips_at_once(memory, frames=frames, frame_bytes=3 * 256 * 456, fast=True)
    with fake_gpu.making_tensors():
        model = network()
        video = torch.zeros(clips, frames, *FRAME, dtype=torch.uint8)
    with fake_gpu:
        track(model, video, grid=16, anchors=anchors, fast=True, iterations=1, memory=memory)
    weights = 25.5e6 * 2
    assert 0.5 * memory < fake_gpu.peak_bytes < memory + weights


@pytest.mark.parametrize("window", [60, 16])
def test_a_gpu_is_never_waited_for(fake_gpu: FakeGpu, window: int) -> None:
    """Two anchors take three runs and not four: nothing comes before the first one."""
    with fake_gpu.making_tensors():
        model, video = network(window), torch.zeros(1, 3, *FRAME, dtype=torch.uint8)
    with fake_gpu:
        track(model, video, grid=torch.zeros(4, 2), anchors=(0, 1), fast=True, iterations=2)
    assert fake_gpu.waits == []


def test_channels_stay_last_in_the_fast_encoder_only(fake_gpu: FakeGpu) -> None:
    for fast in (True, False):
        gpu = FakeGpu()
        with gpu.making_tensors():
            model, video = network(), torch.zeros(1, 2, *FRAME, dtype=torch.uint8)
        with gpu, torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=fast):
            encode(model, video, dtype_of(fast))
        assert gpu.convolutions == [fast] * 44, "22 convolutions for each of two frames"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_norm_that_keeps_channels_last_equals_group_norm(dtype: torch.dtype) -> None:
    x = 40 + 3 * torch.randn(2, 5, 24, 32, generator=torch.Generator().manual_seed(0))
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    got, expected = channels_last_norm(x), instance_norm(x.double())
    assert torch.equal(x, before)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(got.double(), expected, rtol=rounding, atol=1e-5)
