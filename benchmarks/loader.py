"""Compare the speed of reading clips with other libraries: `python -m benchmarks.loader [FOLDER]`.

Every reader returns the same 4 frames of the same clips of real video, at 224x224, with their
tracks, in one process and in two: ours in a shuffled order, the others in their own order. The
floor only decodes and resizes JPEGs that are already in memory. Readers take turns; a ratio is the
median over rounds of the floor's time divided by the reader's time in the same round. Times are CPU
time of all processes together, which does not count waiting for a busy machine. With `data.resize:
device` our reader ends with crops in the training process, and where there is a CUDA device, with
frames on it; without one, the device's part of the work is left out. Readers whose
package is not installed are left out (`pip install litdata mosaicml-streaming`). The data is kept
in FOLDER, or deleted at the end if no folder is given.

`--memory MINUTES` instead streams for this time with two workers, and prints the memory of each:
USS is a worker's own memory, PSS adds its share of memory shared with other processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from benchmarks.real_clips import (
    CLIPS_MADE,
    VIDEOS_USED,
    ClipsOnDisk,
    sample_video,
    write_all_formats,
)
from manifests.snapshot import open_snapshot
from shards import jpeg
from shards.codec import decode_frames, encode_tracks
from shards.geometry import FrameTransform, inside
from shards.reader import iterate_shard
from tests.helpers.web_server import web_server
from trainer.config import DataSettings
from trainer.data.augment import decode_and_transform
from trainer.data.dataset import ClipDataset
from trainer.data.device_batches import to_device
from trainer.data.device_frames import make_frames
from trainer.data.encoded_clip import copy_tracks
from trainer.data.loader import Loader
from trainer.data.packed_batch import PackedBatch, empty_memory
from trainer.data.sampler import ClipSampler, SampleIndex

BATCH, SIZE = 8, 224
ROUNDS = 7

LoadedClip = dict[str, Any]
"""A clip as every reader returns it: `frames` [4, 3, S, S] uint8, `positions` [4, N, 2], and
`visibility`, `confidence` and `inside` [4, N]."""


Reader = Callable[[ClipsOnDisk, int], Iterator[Any]]
"""(clips, processes) → batches."""


def load_clip(images: list[bytes], packed: bytes, frame_indices: list[int]) -> LoadedClip:
    """Decode a clip's JPEGs and tracks, as every reader does."""
    width, height = jpeg.size(images[0])
    into = np.empty((4, 3, SIZE, SIZE), np.uint8)
    frames = decode_and_transform(
        images,
        [FrameTransform.whole(width, height, SIZE, SIZE)] * 4,
        size=(width, height),
        reduce=False,
        into=into,
    )
    return {"frames": torch.from_numpy(frames)} | load_tracks(packed, frame_indices, width, height)


def load_tracks(packed: bytes, frame_indices: list[int], width: int, height: int) -> LoadedClip:
    """Decode a clip's tracks, in pixels of the resized frames."""
    stored, visibility, confidence = decode_frames(packed, 0, frame_indices)
    positions = FrameTransform.whole(width, height, SIZE, SIZE).points(stored)
    return {
        "positions": positions,
        "visibility": visibility.astype(np.float32) / 255,
        "confidence": confidence.astype(np.float32) / 255,
        "inside": inside(positions, SIZE, SIZE),
    }


class Indexed(Dataset[LoadedClip]):
    """Clips read one by one: `read` returns the JPEGs and the encoded tracks of clip i."""

    def __init__(
        self, read: Callable[[int], tuple[list[bytes], bytes]], frame_indices: list[int]
    ) -> None:
        self.read, self.frame_indices = read, frame_indices

    def __len__(self) -> int:
        return CLIPS_MADE

    def __getitem__(self, index: int) -> LoadedClip:
        return load_clip(*self.read(index), self.frame_indices)


class Converted(IterableDataset[LoadedClip]):
    """Clips that another library reads in its own order; `convert` loads each of them."""

    def __init__(self, source: Iterable[Any], convert: Callable[[Any], LoadedClip]) -> None:
        self.source, self.convert = source, convert

    def __iter__(self) -> Iterator[LoadedClip]:
        return map(self.convert, self.source)


def batches(dataset: Dataset[LoadedClip], processes: int) -> Iterator[Any]:
    """Batch a dataset by torch's DataLoader, in this process or in several workers."""
    return iter(
        DataLoader(
            dataset,
            batch_size=BATCH,
            num_workers=0 if processes == 1 else processes,
            collate_fn=default_collate,
            worker_init_fn=one_thread,
        )
    )


