"""How fast clips are read, beside others: `python -m benchmarks.loader [FOLDER]`, in one process and in two.

Every reader gives the same 4 frames of the same clips of real video, at 224x224, with their tracks: ours from a shuffled list,
the others in their own order. The floor decodes and resizes JPEGs that are in memory already, and does nothing else. Readers take
turns; a ratio is the median over rounds of the floor's time through the reader's in the same round. Times are processor time, of
all processes together: waiting for a busy machine says nothing of a reader. Readers whose package is not installed are left out
(`pip install litdata mosaicml-streaming`). Built data stays in FOLDER, or goes when the command ends.

`--memory MINUTES` streams for so long with two workers instead, and says what memory each has on the way: USS is its own, PSS also
its part of what it shares.
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

from benchmarks.real_clips import CLIPS_MADE, VIDEOS_USED, Data, build, shipped
from manifests.snapshot import open_snapshot
from shards import jpeg
from shards.codec import decode_frames, encode_tracks
from shards.geometry import FrameTransform, inside
from shards.reader import iterate_shard
from tests.helpers.web_server import web_server
from trainer.config import DataSettings
from trainer.data.augment import decode_and_transform
from trainer.data.dataset import ClipDataset
from trainer.data.encoded_clip import copy_tracks
from trainer.data.loader import Loader
from trainer.data.packed_batch import PackedBatch, empty_memory
from trainer.data.sampler import ClipSampler, SampleIndex

BATCH, SIZE = 8, 224
ROUNDS = 7

Pictures = dict[str, Any]
"""A sample of any reader: `frames` [4, 3, S, S] uint8, `positions` [4, N, 2], `visibility`, `confidence` and `inside` [4, N]."""


def pictures_of(images: list[bytes], packed: bytes, wanted: list[int]) -> Pictures:
    """What every reader makes of a clip's bytes."""
    width, height = jpeg.size(images[0])
    into = np.empty((4, 3, SIZE, SIZE), np.uint8)
    frames = decode_and_transform(
        images,
        [FrameTransform.whole(width, height, SIZE, SIZE)] * 4,
        size=(width, height),
        reduce=False,
        into=into,
    )
    return {"frames": torch.from_numpy(frames)} | tracks_of(packed, wanted, width, height)


def tracks_of(packed: bytes, wanted: list[int], width: int, height: int) -> Pictures:
    """The tracks of a sample, in pixels of what is shown."""
    stored, visibility, confidence = decode_frames(packed, 0, wanted)
    positions = FrameTransform.whole(width, height, SIZE, SIZE).points(stored)
    return {
        "positions": positions,
        "visibility": visibility.astype(np.float32) / 255,
        "confidence": confidence.astype(np.float32) / 255,
        "inside": inside(positions, SIZE, SIZE),
    }


class Indexed(Dataset[Pictures]):
    """Clips read one by one: `read` gives the images and the packed tracks of number i."""

    def __init__(self, read: Callable[[int], tuple[list[bytes], bytes]], wanted: list[int]) -> None:
        self.read, self.wanted = read, wanted

    def __len__(self) -> int:
        return CLIPS_MADE

    def __getitem__(self, index: int) -> Pictures:
        return pictures_of(*self.read(index), self.wanted)


class Converted(IterableDataset[Pictures]):
    """Clips that another reader gives in its own order; `convert` makes pictures of each."""

    def __init__(self, source: Iterable[Any], convert: Callable[[Any], Pictures]) -> None:
        self.source, self.convert = source, convert

    def __iter__(self) -> Iterator[Pictures]:
        return map(self.convert, self.source)


def batches(dataset: Dataset[Pictures], processes: int) -> Iterator[Any]:
    """A dataset through torch's loader: in this process, or in so many workers."""
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


# The readers: each gives an endless or finite stream of batches for a number of processes.


def dataset_of(data: Data) -> ClipDataset:
    settings = DataSettings.model_validate(
        {
            "out": str(data.folder / "build"),
            "size": SIZE,
            "step": data.frames // 4,
            "anchor": "first",
            "direction": "forward",
        }
        | {"crop": "squash", "flip": 0.0, "reduced_decoding": False}
    )
    return ClipDataset([open_snapshot(data.folder / "build")], settings, seed=1)


def ours(data: Data, processes: int) -> Iterator[Any]:
    dataset = dataset_of(data)

    class OneEpoch(ClipSampler):
        def __iter__(self) -> Iterator[list[SampleIndex]]:  # type: ignore[override]
            return islice(super().__iter__(), self.steps_per_epoch)

    return iter(
        Loader(dataset, OneEpoch(len(dataset), BATCH, seed=1), 0 if processes == 1 else processes)
    )


