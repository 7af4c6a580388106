"""How fast CoTracker3 tracks: `python -m benchmarks.cotracker3 [--frames 24] [--grid 16] [--device cuda] [--clips 4] [--rounds 3]`.

Random weights, noise for frames of 384x512. Three ways, interleaved:

- published: float32, one clip, one anchor and one direction at a time, each encoding all frames anew, as the published predictor
- exact:     float32, frames encoded once for all anchors and both directions
- fast:      the same in bfloat16 where it is safe, clips together

Prints frames a second and their ratio to the first, peak memory on CUDA, how far `fast` is from `exact`, where the time goes, and
the part of the device's peak that `fast` reaches if that peak is given (--peak-tflops 989 for an H200's bfloat16).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.cotracker3.model import CoTracker3
from pipeline.cotracker3.tracking import Tracked, encode, track
from pipeline.cotracker3.weights import load_model


def published(model: CoTracker3, video: Tensor, grid: int, anchors: tuple[int, ...]) -> None:
    """One thing at a time. Tracking from the first frame only needs one direction."""
    for clip in video:
        for anchor in anchors:
            for direction in (1, -1) if anchor else (1,):
                frames = clip[None] if direction == 1 else clip[None].flip(1)
                at = anchor if direction == 1 else clip.shape[0] - 1 - anchor
                track(model, frames, grid=grid, anchors=(at,), backward=False)


def shared(model: CoTracker3, video: Tensor, grid: int, anchors: tuple[int, ...], fast: bool, memory: int | None) -> Tracked:
    """All anchors and directions of one clip (exact) or of all clips (fast) from one encoding."""
    if fast:
        return track(model, video, grid=grid, anchors=anchors, fast=True, memory=memory)
    parts = [track(model, clip[None], grid=grid, anchors=anchors, memory=memory) for clip in video]
    return Tracked(*(torch.cat([getattr(part, name) for part in parts]) for name in ("positions", "visibility", "confidence")))


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds that it takes, the device's queue included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def deviation(exact: Tracked, fast: Tracked) -> str:
    """How far two ways of tracking the same are apart."""
    pixels = (exact.positions - fast.positions).norm(dim=-1).flatten().float()
    flips = ((exact.visibility > 0.5) != (fast.visibility > 0.5)).float().mean().item()
    quantiles = torch.quantile(pixels[:: max(1, len(pixels) // 1_000_000)], torch.tensor([0.5, 0.99], device=pixels.device))
    return f"median {quantiles[0]:.4f} px, 99 % below {quantiles[1]:.4f} px, visibility differs for {flips:.3%}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="How fast CoTracker3 tracks.")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--grid", type=int, default=16)
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-gb", type=float, help="default: what the tracker takes by itself")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights", default="random_offline")
    parser.add_argument("--peak-tflops", type=float)
    a = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = load_model(a.weights, a.device)
    video = torch.randint(0, 256, (a.clips, a.frames, 3, 384, 512), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video = video.to(a.device)
    memory = int(a.memory_gb * (1 << 30)) if a.memory_gb else None
    machine = torch.cuda.get_device_name() if a.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{machine}; {a.clips} clips of {a.frames} frames, {a.grid**2} tracks an anchor; medians of {a.rounds} rounds")
    for anchors in ((0,), tuple(range(0, a.frames, max(1, a.frames // 3)))[:3]):
        ways: dict[str, Callable[[], object]] = {
            "published": lambda anchors=anchors: published(model, video, a.grid, anchors),  # type: ignore[misc]
            "exact": lambda anchors=anchors: shared(model, video, a.grid, anchors, False, memory),  # type: ignore[misc]
            "fast": lambda anchors=anchors: shared(model, video, a.grid, anchors, True, memory),  # type: ignore[misc]
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        peaks = dict.fromkeys(ways, 0)
        if a.device == "cuda":
            for work in ways.values():
                work()
        for _ in range(a.rounds):
            for name, work in ways.items():
                if a.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds[name].append(timed(work, a.device))
                if a.device == "cuda":
                    peaks[name] = torch.cuda.max_memory_allocated()
        print(f"\nanchors {list(anchors)}")
        base = median(seconds["published"])
        for way, times in seconds.items():
            taken = median(times)
            peak = f"  peak {peaks[way] / 1e9:.1f} GB" if a.device == "cuda" else ""
            print(f"  {way:<10} {a.clips * a.frames / taken:8.2f} frames/s  {base / taken:5.2f}x{peak}")
        exact, fast = ways["exact"](), ways["fast"]()
        assert isinstance(exact, Tracked)
        assert isinstance(fast, Tracked)
        print(f"  fast from exact: {deviation(exact, fast)}")
        with FlopCounterMode(display=False) as counter:
            ways["fast"]()
        rate = counter.get_total_flops() / median(seconds["fast"]) / 1e12
        part = f", {rate / a.peak_tflops:.0%} of the peak" if a.peak_tflops else ""
        print(f"  fast: {counter.get_total_flops() / 1e12:.2f} TFLOP, {rate:.2f} TFLOP/s{part}")
    parts(model, video, a.grid, a.device)


def parts(model: CoTracker3, video: Tensor, grid: int, device: str) -> None:
    """Where the time of one direction from one anchor goes, in bfloat16."""
    clip = video[:1]
    spent: dict[str, float] = {}

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

    handles: list[torch.utils.hooks.RemovableHandle] = []
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        encode(model, clip[:, :2], torch.bfloat16)
    for name, module in (("encoder", model.fnet), ("correlation MLP", model.corr_mlp), ("transformer", model.updateformer)):
        hooked(name, module)
    total = timed(lambda: track(model, clip, grid=grid, backward=False, fast=True), device)
    for handle in handles:
        handle.remove()
    print("\nwhere the time goes, one anchor, one direction, fast:")
    for name, taken in spent.items():
        print(f"  {name:<32} {taken / total:6.1%}")
    print(f"  {'sampling, correlation and the rest':<32} {1 - sum(spent.values()) / total:6.1%}")


if __name__ == "__main__":
    main()
