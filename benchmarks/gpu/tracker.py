"""CoTracker3 on the device: golden outputs, fast against exact, speed and memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.line import Line, attempt, milliseconds, peak_gigabytes, reset_peak, seconds
from benchmarks.gpu.moving_pictures import moving_pictures
from pipeline.cotracker3.model import CoTracker3
from pipeline.cotracker3.tracking import track
from pipeline.cotracker3.weights import load_model
from pipeline.network_trackers.predicted_tracks import PredictedTracks


def lines(device: str, small: bool) -> Iterator[Line]:
    """Check the tracks, then time them."""
    modes = (False,) if small else (False, True)
    yield from attempt("golden outputs", partial(_golden, device, modes))
    yield from attempt("fast against exact", partial(_fast_against_exact, device, small))
    compiled = load_model("random_offline", device, compiled=device == "cuda")
    settings: tuple[tuple[int, tuple[int, ...]], ...] = (
        ((2, (0,)),) if small else ((24, (0,)), (24, (0, 8, 16)), (48, (0,)), (48, (0, 16, 32)))
    )
    for frames, anchors in settings:
        speed = partial(_speed, compiled, 1 if small else 8, frames, anchors, device)
        yield from attempt(f"{frames} frames, {len(anchors)} anchors", speed)
    if device == "cuda":
        from torch._dynamo.utils import counters

        # the encoder, an iteration, and once more an iteration that takes any length
        count = counters["stats"]["unique_graphs"]
        yield Line("graphs compiled for all of these", float(count), at_most=3)
        plain = load_model("random_offline", device)
        speed = partial(_speed, plain, 8, 24, (0, 8, 16), device, "not compiled, ")
        yield from attempt("not compiled", speed)


def _golden(device: str, modes: tuple[bool, ...]) -> Iterator[Line]:
    """Compare tracks, exact or fast, with the published package's of the same random weights."""
    from tests.pipeline.cotracker3.test_cotracker3 import GOLDEN, golden_weights

    with tempfile.TemporaryDirectory() as folder:
        torch.save(golden_weights("offline"), Path(folder) / "offline.pth")
        model = load_model(Path(folder) / "offline.pth", device)
    golden = {
        name: torch.from_numpy(values).to(device)
        for name, values in np.load(GOLDEN / "cotracker3_offline.npz").items()
    }
    for fast in modes:
        predicted = track(
            model, golden["video"][None], grid=6, anchors=(0,), backward=False, fast=fast
        )
        error = (predicted.positions[0, 0] - golden["grid_tracks"]).norm(dim=-1).max().item()
        flips = ((predicted.visibility[0, 0] > 0.9) != golden["grid_visibility"]).sum().item()
        name = "fast" if fast else "exact"
        # in bfloat16 random weights amplify rounding more than trained ones
        yield Line(f"golden outputs, {name}", error, "px", at_most=3 if fast else 2e-3)
        yield Line(
            f"golden outputs, {name}: visibility",
            float(flips),
            "flips",
            at_most=0.01 * golden["grid_visibility"].numel() if fast else 0,
        )


def _fast_against_exact(device: str, small: bool) -> Iterator[Line]:
    """Compare `fast` with `exact` on moving pictures."""
    model = load_model("random_offline", device)
    video = moving_pictures(1, 2 if small else 24).to(device)
    tracked = [
        track(model, video, grid=4 if small else 16, anchors=(0,), fast=fast)
        for fast in (False, True)
    ]
    yield from deviation_lines("fast against exact", *tracked)


def deviation_lines(name: str, exact: PredictedTracks, other: PredictedTracks) -> Iterator[Line]:
    """Return how far two sets of the same tracks are apart, and the bounds of `fast`."""
    pixels = (exact.positions - other.positions).norm(dim=-1).flatten()
    yield Line(f"{name}: 99 % of distances", pixels.quantile(0.99).item(), "px", at_most=1)
    flips = ((exact.visibility > 0.5) != (other.visibility > 0.5)).float().mean().item()
    yield Line(f"{name}: visibility", 100 * flips, "% flips", at_most=0.5)


def _speed(
    model: CoTracker3,
    clips: int,
    frames: int,
    anchors: tuple[int, ...],
    device: str,
    how: str = "",
) -> Iterator[Line]:
    """Time clips of one length; the first call compiles."""
    video: Tensor = moving_pictures(clips, frames).to(device)
    grid = 16 if device == "cuda" else 4
    iterations = 6 if device == "cuda" else 1
    work = partial(
        track, model, video, grid=grid, anchors=anchors, fast=True, iterations=iterations
    )
    name = f"{how}{frames} frames, {len(anchors)} anchor{'s' * (len(anchors) > 1)}"
    yield Line(f"{name}: first call", seconds(work, device), "s")
    reset_peak(device)
    cuda = device == "cuda"
    taken = milliseconds(work, device, rounds=3 if cuda else 1, warm=int(cuda)) / 1e3
    yield Line(f"{name}: speed", clips * frames / taken, "frames/s")
    yield Line(f"{name}: speed", clips / taken, "clips/s")
    plain = load_model("random_offline", device)
    with FlopCounterMode(display=False) as counter:
        track(plain, video[:1], grid=grid, anchors=anchors, fast=True, iterations=iterations)
    rate = clips * counter.get_total_flops() / taken / 1e12
    yield Line(f"{name}: rate", rate, "TFLOP/s")
    if device == "cuda":
        yield Line(f"{name}: peak memory of {clips} clips", peak_gigabytes(device), "GB")
