"""TAPIR on the device: golden outputs, fast against exact, speed and memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.line import Line, milliseconds, peak_gigabytes, reset_peak, seconds
from benchmarks.gpu.moving_pictures import moving_pictures
from pipeline.tapir.model import Tapir
from pipeline.tapir.tracking import track
from pipeline.tapir.weights import load_model
from tests.pipeline.tapir.golden_outputs import CASES, deviation, golden_model, golden_outputs


def lines(device: str, small: bool) -> Iterator[Line]:
    """Check the tracks, then time them."""
    golden = golden_outputs()
    for case in CASES[:1] if small else CASES:
        differs = deviation(case, golden, golden_model(case).to(device), device=device)
        yield Line(f"golden outputs, {case.name}", differs.pixels, "px", at_most=1e-3)
        yield Line(f"golden outputs, {case.name}: logits", differs.logits, at_most=5e-4)
    side = 64 if small else 256
    model = load_model("random", device, base_side=side)
    video = moving_pictures(1, 2 if small else 24).to(device)
    grid = 4 if small else 16
    exact, fast = (
        track(model, video, grid=grid, anchors=(0,), fast=fast) for fast in (False, True)
    )
    # A median: with random weights, rounding moves the best cell of some cost volumes, and with it
    # a whole track.
    pixels = (exact.positions - fast.positions).norm(dim=-1).flatten()
    yield Line("fast against exact: median distance", pixels.median().item(), "px", at_most=0.5)
    flips = ((exact.visibility > 0.5) != (fast.visibility > 0.5)).float().mean().item()
    yield Line("fast against exact: visibility", 100 * flips, "% flips", at_most=2)
    compiled = load_model("random", device, compiled=device == "cuda", base_side=side)
    for frames, anchors in ((2, (0,)),) if small else ((24, (0, 8, 16)), (48, (0, 16, 32))):
        yield from _speed(compiled, 1 if small else 8, frames, anchors, device)


def _speed(
    model: Tapir, clips: int, frames: int, anchors: tuple[int, ...], device: str
) -> Iterator[Line]:
    """Time clips of one length, compiled on a GPU."""
    video, cuda = moving_pictures(clips, frames).to(device), device == "cuda"
    work = partial(track, model, video, grid=16 if cuda else 4, anchors=anchors, fast=True)
    name = f"{frames} frames, {len(anchors)} anchor{'s' * (len(anchors) > 1)}"
    yield Line(f"{name}: first call", seconds(work, device), "s")
    reset_peak(device)
    taken = milliseconds(work, device, rounds=3 if cuda else 1, warm=int(cuda)) / 1e3
    yield Line(f"{name}: speed", clips / taken, "clips/s")
    if cuda:
        yield Line(f"{name}: peak memory of {clips} clips", peak_gigabytes(device), "GB")
