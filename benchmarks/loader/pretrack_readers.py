"""Readers of the comparison that use pretrack's loader, and the time of its work without images."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from benchmarks.loader.clip import BATCH, SIZE
from benchmarks.real_clips import CLIPS_MADE, ClipsOnDisk
from manifests.snapshot import open_snapshot
from trainer.data.dataset import ClipDataset
from trainer.data.device_batches import to_device
from trainer.data.device_frames import make_frames
from trainer.data.encoded_clip import copy_tracks
from trainer.data.loader import Loader
from trainer.data.packed_batch import PackedBatch, empty_memory
from trainer.data.sampler import ClipSampler, SampleIndex
from trainer.data.settings import DataSettings


def dataset_of(data: ClipsOnDisk, **changes: Any) -> ClipDataset:
    """Open the clips as all readers show them; `changes` are settings of `data`."""
    settings = DataSettings.model_validate(
        {
            "out": str(data.folder / "build"),
            "size": SIZE,
            "step": data.frames // 4,
            "anchor": "first",
            "direction": "forward",
            "crop": "squash",
            "flip": 0.0,
            "reduced_decoding": False,
        }
        | changes
    )
    return ClipDataset([open_snapshot(data.folder / "build")], settings, seed=1)


def ours(data: ClipsOnDisk, processes: int, **changes: Any) -> Iterator[Any]:
    """Read shuffled clips with this project's loader."""
    dataset = dataset_of(data, **changes)

    class OneEpoch(ClipSampler):
        def __iter__(self) -> Iterator[list[SampleIndex]]:  # type: ignore[override]
            return islice(super().__iter__(), self.steps_per_epoch)

    cuda = torch.device("cuda") if torch.cuda.is_available() else None
    on_device = dataset.settings.resize == "device"
    loader = Loader(
        dataset,
        OneEpoch(len(dataset), BATCH, seed=1),
        0 if processes == 1 else processes,
        pin=on_device,
    )
    for batch in loader:
        yield make_frames(to_device(batch, cuda), dataset.settings) if on_device and cuda else batch


def ours_resized_on_device(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Read shuffled clips with this project's loader, which leaves resizing to the device."""
    return ours(data, processes, resize="device")


def ours_decoded_on_device(data: ClipsOnDisk, processes: int) -> Iterator[Any]:
    """Read shuffled clips with this project's loader, which leaves decoding to the device too."""
    return ours(data, processes, resize="device", decode="device")


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
