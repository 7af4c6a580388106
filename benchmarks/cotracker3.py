"""Time CoTracker3.

    python -m benchmarks.cotracker3 [--frames 24] [--clips 4] [--device cuda] [--video FILE]

Frames of 384x512 pixels are photographs in motion (synthetic scenes) or consecutive clips of a
video file. Weights are random unless given: they do not affect speed, but do affect how far `fast`
is from `exact`. These modes take turns:

- published: float32, one clip, one anchor and one direction at a time, and each encodes all
             frames again, as the published predictor does
- exact:     float32, frames encoded once for all anchors and both directions
- fast:      the same in bfloat16 where it is safe, with all clips together
- compiled:  fast with `torch.compile` (on CUDA, or with --compiled), compiled before timing

Prints frames per second and the speed-up over `published`; peak memory (on a CPU, that of a new
process that does nothing else, torch included, where /proc reports it); how far `fast` is from
`exact`; where the time goes; and, if the device's peak rate is given, the share of it that `fast`
reaches (--peak-tflops 989 for an H200's bfloat16).
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from manifests.wording import pluralise
from pipeline.cotracker3.model import MODEL_HEIGHT, MODEL_WIDTH, CoTracker3
from pipeline.cotracker3.tracking import encode, track
from pipeline.cotracker3.weights import load_model
from pipeline.decode.ledger import Ledger
from pipeline.decode.scan import scan
from pipeline.decode.video import read_frames
from pipeline.network_trackers.predicted_tracks import PredictedTracks
from pipeline.sources.synthetic_scene import SceneId, make_scene, render
from shards.errors import PretrackError
from shards.geometry import FrameTransform

Mode = Callable[..., object]
"""A way of tracking: (model, video, *, grid, anchors, memory) → tracks."""


def published(
    model: CoTracker3, video: Tensor, *, grid: int, anchors: tuple[int, ...], memory: int | None
) -> None:
    """Track one clip, anchor and direction at a time. The first frame needs only one direction."""
    for clip in video:
        for anchor in anchors:
            track(model, clip[None], grid=grid, anchors=(anchor,), backward=False)
            if anchor:
                mirrored = clip.shape[0] - 1 - anchor
                track(model, clip[None].flip(1), grid=grid, anchors=(mirrored,), backward=False)


def exact(
    model: CoTracker3, video: Tensor, *, grid: int, anchors: tuple[int, ...], memory: int | None
) -> PredictedTracks:
    """Track all anchors and both directions of a clip from one encoding."""
    parts = [track(model, clip[None], grid=grid, anchors=anchors, memory=memory) for clip in video]
    return PredictedTracks(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("positions", "visibility", "confidence")
        )
    )


def fast(
    model: CoTracker3, video: Tensor, *, grid: int, anchors: tuple[int, ...], memory: int | None
) -> PredictedTracks:
    """Track all anchors and both directions of all clips together, in bfloat16."""
    return track(model, video, grid=grid, anchors=anchors, fast=True, memory=memory)


MODES: dict[str, Mode] = {"published": published, "exact": exact, "fast": fast, "compiled": fast}


def scenes(clips: int, frames: int) -> Tensor:
    """Render photographs in motion: [clips, frames, 3, 384, 512] uint8."""
    moving = [
        make_scene(SceneId(0, number, frames, MODEL_WIDTH, MODEL_HEIGHT)) for number in range(clips)
    ]
    return stacked([render(scene, frame) for scene in moving for frame in range(frames)], clips)


def clips_of_file(path: str, clips: int, frames: int) -> Tensor:
    """Read the first clips of a video file, resized to [clips, frames, 3, 384, 512] uint8."""
    video = scan(path, shot_cuts=False)
    if len(video.timestamps) < clips * frames:
        raise PretrackError(
            f"{path} has {len(video.timestamps)} frames, too few for {clips} clips of {frames}: "
            "lower --clips or --frames"
        )
    resize = FrameTransform.whole(video.width, video.height, MODEL_WIDTH, MODEL_HEIGHT)
    decoded = read_frames(path, "pyav", Ledger.unpack(video.ledger), range(clips * frames))
    return stacked([resize.frame(frame) for frame in decoded], clips)


def stacked(frames: list[np.ndarray], clips: int) -> Tensor:
    """Stack the frames [H, W, 3] of consecutive clips into one tensor [clips, T, 3, H, W]."""
    return (
        torch.from_numpy(np.stack(frames))
        .permute(0, 3, 1, 2)
        .unflatten(0, (clips, -1))
        .contiguous()
    )


def timed(work: Callable[[], object], device: str) -> tuple[float, object]:
    """Return the seconds that `work` takes, pending device work included, and its result."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def peak_of_process(
    mode: str,
    weights: str,
    video: np.ndarray,
    *,
    grid: int,
    anchors: tuple[int, ...],
    memory: int | None,
) -> int:
    """Track in one mode, and return this process's peak memory in bytes; 0 if it is not known."""
    MODES[mode](
        load_model(weights, compiled=mode == "compiled"),
        torch.from_numpy(video),
        grid=grid,
        anchors=anchors,
        memory=memory,
    )
    # Not getrusage: its peak is inherited from the parent process.
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(peak[1]) * 1024 if peak else 0


