"""Compare TAPIR with the published code's outputs, and time it beside CoTracker3.

    python -m benchmarks.tapir [--frames 8] [--grid 16] [--device cuda] [--cases NAME ...]

First each golden case is tracked: the table shows the largest differences from the outputs of the
published code, in pixels and in logits, of the first estimates, the last ones of every resolution
and their mean. Then clips of photographs in motion (synthetic scenes of 384x512 pixels) are tracked
with random weights, which do not affect speed: by TAPIR and by CoTracker3, both in float32 and in
bfloat16 where it is safe. Core seconds per clip are CPU time, which other programs on the machine
change less than clips per second. Last comes how far TAPIR's `fast` is from its `exact`; random
weights magnify rounding, so that trained ones should be nearer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cotracker3 import deviation as describe_deviation
from benchmarks.cotracker3 import scenes, timed
from manifests.wording import pluralise
from pipeline.cotracker3 import tracking as cotracker3
from pipeline.cotracker3 import weights as cotracker3_weights
from pipeline.network_trackers.predicted_tracks import PredictedTracks
from pipeline.tapir import tracking as tapir
from pipeline.tapir import weights as tapir_weights
from tests.pipeline.tapir.golden_outputs import CASES, deviation, golden_model, golden_outputs

Track = Callable[..., PredictedTracks]


def print_golden(names: Sequence[str], device: str) -> None:
    """Print the differences of each case from the published code, in float32."""
    golden = golden_outputs()
    print(f"{'golden case':<24}{'px':>10}{'logits':>10}{'seconds':>10}")
    for case in CASES:
        if case.name not in names:
            continue
        model = golden_model(case).to(device)
        started = time.perf_counter()
        differs = deviation(case, golden, model, device=device)
        taken = time.perf_counter() - started
        print(f"{case.name:<24}{differs.pixels:>10.1e}{differs.logits:>10.1e}{taken:>10.1f}")


def print_speed(
    video: Tensor, grid: int, anchors: tuple[int, ...], device: str
) -> tuple[PredictedTracks, PredictedTracks]:
    """Print the speed of both trackers; return TAPIR's exact and fast tracks."""
    tracks: list[PredictedTracks] = []
    print(f"\nanchors {list(anchors)}, {grid**2} points per anchor")
    networks: list[tuple[str, Track, torch.nn.Module]] = [
        ("tapir", tapir.track, tapir_weights.load_model("random", device)),
        ("cotracker3", cotracker3.track, cotracker3_weights.load_model("random_offline", device)),
    ]
    for name, track, model in networks:
        for fast in (False, True):
            work = partial(track, model, video, grid=grid, anchors=anchors, fast=fast)
            track(model, video[:, :2], grid=2, anchors=(0,), iterations=1, fast=fast)  # warms up
            started = time.process_time()
            with FlopCounterMode(display=False) as counter:
                taken, result = timed(work, device)
            assert isinstance(result, PredictedTracks)
            used = (time.process_time() - started) / len(video)
            gigaflop = counter.get_total_flops() / video[:, :, 0, 0, 0].numel() / 1e9
            mode = f"{name} {'fast' if fast else 'exact'}"
            print(
                f"  {mode:<18}{len(video) / taken:8.3f} clips/s {used:8.1f} core s per clip "
                f"{gigaflop:8.0f} GFLOP per frame",
                flush=True,
            )
            if track is tapir.track:
                tracks.append(result)
    return tracks[0], tracks[1]


def main() -> None:
    """Print the tables."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tapir")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="*", choices=names, default=names)
    a = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    threads = f"CPU, {torch.get_num_threads()} threads"
    print(torch.cuda.get_device_name() if a.device == "cuda" else threads)
    print_golden(a.cases, a.device)
    video = scenes(a.clips, a.frames).to(a.device)
    print(f"\n{pluralise(a.clips, 'clip')} of {a.frames} frames, random weights")
    for anchors in ((0,), tuple(range(0, a.frames, max(1, a.frames // 3)))[:3]):
        exact, fast = print_speed(video, a.grid, anchors, a.device)
        print(f"  tapir fast compared with exact: {describe_deviation(exact, fast)}")


if __name__ == "__main__":
    main()
