"""Tracks that a network predicts, and what moves them between host and device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PredictedTracks:
    """Predicted tracks of B clips. Only tracks of a grid have the dimension A of anchor frames.

    positions:  float32 [B, A, T, N, 2]  (x, y) in pixels of the video; may lie outside it
    visibility: float32 [B, A, T, N]     probability of being visible
    confidence: float32 [B, A, T, N]     probability that the position is right
    """

    positions: Tensor
    visibility: Tensor
    confidence: Tensor


def on_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device, without waiting for what the device computes.

    Only copies from pinned memory do not wait.
    """
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


def padded_rows(values: Tensor, rows: int) -> Tensor:
    """Repeat the last row until there are `rows` of them."""
    missing = rows - len(values)
    return (
        torch.cat([values, values[-1:].expand(missing, *values.shape[1:])]) if missing else values
    )
