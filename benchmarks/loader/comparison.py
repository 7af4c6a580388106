"""The table of readers: CPU time per clip, and relative to that of decoding and resizing alone."""

from __future__ import annotations

import multiprocessing
import time
from importlib.util import find_spec
from itertools import islice
from statistics import median
from typing import Any

import cv2
import numpy as np
import psutil

from benchmarks.loader.clip import BATCH, SIZE, Reader
from benchmarks.loader.other_readers import (
    decord_videos,
    in_memory,
    jpeg_files,
    litdata_chunks,
    mosaic_shards,
    webdataset_decode,
    webdataset_stream,
)
from benchmarks.loader.pretrack_readers import (
    ours,
    ours_decoded_on_device,
    ours_resized_on_device,
    ours_with_cameras,
    time_without_images,
)
from benchmarks.real_clips import CLIPS_MADE, ClipsOnDisk
from shards import jpeg
from shards.geometry import FrameTransform
from shards.reader import iterate_shard
from trainer.data.augment import decode_and_transform

ROUNDS = 7

READERS: dict[str, tuple[Reader, str]] = {
    "the floor, with tracks, through a DataLoader": (in_memory, "torch"),
    "pretrack": (ours, "trainer"),
    "pretrack, `data.cameras: true`": (ours_with_cameras, "trainer"),
    "pretrack, `data.resize: device`": (ours_resized_on_device, "trainer"),
    "pretrack, `data.decode: device`": (ours_decoded_on_device, "trainer"),
    "JPEG files in folders": (jpeg_files, "torch"),
    "litdata": (litdata_chunks, "litdata"),
    "mosaicml-streaming": (mosaic_shards, "streaming"),
    "webdataset": (webdataset_stream, "webdataset"),
    "webdataset, .decode": (webdataset_decode, "webdataset"),
    "decord on the source mp4": (decord_videos, "decord"),
}
"""Each reader, and the package that it needs."""


def compare(data: ClipsOnDisk, processes: int, only: str) -> None:
    """Print the rows of a table: those of readers whose name contains `only`."""
    clips = [
        [clip.jpegs[i] for i in data.frame_indices]
        for tar in data.tars
        for clip in iterate_shard(tar)
    ]
    usable = {
        name: reader
        for name, (reader, package) in READERS.items()
        if find_spec(package) and only in name
    }
    floors: list[float] = []
    without_images, decoding = list[float](), list[float]()
    times: dict[str, list[float]] = {name: [] for name in usable}
    with multiprocessing.get_context("fork").Pool(processes, cv2.setNumThreads, (0,)) as pool:
        for number in range(ROUNDS + 1):
            without_images.append(time_without_images(data))
            decoding.append(time_decoding(clips))
            for name, reader in usable.items():
                slow = name.startswith(("webdataset,", "decord"))
                if slow and number != 1:  # one round is enough for the slowest
                    continue
                before = time_floor(processes, clips, pool)
                seconds = time_reader(reader, data, processes)
                after = time_floor(processes, clips, pool)
                if number:  # the first round warms up
                    floors.append((before + after) / 2)
                    times[name].append((before + after) / 2 / seconds)
    best = median(floors) / CLIPS_MADE * 1000
    print(f"| the floor: decoding and resizing only | {best:.2f} | 1.00 |")
    for name, ratios in times.items():
        spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {best / median(ratios):.2f} | {spread} |")
    if processes == 1:
        parts = [median(part[1:]) / CLIPS_MADE * 1000 for part in (decoding, without_images)]
        print(
            f"\nOf the floor, decoding takes {parts[0]:.2f} CPU ms per clip. Without its images, "
            f"pretrack takes {parts[1]:.2f}."
        )


def time_reader(reader: Reader, data: ClipsOnDisk, processes: int) -> float:
    """Time a reader for all clips, in CPU seconds.

    With workers, the first batches are left out, because the start of workers is not compared.
    """
    stream = reader(data, processes)
    skipped = 0 if processes == 1 else 2
    for _ in islice(stream, skipped):
        pass
    started = cpu_clock()
    counted = islice(stream, CLIPS_MADE // BATCH - skipped)
    images = ("frames", "crops", "jpegs")
    seen = sum(len(next(batch[name] for name in images if name in batch)) for batch in counted)
    seconds = cpu_clock() - started
    assert seen == CLIPS_MADE - skipped * BATCH
    return seconds * CLIPS_MADE / seen


def cpu_clock() -> float:
    """Return the CPU seconds that this process and its children have used."""
    process = psutil.Process()
    ended = process.cpu_times()
    live = [child.cpu_times() for child in process.children(recursive=True)]
    return (
        time.process_time()
        + ended.children_user
        + ended.children_system
        + sum(times.user + times.system for times in live)
    )


def floor(clips: list[list[bytes]]) -> None:
    """Decode and resize JPEGs that are in memory."""
    into = np.empty((4, 3, SIZE, SIZE), np.uint8)
    for images in clips:
        width, height = jpeg.size(images[0])
        decode_and_transform(
            images,
            [FrameTransform.whole(width, height, SIZE, SIZE)] * 4,
            size=(width, height),
            reduce=False,
            into=into,
        )


def time_floor(processes: int, clips: list[list[bytes]], pool: Any) -> float:
    """Time the floor for all clips, split between processes, in CPU seconds."""
    started = cpu_clock()
    if processes == 1:
        floor(clips)
    else:
        pool.map(floor, [clips[i::processes] for i in range(processes)])
    return cpu_clock() - started


def time_decoding(clips: list[list[bytes]]) -> float:
    """Time the part of the floor that remains if something else resizes, in CPU seconds."""
    started = time.process_time()
    for images in clips:
        width, height = jpeg.size(images[0])
        memory = np.empty(3 * width * height, np.uint8)
        for image in images:
            jpeg.decode(image, memory=memory)
    return time.process_time() - started