def undecoded(data: Data) -> float:
    """Our seconds for all clips but for their images: what is left to workers where something else decodes."""
    dataset = dataset_of(data)
    shape = dataset.batch_shape(BATCH)
    memory = empty_memory(shape.num_bytes)
    begun = time.process_time()
    for indices in islice(dataset.sampler(BATCH), CLIPS_MADE // BATCH):
        batch = PackedBatch.empty(shape, memory)
        for slot, index in enumerate(indices):
            copy_tracks(dataset.read(index), batch, slot)
    return time.process_time() - begun


def in_memory(data: Data, processes: int) -> Iterator[Any]:
    """What the floor leaves out: tracks, and putting samples together (and sending them from workers)."""
    clips = [
        ([clip.jpegs[i] for i in data.wanted], encode_tracks(clip.tracks)[0])
        for tar in data.tars
        for clip in iterate_shard(tar)
    ]
    return batches(Indexed(clips.__getitem__, data.wanted), processes)


def jpeg_files(data: Data, processes: int) -> Iterator[Any]:
    def read(index: int) -> tuple[list[bytes], bytes]:
        folder = data.folder / "files" / f"clip-{index:03d}"
        return [(folder / f"{i:03d}").read_bytes() for i in data.wanted], (
            folder / "tracks"
        ).read_bytes()

    return batches(Indexed(read, data.wanted), processes)


def litdata_chunks(data: Data, processes: int) -> Iterator[Any]:
    import litdata  # type: ignore[import-not-found]

    def convert(sample: Any) -> Pictures:
        return pictures_of([sample[f"{i:03d}"] for i in data.wanted], sample["tracks"], data.wanted)

    source = litdata.StreamingDataset(
        str(data.folder / "litdata"), shuffle=False, transform=convert
    )
    return iter(
        litdata.StreamingDataLoader(
            source, batch_size=BATCH, num_workers=0 if processes == 1 else processes
        )
    )


def mosaic_shards(data: Data, processes: int) -> Iterator[Any]:
    from streaming import StreamingDataset  # type: ignore[import-not-found]

    class Clips(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Pictures:
            sample = super().__getitem__(index)
            return pictures_of(
                [sample[f"{i:03d}"] for i in data.wanted], sample["tracks"], data.wanted
            )

    return batches(
        Clips(local=str(data.folder / "mds"), shuffle=False, batch_size=BATCH), processes
    )


def webdataset_stream(data: Data, processes: int) -> Iterator[Any]:
    import webdataset

    def convert(sample: dict[str, bytes]) -> Pictures:
        return pictures_of(
            [sample[f"{i:03d}.jpg"] for i in data.wanted], sample["tracks.zst"], data.wanted
        )

    return batches(
        Converted(webdataset.WebDataset(data.tars, shardshuffle=False), convert), processes
    )


def webdataset_decode(data: Data, processes: int) -> Iterator[Any]:
    import webdataset

    def convert(sample: dict[str, Any]) -> Pictures:
        frames = [sample[f"{i:03d}.jpg"] for i in data.wanted]
        shown = [
            interpolate(
                torch.from_numpy(frame).permute(2, 0, 1)[None],
                (SIZE, SIZE),
                mode="bilinear",
                antialias=True,
            )
            for frame in frames
        ]
        height, width = frames[0].shape[:2]
        return {"frames": torch.cat(shown)} | tracks_of(
            sample["tracks.zst"], data.wanted, width, height
        )

    source = webdataset.WebDataset(data.tars, shardshuffle=False).decode("rgb8")
    return batches(Converted(source, convert), processes)


def decord_videos(data: Data, processes: int) -> Iterator[Any]:
    from decord import VideoReader

    clips = [clip.info for tar in data.tars for clip in iterate_shard(tar)]

    class Clips(Dataset[Pictures]):
        def __len__(self) -> int:
            return CLIPS_MADE

        def __getitem__(self, index: int) -> Pictures:
            info = clips[index]
            reader = VideoReader(
                shipped(VIDEOS_USED[int(info.video_id)]), width=SIZE, height=SIZE, num_threads=1
            )
            return {
                "frames": torch.from_numpy(
                    reader.get_batch([info.frame_numbers[i] for i in data.wanted]).asnumpy()
                )
            }

    return batches(Clips(), processes)


READERS: dict[str, tuple[Callable[[Data, int], Iterator[Any]], str]] = {
    "the floor, with tracks, through a DataLoader": (in_memory, "torch"),
    "pretrack": (ours, "trainer"),
    "JPEG files in folders": (jpeg_files, "torch"),
    "litdata": (litdata_chunks, "litdata"),
    "mosaicml-streaming": (mosaic_shards, "streaming"),
    "webdataset": (webdataset_stream, "webdataset"),
    "webdataset, .decode": (webdataset_decode, "webdataset"),
    "decord on the source mp4": (decord_videos, "decord"),
}


def say_what_is_fetched(data: Data) -> None:
    """Prints what our reader takes of a web server for all clips, through the bytes of the frames that it shows."""
    with web_server(data.folder / "build") as served:
        local = dataset_of(data)
        remote = ClipDataset([open_snapshot(served.url)], local.settings, local.seed)
        begun, asked = served.bytes_read, served.requests
        remote.__getitems__([(0, index) for index in range(CLIPS_MADE)])
        shown = sum(
            int(local.clips[index].frame_sizes[data.wanted].sum()) for index in range(CLIPS_MADE)
        )
        share, requests = (
            (served.bytes_read - begun) / shown,
            (served.requests - asked) / CLIPS_MADE,
        )
    print(
        f"\n4 of {data.frames} frames from a web server: {share:.2f} times their bytes, in {requests:.1f} requests a clip."
    )


def clock() -> float:
    """Seconds of processor time that this process and its children have had."""
    this = psutil.Process()
    ended = this.cpu_times()
    live = [child.cpu_times() for child in this.children(recursive=True)]
    return (
        time.process_time()
        + ended.children_user
        + ended.children_system
        + sum(times.user + times.system for times in live)
    )


def floor(clips: list[list[bytes]]) -> None:
    """Decodes and resizes what is in memory."""
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


def floor_in(processes: int, clips: list[list[bytes]], pool: Any) -> float:
    """The floor's seconds for all clips, shared by processes."""
    begun = clock()
    if processes == 1:
        floor(clips)
    else:
        pool.map(floor, [clips[i::processes] for i in range(processes)])
    return clock() - begun


def reader_in(reader: Callable[[Data, int], Iterator[Any]], data: Data, processes: int) -> float:
    """A reader's seconds for all clips. With workers, from its first batch on: their start is not what is compared."""
    stream = reader(data, processes)
    skipped = 0 if processes == 1 else 2
    for _ in islice(stream, skipped):
        pass
    begun = clock()
    seen = sum(len(batch["frames"]) for batch in islice(stream, CLIPS_MADE // BATCH - skipped))
    seconds = clock() - begun
    assert seen == CLIPS_MADE - skipped * BATCH
    return seconds * CLIPS_MADE / seen


def compare(data: Data, processes: int) -> None:
    """Prints a table's rows."""
    clips = [
        [clip.jpegs[i] for i in data.wanted] for tar in data.tars for clip in iterate_shard(tar)
    ]
    usable = {name: reader for name, (reader, package) in READERS.items() if find_spec(package)}
    floors: list[float] = []
    left: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in usable}
    with multiprocessing.get_context("fork").Pool(processes, cv2.setNumThreads, (0,)) as pool:
        for number in range(ROUNDS + 1):
            left.append(undecoded(data))
            for name, reader in usable.items():
                slow = name.startswith(("webdataset,", "decord"))
                if slow and number != 1:
                    continue
                before = floor_in(processes, clips, pool)
                seconds = reader_in(reader, data, processes)
                after = floor_in(processes, clips, pool)
                if number:  # the first round warms up
                    floors.append((before + after) / 2)
                    times[name].append((before + after) / 2 / seconds)
    best = median(floors)
    print(f"| the floor | {CLIPS_MADE / best:.0f} | 1.00 |")
    for name, ratios in times.items():
        print(
            f"| {name} | {CLIPS_MADE / best * median(ratios):.0f} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    if processes == 1:
        each, of_floor = median(left[1:]) / CLIPS_MADE * 1000, best / CLIPS_MADE * 1000
        print(
            f"\nWithout its images a clip takes pretrack {each:.2f} ms; the floor takes {of_floor:.2f}."
        )


def watch_memory(data: Data, minutes: float) -> None:
    """Prints what memory two workers have at the start, at a quarter, at half and at the end of the time."""
    dataset = dataset_of(data)
    others = {child.pid for child in psutil.Process().children()}
    stream = iter(Loader(dataset, dataset.sampler(BATCH), workers=2))
    read = sum(
        len(batch["key"]) for batch in islice(stream, 16)
    )  # by then each worker has done all that it ever does
    workers = [child for child in psutil.Process().children() if child.pid not in others]
    started = time.monotonic()
    print(
        "| minutes | clips read | "
        + " | ".join(f"worker {n}: USS, PSS in MB" for n in range(2))
        + " |\n|---|---|---|---|"
    )
    for part in (0, 0.25, 0.5, 1):
        while time.monotonic() < started + 60 * minutes * part:
            read += len(next(stream)["key"])
        found = [worker.memory_full_info() for worker in workers]
        shown = " | ".join(f"{memory.uss / 1e6:.1f}, {memory.pss / 1e6:.1f}" for memory in found)
        print(f"| {(time.monotonic() - started) / 60:.1f} | {read:,} | {shown} |", flush=True)


def main(folder: Path | None, memory: float | None) -> None:
    """Prints the tables."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary:
        for frames in (24, 48):
            data = Data((folder or Path(temporary)) / str(frames), frames)
            build(data)
            if memory:
                watch_memory(data, memory)
                return
            for processes in (1, 2):
                print(
                    f"\n4 of {frames} frames, {processes} process{'es' if processes > 1 else ''}\n"
                )
                print("| reader | clips per CPU second | of the floor |\n|---|---|---|")
                compare(data, processes)
            say_what_is_fetched(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--memory", type=float, metavar="MINUTES")
    given = parser.parse_args()
    main(given.folder, given.memory)
