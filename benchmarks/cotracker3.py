"""How fast CoTracker3 tracks: `python -m benchmarks.cotracker3 [--frames 24] [--clips 4] [--device cuda] [--video FILE]`.

Frames of 384x512: photographs in motion (synthetic scenes), or consecutive clips of a video file. Weights are random unless given:
they decide no speed, but how far `fast` is from `exact`. The ways take turns:

- published: float32, one clip, one anchor and one direction at a time, each encoding all frames anew, as the published predictor
- exact:     float32, frames encoded once for all anchors and both directions
- fast:      the same in bfloat16 where it is safe, clips together
- compiled:  fast, with kernels by `torch.compile` (on CUDA, or with --compiled); warmed up before

Prints frames a second and their ratio to the first, peak memory (on a CPU that of a fresh process that does nothing else, torch
included, where /proc says it), how far `fast` is from `exact`, where the time goes, and the part of the device's peak that `fast`
reaches if that peak is given (--peak-tflops 989 for an H200's bfloat16).
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

from pipeline.cotracker3.model import MODEL_HEIGHT, MODEL_WIDTH, CoTracker3
from pipeline.cotracker3.tracking import PredictedTracks, encode, track
from pipeline.cotracker3.weights import load_model
from pipeline.decode.video import read_frames, scan
from pipeline.sources.synthetic_scene import SceneId, make_scene, render
from shards.errors import PretrackError
from shards.geometry import FrameTransform

Way = Callable[[CoTracker3, Tensor, int, tuple[int, ...], int | None], object]


def published(
    model: CoTracker3, video: Tensor, grid: int, anchors: tuple[int, ...], memory: int | None
) -> None:
    """One thing at a time. Tracking from the first frame only needs one direction."""
    for clip in video:
        for anchor in anchors:
            for direction in (1, -1) if anchor else (1,):
                frames = clip[None] if direction == 1 else clip[None].flip(1)
                at = anchor if direction == 1 else clip.shape[0] - 1 - anchor
                track(model, frames, grid=grid, anchors=(at,), backward=False)


def exact(
    model: CoTracker3, video: Tensor, grid: int, anchors: tuple[int, ...], memory: int | None
) -> PredictedTracks:
    """All anchors and directions of a clip from one encoding."""
    parts = [track(model, clip[None], grid=grid, anchors=anchors, memory=memory) for clip in video]
    return PredictedTracks(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("positions", "visibility", "confidence")
        )
    )


def fast(
    model: CoTracker3, video: Tensor, grid: int, anchors: tuple[int, ...], memory: int | None
) -> PredictedTracks:
    """All anchors and directions of all clips."""
    return track(model, video, grid=grid, anchors=anchors, fast=True, memory=memory)


WAYS: dict[str, Way] = {"published": published, "exact": exact, "fast": fast, "compiled": fast}


def scenes(clips: int, frames: int) -> Tensor:
    """Rendered photographs in motion: [clips, frames, 3, 384, 512] uint8."""
    made = [
        make_scene(SceneId(0, number, frames, MODEL_WIDTH, MODEL_HEIGHT)) for number in range(clips)
    ]
    return stacked([render(scene, frame) for scene in made for frame in range(frames)], clips)


def of_file(path: str, clips: int, frames: int) -> Tensor:
    """The first clips of a video file, squashed to [clips, frames, 3, 384, 512] uint8."""
    found = scan(path, shot_cuts=False)
    if len(found.timestamps) < clips * frames:
        raise PretrackError(
            f"{path} has {len(found.timestamps)} frames, and {clips} clips of {frames} were asked for"
        )
    view = FrameTransform.whole(found.width, found.height, MODEL_WIDTH, MODEL_HEIGHT)
    return stacked(
        [view.frame(f) for f in read_frames(path, "pyav", found.timestamps, range(clips * frames))],
        clips,
    )


def stacked(frames: list[np.ndarray], clips: int) -> Tensor:
    """Frames [H, W, 3] of clips after one another as one tensor."""
    return (
        torch.from_numpy(np.stack(frames))
        .permute(0, 3, 1, 2)
        .unflatten(0, (clips, -1))
        .contiguous()
    )


def timed(work: Callable[[], object], device: str) -> tuple[float, object]:
    """Seconds that it takes, the device's queue included, and its result."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def peak_of_process(
    way: str,
    weights: str,
    video: np.ndarray,
    grid: int,
    anchors: tuple[int, ...],
    memory: int | None,
) -> int:
    """Bytes that this process has held at most, after tracking in one way; 0 where that is not told."""
    WAYS[way](
        load_model(weights, compiled=way == "compiled"),
        torch.from_numpy(video),
        grid,
        anchors,
        memory,
    )
    status = Path("/proc/self/status")  # not getrusage, whose peak a process inherits
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def in_fresh_process(work: Callable[[], int]) -> int:
    """The result of `work` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work).result()


def deviation(exact: PredictedTracks, fast: PredictedTracks) -> str:
    """How far two ways of tracking the same are apart."""
    pixels = (exact.positions - fast.positions).norm(dim=-1).flatten().float()
    flips = ((exact.visibility > 0.5) != (fast.visibility > 0.5)).float().mean().item()
    quantiles = torch.quantile(
        pixels[:: max(1, len(pixels) // 1_000_000)], torch.tensor([0.5, 0.99], device=pixels.device)
    )
    return f"median {quantiles[0]:.4f} px, 99 % below {quantiles[1]:.4f} px, visibility differs for {flips:.3%}"


def compare(a: argparse.Namespace, video: Tensor, anchors: tuple[int, ...]) -> None:
    """Prints the table of all ways for a set of anchors."""
    memory = int(a.memory_gb * (1 << 30)) if a.memory_gb else None
    ways = [way for way in WAYS if way != "compiled" or a.compiled]
    plain = load_model(a.weights, a.device)
    compiled = load_model(a.weights, a.device, compiled=True) if a.compiled else plain
    works = {
        way: partial(
            WAYS[way], compiled if way == "compiled" else plain, video, a.grid, anchors, memory
        )
        for way in ways
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    results: dict[str, object] = {}
    peaks = dict.fromkeys(ways, 0)
    for way in ways:
        if a.device == "cuda" or way == "compiled":
            works[way]()
        else:  # a first use pays for threads and memory; two frames are enough to have that behind
            WAYS[way](plain, video[:, :2], a.grid, (0,), memory)
        if a.device == "cpu":
            peaks[way] = in_fresh_process(
                partial(peak_of_process, way, a.weights, video.numpy(), a.grid, anchors, memory)
            )
    for _ in range(a.rounds):
        for way, work in works.items():
            if a.device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            taken, results[way] = timed(work, a.device)
            seconds[way].append(taken)
            if a.device == "cuda":
                peaks[way] = torch.cuda.max_memory_allocated()
    print(f"\nanchors {list(anchors)}")
    base = median(seconds["published"])
    for way, times in seconds.items():
        taken = median(times)
        speed = f"{a.clips * a.frames / taken:8.2f} frames/s  {base / taken:5.2f}x  {min(times):.1f} to {max(times):.1f} s"
        print(f"  {way:<10} {speed}  peak {peaks[way] / 1e9:.2f} GB", flush=True)
    reference = results["exact"]
    assert isinstance(reference, PredictedTracks)
    for way in ways[2:]:
        result = results[way]
        assert isinstance(result, PredictedTracks)
        print(f"  {way} from exact: {deviation(reference, result)}")
    with FlopCounterMode(display=False) as counter:
        works["fast"]()
    rate = counter.get_total_flops() / median(seconds["fast"]) / 1e12
    part = f", {rate / a.peak_tflops:.0%} of the peak" if a.peak_tflops else ""
    print(
        f"  fast: {counter.get_total_flops() / 1e12:.2f} TFLOP, {rate:.2f} TFLOP/s{part}",
        flush=True,
    )


def parts(model: CoTracker3, video: Tensor, grid: int, device: str) -> None:
    """Prints where the time of one direction from one anchor goes, in bfloat16."""
    clip = video[:1]
    spent: dict[str, float] = {}
    handles: list[torch.utils.hooks.RemovableHandle] = []

    def hooked(name: str, module: torch.nn.Module) -> None:
        began = [0.0]

        def before(*_: object) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            began[0] = time.perf_counter()

        def after(*_: object) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - began[0]

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        encode(model, clip[:, :2], torch.bfloat16)
    for name, module in (
        ("encoder", model.fnet),
        ("sampling and correlation", model.corr_mlp),
        ("transformer", model.updateformer),
    ):
        hooked(name, module)
    total, _ = timed(lambda: track(model, clip, grid=grid, backward=False, fast=True), device)
    for handle in handles:
        handle.remove()
    print("\nwhere the time goes, one anchor, one direction, fast:")
    for name, taken in spent.items():
        print(f"  {name:<28} {taken / total:6.1%}")
    print(f"  {'the rest':<28} {1 - sum(spent.values()) / total:6.1%}")


def main() -> None:
    """Prints the tables."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cotracker3")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--video", metavar="FILE", help="a video file, instead of synthetic scenes")
    parser.add_argument("--memory-gb", type=float, help="default: what the tracker takes by itself")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=cuda,
        help="try torch.compile as well",
    )
    parser.add_argument("--weights", default="random_offline")
    parser.add_argument("--peak-tflops", type=float)
    a = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    video = (of_file(a.video, a.clips, a.frames) if a.video else scenes(a.clips, a.frames)).to(
        a.device
    )
    machine = (
        torch.cuda.get_device_name()
        if a.device == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    print(
        f"{machine}; clips: {a.clips} of {a.frames} frames, {a.video or 'synthetic scenes'}, {a.weights}"
    )
    print(f"{a.grid**2} tracks an anchor; medians of {a.rounds} rounds", flush=True)
    for anchors in ((0,), tuple(range(0, a.frames, max(1, a.frames // 3)))[:3]):
        compare(a, video, anchors)
    parts(load_model(a.weights, a.device), video, a.grid, a.device)


if __name__ == "__main__":
    main()
