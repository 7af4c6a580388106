"""From the loader's batches to batches on the device, which the training step takes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from trainer.data.batch import Batch


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch whose tensors are on a device.

    Tensors for CUDA are copied from pinned memory, so the host does not wait for the copy. The
    batch itself is returned if it is there already.
    """
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    moved = {name: copy_to_device(value, device) for name, value in tensors.items()}
    return cast(Batch, {**batch, **moved})


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device, copied from pinned memory if that is CUDA."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
