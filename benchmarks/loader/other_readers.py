"""Readers of the comparison that use other libraries, plain files or memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import torch
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from benchmarks.loader.clip import BATCH, SIZE, LoadedClip, load_clip, load_tracks
from benchmarks.real_clips import CLIPS_MADE, VIDEOS_USED, ClipsOnDisk, sample_video
from shards.codec import encode_tracks
from shards.reader import iterate_shard


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