def in_fresh_process(work: Callable[[], int]) -> int:
    """Return the result of `work` in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def deviation(exact: PredictedTracks, fast: PredictedTracks) -> str:
    """Describe how far two sets of the same tracks are apart."""
    pixels = (exact.positions - fast.positions).norm(dim=-1).flatten().float()
    flips = ((exact.visibility > 0.5) != (fast.visibility > 0.5)).float().mean().item()
    quantiles = torch.quantile(
        pixels[:: max(1, len(pixels) // 1_000_000)], torch.tensor([0.5, 0.99], device=pixels.device)
    )
    return (
        f"median distance {quantiles[0]:.4f} px, 99 % below {quantiles[1]:.4f} px, "
        f"visibility differs for {flips:.3%}"
    )


def compare(a: argparse.Namespace, video: Tensor, anchors: tuple[int, ...]) -> None:
    """Print the table of all modes for a set of anchors."""
    memory = int(a.memory_gb * (1 << 30)) if a.memory_gb else None
    modes = [mode for mode in MODES if mode != "compiled" or a.compiled]
    plain = load_model(a.weights, a.device)
    compiled = load_model(a.weights, a.device, compiled=True) if a.compiled else plain
    models = {mode: compiled if mode == "compiled" else plain for mode in modes}
    options = {"grid": a.grid, "anchors": anchors, "memory": memory}
    works = {mode: partial(MODES[mode], models[mode], video, **options) for mode in modes}
    peaks = dict.fromkeys(modes, 0)
    for mode in modes:
        if a.device == "cuda" or mode == "compiled":
            works[mode]()
        else:
            # The first use starts threads and allocates memory; two frames are enough to warm up.
            MODES[mode](plain, video[:, :2], **{**options, "anchors": (0,)})
        if a.device == "cpu":
            peaks[mode] = in_fresh_process(
                partial(peak_of_process, mode, a.weights, video.numpy(), **options)
            )
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    results: dict[str, object] = {}
    for _ in range(a.rounds):
        for mode, work in works.items():
            if a.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken, results[mode] = timed(work, a.device)
            seconds[mode].append(taken)
            if a.device == "cuda":
                peaks[mode] = torch.cuda.max_memory_allocated()
    print(f"\nanchors {list(anchors)}: speed, speed-up over published, time per round, peak memory")
    published_seconds = median(seconds["published"])
    for mode, times in seconds.items():
        taken = median(times)
        speed = f"{a.clips * a.frames / taken:8.2f} frames/s  {published_seconds / taken:5.2f}x"
        spread = f"{min(times):.1f} to {max(times):.1f} s"
        print(f"  {mode:<10} {speed}  {spread}  peak {peaks[mode] / 1e9:.2f} GB", flush=True)
    reference = results["exact"]
    assert isinstance(reference, PredictedTracks)
    for mode in modes[2:]:
        result = results[mode]
        assert isinstance(result, PredictedTracks)
        print(f"  {mode} compared with exact: {deviation(reference, result)}")
    print_rate(works["fast"], median(seconds["fast"]), a.peak_tflops)


def print_rate(fast: Callable[[], object], seconds: float, peak_tflops: float | None) -> None:
    """Print the floating-point operations of `fast`, and their rate if it takes `seconds`."""
    with FlopCounterMode(display=False) as counter:
        fast()
    tflop = counter.get_total_flops() / 1e12
    share = f", {tflop / seconds / peak_tflops:.0%} of the peak" if peak_tflops else ""
    print(f"  fast: {tflop:.2f} TFLOP, {tflop / seconds:.2f} TFLOP/s{share}", flush=True)


def print_time_shares(model: CoTracker3, video: Tensor, grid: int, device: str) -> None:
    """Print each part's share of the time of one direction from one anchor, in bfloat16."""
    clip = video[:1]
    spent: dict[str, float] = {}
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def add_timer(name: str, module: torch.nn.Module) -> None:
        started = [0.0]

        def before(*_: object) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            started[0] = time.perf_counter()

        def after(*_: object) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - started[0]

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        encode(model, clip[:, :2], torch.bfloat16)
    for name, module in (
        ("encoder", model.fnet),
        ("sampling and correlation", model.corr_mlp),
        ("transformer", model.updateformer),
    ):
        add_timer(name, module)
    total, _ = timed(lambda: track(model, clip, grid=grid, backward=False, fast=True), device)
    for handle in handles:
        handle.remove()
    print("\nshares of the time, one anchor, one direction, fast:")
    for name, taken in spent.items():
        print(f"  {name:<28} {taken / total:6.1%}")
    print(f"  {'the rest':<28} {1 - sum(spent.values()) / total:6.1%}")


def main() -> None:
    """Print the tables."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cotracker3")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--video", metavar="FILE", help="a video file, instead of synthetic scenes")
    parser.add_argument("--memory-gb", type=float, help="default: the tracker's own default")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=cuda,
        help="also measure torch.compile",
    )
    parser.add_argument("--weights", default="random_offline")
    parser.add_argument("--peak-tflops", type=float)
    a = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    video = (
        clips_of_file(a.video, a.clips, a.frames) if a.video else scenes(a.clips, a.frames)
    ).to(a.device)
    machine = (
        torch.cuda.get_device_name()
        if a.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    source = a.video or "synthetic scenes"
    clips = f"{pluralise(a.clips, 'clip')} of {a.frames} frames"
    print(f"{machine}; {clips}, {source}, weights {a.weights}")
    print(f"{a.grid**2} tracks per anchor; medians of {pluralise(a.rounds, 'round')}", flush=True)
    for anchors in ((0,), tuple(range(0, a.frames, max(1, a.frames // 3)))[:3]):
        compare(a, video, anchors)
    print_time_shares(load_model(a.weights, a.device), video, a.grid, a.device)


if __name__ == "__main__":
    main()
