"""TAPIR on the device: golden outputs, fast against exact, speed and memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.gpu.line import Line, attempt, milliseconds, peak_gigabytes, reset_peak, seconds
from benchmarks.gpu.moving_pictures import moving_pictures
from pipeline.tapir.model import Tapir
from pipeline.tapir.tracking import track
from pipeline.tapir.weights import load_model
from tests.pipeline.tapir.golden_outputs import (
    CASES,
    GoldenCase,
    deviation,
    golden_model,
    golden_outputs,
)


def lines(device: str, small: bool) -> Iterator[Line]:
    """Check the tracks, then time them."""
    for case in CASES[:1] if small else CASES:
        yield from attempt(f"golden outputs, {case.name}", partial(_golden, case, device))
    yield from attempt("fast against exact", partial(_fast_against_exact, device, small))
    side, clips, cuda = 64 if small else 256, 1 if small else 8, device == "cuda"
    compiled = load_model("random", device, compiled=cuda, base_side=side)
    settings: tuple[tuple[int, tuple[int, ...]], ...] = (
        ((2, (0,)),) if small else ((24, (0,)), (24, (0, 8, 16)), (48, (0, 16, 32)))
    )
    for frames, anchors in settings:
        speed = partial(_speed, compiled, clips, frames, anchors, device)
        yield from attempt(f"{frames} frames, {len(anchors)} anchors", speed)
    if cuda:
        from torch._dynamo.utils import counters

        # the encoder, and an iteration; one of a single clip would be compiled apart
        count = counters["stats"]["unique_graphs"]
        yield Line("graphs compiled for all of these", float(count), at_most=2)
        plain = load_model("random", device, base_side=side)
        speed = partial(_speed, plain, clips, 24, (0, 8, 16), device, "not compiled, ")
        yield from attempt("not compiled", speed)


def _golden(case: GoldenCase, device: str) -> Iterator[Line]:
    """Compare with the published code's outputs of the same random weights."""
    differs = deviation(case, golden_outputs(), golden_model(case).to(device), device=device)
    yield Line(f"golden outputs, {case.name}", differs.pixels, "px", at_most=1e-3)
    yield Line(f"golden outputs, {case.name}: logits", differs.logits, at_most=5e-4)


def _fast_against_exact(device: str, small: bool) -> Iterator[Line]:
    """Compare `fast` with `exact` on moving pictures."""
    model = load_model("random", device, base_side=64 if small else 256)
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


def _speed(
    model: Tapir,
    clips: int,
    frames: int,
    anchors: tuple[int, ...],
    device: str,
    how: str = "",
) -> Iterator[Line]:
    """Time clips of one length; the first call compiles."""
    video, cuda = moving_pictures(clips, frames).to(device), device == "cuda"
    work = partial(track, model, video, grid=16 if cuda else 4, anchors=anchors, fast=True)
    name = f"{how}{frames} frames, {len(anchors)} anchor{'s' * (len(anchors) > 1)}"
    yield Line(f"{name}: first call", seconds(work, device), "s")
    reset_peak(device)
    taken = milliseconds(work, device, rounds=3 if cuda else 1, warm=int(cuda)) / 1e3
    yield Line(f"{name}: speed", clips * frames / taken, "frames/s")
    yield Line(f"{name}: speed", clips / taken, "clips/s")
    if cuda:
        yield Line(f"{name}: peak memory of {clips} clips", peak_gigabytes(device), "GB")