def one_thread(worker: int) -> None:
    cv2.setNumThreads(0)


# The readers: each returns an endless or finite stream of batches for a number of processes.


def dataset_of(data: ClipsOnDisk, resize: str = "worker", cameras: bool = False) -> ClipDataset:
    settings = DataSettings.model_validate(
        {
            "out": str(data.folder / "build"),
            "size": SIZE,
            "step": data.frames // 4,
            "anchor": "first",
            "direction": "forward",
            "cameras": cameras,
        }
        | {"crop": "squash", "flip": 0.0, "reduced_decoding": False, "resize": resize}
    )
    return ClipDataset([open_snapshot(data.folder / "build")], settings, seed=1)


def ours(
    data: ClipsOnDisk, processes: int, resize: str = "worker", cameras: bool = False
) -> Iterator[Any]:
    """Read shuffled clips with this project's loader."""
    dataset = dataset_of(data, resize, cameras)

    class OneEpoch(ClipSampler):
        def __iter__(self) -> Iterator[list[SampleIndex]]:  # type: ignore[override]
            return islice(super().__iter__(), self.steps_per_epoch)

    return iter(
        Loader(
            dataset,
            OneEpoch(len(dataset), BATCH, seed=1),
            0 if processes == 1 else processes,
            pin=resize == "device",
        )
    )


