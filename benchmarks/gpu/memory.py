"""Recovery of the tracker when memory runs out, for real, and what it and the trainer then say."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.line import Line, attempt
from benchmarks.gpu.moving_pictures import moving_pictures
from pipeline.trackers.cotracker3 import CoTracker3Settings
from pipeline.trackers.protocol import DeviceFullError
from shards.clip import ClipInfo, Tracks
from shards.errors import PretrackError
from shards.geometry import grid_points
from trainer.cuda_device import explain_out_of_memory

ROOM = 3 << 30
"""Bytes that are left free beside the network when the GPU is filled."""
LEFT = 16 << 20
"""Fewer bytes than these are left free where not even the network is to fit."""


def lines(device: str, small: bool) -> Iterator[Line]:
    """Track with much memory, with a small `memory_gb`, and on a full GPU: the same tracks."""
    clips, frames = (1, 2) if small else (16, 24)
    videos = [
        np.ascontiguousarray(clip)
        for clip in moving_pictures(clips, frames).permute(0, 1, 3, 4, 2).numpy()
    ]
    expected, _ = _track(videos, device, small)

    def little() -> Iterator[Line]:
        tracked, _ = _track(videos, device, small, memory_gb=0.05)
        yield _difference("small memory_gb", expected, tracked)

    def full() -> Iterator[Line]:
        tracked, warnings = _track(videos, device, small, memory_gb=64.0, fill=True)
        yield _difference("full GPU", expected, tracked)
        yield Line("full GPU: times the memory was halved", float(warnings), at_least=1)

    yield from attempt("small memory_gb", little)
    if device == "cpu":
        yield Line("full GPU", "not measured: no GPU")
        return
    yield from attempt("full GPU", full)
    yield from attempt("GPU without room", _refusals)


def _refusals() -> Iterator[Line]:
    """Return what the tracker and the trainer say on a GPU that has no room for them."""
    held = _all_memory()
    try:
        _settings("cuda", small=False).load()
        yield Line("GPU without room: the tracker", "loads all the same", failed=True)
    except DeviceFullError as error:
        yield Line("GPU without room: the tracker", str(error))
    try:
        with explain_out_of_memory(torch.device("cuda", 0)):
            torch.empty(LEFT, dtype=torch.uint8, device="cuda")
        yield Line("GPU without room: the trainer", "goes on all the same", failed=True)
    except PretrackError as error:
        yield Line("GPU without room: the trainer", str(error))
    del held


def _filled(room: int) -> torch.Tensor:
    """Fill the GPU but for `room` bytes."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return torch.empty(free - room, dtype=torch.uint8, device="cuda")


def _all_memory() -> list[torch.Tensor]:
    """Take the GPU's memory in ever smaller pieces, until less than `LEFT` bytes are left."""
    torch.cuda.empty_cache()
    size, _ = torch.cuda.mem_get_info()
    pieces = []
    while True:
        try:
            pieces.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            if size <= LEFT:
                return pieces
            size = max(size // 2, LEFT)


def _settings(device: str, small: bool, memory_gb: float = 4.0) -> CoTracker3Settings:
    return CoTracker3Settings(
        tracker="cotracker3",
        weights="random_offline",
        device=device,  # type: ignore[arg-type]
        memory_gb=memory_gb,
        compile=False,
        iterations=1 if small else 6,
    )


def _track(
    videos: list[NDArray[np.uint8]],
    device: str,
    small: bool,
    memory_gb: float = 4.0,
    fill: bool = False,
) -> tuple[Sequence[Tracks], int]:
    """Track the clips; return the tracks and how many warnings were logged."""
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    tracker = _settings(device, small, memory_gb).load()
    logging.getLogger("pipeline.trackers.network_tracker").addHandler(handler)
    filler = _filled(ROOM) if fill else None
    height, width = videos[0].shape[1:3]
    queries = grid_points(4 if small else 16, width, height)
    infos: list[ClipInfo] = []  # the tracker does not read them
    try:
        return tracker.track(videos, infos, (0, len(videos[0]) // 2), queries), len(warnings)
    finally:
        del filler
        logging.getLogger("pipeline.trackers.network_tracker").removeHandler(handler)


def _difference(name: str, expected: Sequence[Tracks], got: Sequence[Tracks]) -> Line:
    """Return the 99th percentile of the distances between two sets of tracks."""
    distances = np.concatenate(
        [
            np.linalg.norm(a.positions - b.positions, axis=-1).ravel()
            for a, b in zip(expected, got, strict=True)
        ]
    )
    # batches of other sizes choose other bfloat16 kernels
    return Line(f"{name}: 99 % of distances", float(np.quantile(distances, 0.99)), "px", at_most=1)
