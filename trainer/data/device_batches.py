"""From the loader's batches to batches on the device, which the training step takes.

On CUDA a batch is copied on a stream of its own, so that the copy overlaps with the step before:
the host is ahead of the device, and never waits for a copy. JPEGs are decoded on the same stream
(`data.decode: device`); for that the host does wait, while the device works on the step before.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from trainer.data.batch import Batch
from trainer.data.device_decoding import decode_crops


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch whose tensors are on a device.

    Tensors for CUDA are copied from pinned memory, so the host does not wait for the copy. Those
    that are there already are not copied.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    moved = {name: copy_to_device(value, device) for name, value in tensors.items()}
    return cast(Batch, {**batch, **moved})


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, copied from pinned memory if that is CUDA."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class CopyStream:
    """Copies what a step needs to a device, and decodes it: on CUDA by a stream of its own.

    What it returns can be used at once by the current stream, which waits for the copy; the host
    does not, but for decoding.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copy(self, batch: Batch, indices: Tensor) -> tuple[Batch, Tensor]:
        """Return a batch and a tensor of indices on the device. Raises as `decode_crops` does."""
        if self.stream is None:
            return decode_crops(to_device(batch, self.device)), indices.to(self.device)
        with torch.cuda.stream(self.stream):
            moved_indices = copy_to_device(indices, self.device)
            moved = decode_crops(to_device(batch, self.device))
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        # The allocator must not give this memory to the next copy while the step still reads it.
        for tensor in (*moved.values(), moved_indices):
            if isinstance(tensor, Tensor):
                tensor.record_stream(current)
        return moved, moved_indices
