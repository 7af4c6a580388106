"""What TAPIR would do on a GPU, counted on a fake one: memory and waiting."""

from __future__ import annotations

import pytest
import torch

from pipeline.tapir.memory import clips_at_once, encoder_bytes, estimate_bytes, refine_bytes
from pipeline.tapir.model import Tapir, TrackEstimates
from pipeline.tapir.sides import BASE_SIDE
from pipeline.tapir.tracking import encode, track
from tests.helpers.fake_gpu import FakeGpu

FRAME = (3, 256, 456)
GB = 1 << 30


def network(causal: bool = False) -> Tapir:
    return Tapir(causal=causal).eval().requires_grad_(False)


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
            encode(model, video, [BASE_SIDE], dtype_of(fast), memory=64 * GB)
        peaks.append(gpu.peak_bytes)
    per_frame, rule = (peaks[1] - peaks[0]) / 4, encoder_bytes(BASE_SIDE, fast)
    assert 0.8 * rule < per_frame <= rule


def test_a_first_estimate_takes_the_bytes_that_the_rule_counts(fake_gpu: FakeGpu) -> None:
    peaks = []
    for queries in (64, 192):
        gpu = FakeGpu()
        with gpu.making_tensors():
            model = network()
            low, features = torch.zeros(1, 3, 32, 32, 256), torch.zeros(1, queries, 384)
        with gpu, torch.no_grad():
            model.initial_estimates(low, features, 20.0)
        peaks.append(gpu.peak_bytes)
    per_pair, rule = (peaks[1] - peaks[0]) / 128 / 3, estimate_bytes(BASE_SIDE)
    assert 0.8 * rule < per_pair <= rule


@pytest.mark.slow
@pytest.mark.parametrize(("fast", "side"), [(True, 256), (False, 256), (True, 512)])
def test_refining_a_query_takes_the_bytes_that_the_rule_counts(
    fake_gpu: FakeGpu, fast: bool, side: int
) -> None:
    peaks, frames = [], 24
    for queries in (64, 192):
        gpu = FakeGpu()
        with gpu.making_tensors():
            model = network()
            maps = [
                torch.zeros(
                    1, frames, side // stride, side // stride, channels, dtype=dtype_of(fast)
                )
                for stride, channels in ((4, 128), (8, 256), (16, 256))
            ]
            estimates = TrackEstimates(*(torch.zeros(1, queries, frames, 2) for _ in range(2)))
            features = torch.zeros(1, queries, 384)
        with gpu, torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=fast):
            model.refine(maps, features, estimates, 2)
        peaks.append(gpu.peak_bytes)
    per_frame, rule = (peaks[1] - peaks[0]) / 128 / frames, refine_bytes(side, fast)
    assert 0.75 * rule < per_frame <= rule


@pytest.mark.slow
def test_tracking_as_many_clips_as_the_rule_says_fits_the_memory(fake_gpu: FakeGpu) -> None:
    """And uses more than half of it. Beside it there are the weights, in both precisions."""
    memory, frames = GB // 8, 12
    clips = clips_at_once(
        memory, frames=frames, frame_bytes=3 * 256 * 456, sides=[BASE_SIDE], fast=True
    )
    assert clips == 2
    with fake_gpu.making_tensors():
        model = network()
        video = torch.zeros(clips, frames, *FRAME, dtype=torch.uint8)
    with fake_gpu:
        track(model, video, grid=8, anchors=(0, 6), fast=True, iterations=1, memory=memory)
    weights = 54.7e6 * 2
    assert 0.5 * memory < fake_gpu.peak_bytes < memory + weights


@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_gpu_is_never_waited_for(fake_gpu: FakeGpu, causal: bool) -> None:
    with fake_gpu.making_tensors():
        model, video = network(causal), torch.zeros(2, 3, *FRAME, dtype=torch.uint8)
    with fake_gpu:
        track(model, video, grid=torch.zeros(4, 2), anchors=(0, 1), fast=True, iterations=1)
    assert fake_gpu.waits == []
