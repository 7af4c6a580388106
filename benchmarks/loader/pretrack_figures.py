"""Figures of pretrack alone: bytes that it reads from a web server, and the memory of workers."""

from __future__ import annotations

import time
from itertools import islice

import psutil

from benchmarks.loader.clip import BATCH
from benchmarks.loader.pretrack_readers import dataset_of
from benchmarks.real_clips import CLIPS_MADE, ClipsOnDisk
from manifests.snapshot import open_snapshot
from tests.helpers.web_server import web_server
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader


def print_bytes_fetched(data: ClipsOnDisk) -> None:
    """Print the bytes and requests of our reader on a web server.

    Bytes are relative to the size of the frames that are read.
    """
    with web_server(data.folder / "build") as served:
        local = dataset_of(data)
        remote = ClipDataset([open_snapshot(served.url)], local.settings, local.seed)
        bytes_before, requests_before = served.bytes_read, served.requests
        remote.__getitems__([(0, index) for index in range(CLIPS_MADE)])
        read_bytes, read_requests = (
            served.bytes_read - bytes_before,
            served.requests - requests_before,
        )
        frame_bytes = sum(
            int(local.clips[index].frame_sizes[data.frame_indices].sum())
            for index in range(CLIPS_MADE)
        )
        share, requests = read_bytes / frame_bytes, read_requests / CLIPS_MADE
    print(
        f"\n4 of {data.frames} frames from a web server: {share:.2f} times their bytes, "
        f"in {requests:.1f} requests per clip."
    )


def watch_memory(data: ClipsOnDisk, minutes: float) -> None:
    """Print the memory of two workers at the start, at a quarter, at half and at the end."""
    dataset = dataset_of(data)
    others = {child.pid for child in psutil.Process().children()}
    stream = iter(Loader(dataset, dataset.sampler(BATCH), workers=2))
    # After 16 batches each worker has done all that it ever does.
    clips_read = sum(len(batch["key"]) for batch in islice(stream, 16))
    workers = [child for child in psutil.Process().children() if child.pid not in others]
    started = time.monotonic()
    print(
        "| minutes | clips read | "
        + " | ".join(f"worker {n}: USS, PSS in MB" for n in range(2))
        + " |\n|---|---|---|---|"
    )
    for part in (0, 0.25, 0.5, 1):
        while time.monotonic() < started + 60 * minutes * part:
            clips_read += len(next(stream)["key"])
        memories = [worker.memory_full_info() for worker in workers]
        cells = " | ".join(f"{memory.uss / 1e6:.1f}, {memory.pss / 1e6:.1f}" for memory in memories)
        minutes_passed = (time.monotonic() - started) / 60
        print(f"| {minutes_passed:.1f} | {clips_read:,} | {cells} |", flush=True)