def ours_resized_on_device(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Read shuffled clips with this project's loader, which leaves resizing to the device."""
    cuda = torch.device("cuda") if torch.cuda.is_available() else None
    settings = dataset_of(data, "device").settings
    for batch in ours(data, processes, "device"):
        yield make_frames(to_device(batch, cuda), settings) if cuda else batch


def ours_with_cameras(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Read shuffled clips with this project's loader, with the cameras of their frames."""
    return ours(data, processes, cameras=True)


def time_without_images(data: ClipsOnDisk) -> float:
    """Time our reader for all clips without their images.

    This is the workers' remaining load if something else decodes images, such as a GPU.
    """
    dataset = dataset_of(data)
    shape = dataset.batch_shape(BATCH)
    memory = empty_memory(shape.num_bytes)
    started = time.process_time()
    for indices in islice(dataset.sampler(BATCH), CLIPS_MADE // BATCH):
        batch = PackedBatch.empty(shape, memory)
        for slot, index in enumerate(indices):
            copy_tracks(dataset.read(index), batch, slot)
    return time.process_time() - started


def in_memory(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Read from memory: the floor plus decoding tracks, batching, and sending from workers."""
    clips = [
        ([clip.jpegs[i] for i in data.frame_indices], encode_tracks(clip.tracks)[0])
        for tar in data.tars
        for clip in iterate_shard(tar)
    ]
    return batches(Indexed(clips.__getitem__, data.frame_indices), processes)


def jpeg_files(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Read each clip from a folder of JPEG files."""

    def read(index: int) -> tuple[list[bytes], bytes]:
        folder = data.folder / "files" / f"clip-{index:03d}"
        return [(folder / f"{i:03d}").read_bytes() for i in data.frame_indices], (
            folder / "tracks"
        ).read_bytes()

    return batches(Indexed(read, data.frame_indices), processes)


def litdata_chunks(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Read with litdata, in its own order."""

    import litdata  # type: ignore[import-not-found]

    def convert(sample: Any) -> LoadedClip:
        return load_clip(
            [sample[f"{i:03d}"] for i in data.frame_indices], sample["tracks"], data.frame_indices
        )

    source = litdata.StreamingDataset(
        str(data.folder / "litdata"), shuffle=False, transform=convert
    )
    return iter(
        litdata.StreamingDataLoader(
            source, batch_size=BATCH, num_workers=0 if processes == 1 else processes
        )
    )


def mosaic_shards(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Read with MosaicML's streaming, in its own order."""

    from streaming import StreamingDataset  # type: ignore[import-not-found]

    class Clips(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> LoadedClip:
            sample = super().__getitem__(index)
            return load_clip(
                [sample[f"{i:03d}"] for i in data.frame_indices],
                sample["tracks"],
                data.frame_indices,
            )

    return batches(
        Clips(local=str(data.folder / "mds"), shuffle=False, batch_size=BATCH), processes
    )


def webdataset_stream(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Stream the tars with WebDataset; this project decodes them."""

    import webdataset

    def convert(sample: dict[str, bytes]) -> LoadedClip:
        return load_clip(
            [sample[f"{i:03d}.jpg"] for i in data.frame_indices],
            sample["tracks.zst"],
            data.frame_indices,
        )

    return batches(
        Converted(webdataset.WebDataset(data.tars, shardshuffle=False), convert), processes
    )


def webdataset_decode(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Stream the tars with WebDataset, which also decodes the images."""

    import webdataset

    def convert(sample: dict[str, Any]) -> LoadedClip:
        frames = [sample[f"{i:03d}.jpg"] for i in data.frame_indices]
        resized = [
            interpolate(
                torch.from_numpy(frame).permute(2, 0, 1)[None],
                (SIZE, SIZE),
                mode="bilinear",
                antialias=True,
            )
            for frame in frames
        ]
        height, width = frames[0].shape[:2]
        return {"frames": torch.cat(resized)} | load_tracks(
            sample["tracks.zst"], data.frame_indices, width, height
        )

    source = webdataset.WebDataset(data.tars, shardshuffle=False).decode("rgb8")
    return batches(Converted(source, convert), processes)


def decord_videos(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Decode the frames from the videos with decord, without tracks."""

    from decord import VideoReader

    clips = [clip.info for tar in data.tars for clip in iterate_shard(tar)]

    class Clips(Dataset[LoadedClip]):
        def __len__(self) -> int:
            return CLIPS_MADE

        def __getitem__(self, index: int) -> LoadedClip:
            info = clips[index]
            reader = VideoReader(
                sample_video(VIDEOS_USED[int(info.video_id)]),
                width=SIZE,
                height=SIZE,
                num_threads=1,
            )
            return {
                "frames": torch.from_numpy(
                    reader.get_batch([info.frame_numbers[i] for i in data.frame_indices]).asnumpy()
                )
            }

    return batches(Clips(), processes)


READERS: dict[str, tuple[Reader, str]] = {
    "the floor, with tracks, through a DataLoader": (in_memory, "torch"),
    "pretrack": (ours, "trainer"),
    "pretrack, `data.cameras: true`": (ours_with_cameras, "trainer"),
    "pretrack, `data.resize: device`": (ours_resized_on_device, "trainer"),
    "JPEG files in folders": (jpeg_files, "torch"),
    "litdata": (litdata_chunks, "litdata"),
    "mosaicml-streaming": (mosaic_shards, "streaming"),
    "webdataset": (webdataset_stream, "webdataset"),
    "webdataset, .decode": (webdataset_decode, "webdataset"),
    "decord on the source mp4": (decord_videos, "decord"),
}
"""Each reader, and the package that it needs."""


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


def time_decoding(clips: list[list[bytes]]) -> float:
    """Time the part of the floor that remains if something else resizes, in CPU seconds."""
    started = time.process_time()
    for images in clips:
        width, height = jpeg.size(images[0])
        memory = np.empty(3 * width * height, np.uint8)
        for image in images:
            jpeg.decode(image, memory=memory)
    return time.process_time() - started


def time_floor(processes: int, clips: list[list[bytes]], pool: Any) -> float:
    """Time the floor for all clips, split between processes, in CPU seconds."""
    started = cpu_clock()
    if processes == 1:
        floor(clips)
    else:
        pool.map(floor, [clips[i::processes] for i in range(processes)])
    return cpu_clock() - started


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
    seen = sum(len(batch["frames" if "frames" in batch else "crops"]) for batch in counted)
    seconds = cpu_clock() - started
    assert seen == CLIPS_MADE - skipped * BATCH
    return seconds * CLIPS_MADE / seen


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


def main(folder: Path | None, memory: float | None, only: str) -> None:
    """Print the tables."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        for frames in (24, 48):
            data = ClipsOnDisk((folder or Path(temporary)) / str(frames), frames)
            write_all_formats(data)
            if memory:
                watch_memory(data, memory)
                return
            for processes in (1, 2):
                print(
                    f"\n4 of {frames} frames, {processes} process{'es' if processes > 1 else ''}\n"
                )
                print("| reader | CPU ms per clip | relative to the floor |\n|---|---|---|")
                compare(data, processes, only)
            print_bytes_fetched(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--memory", type=float, metavar="MINUTES")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="readers with this in their name"
    )
    given = parser.parse_args()
    main(given.folder, given.memory, given.only)
