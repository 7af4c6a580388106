"""Random and other index tensors of a step: made on the CPU, copied to the device in one piece."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


class Draws(Protocol):
    """What one part of a step draws; all its tensors are int64 and on one device."""

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in a fixed order."""
        ...

    def with_tensors(self, tensors: Sequence[Tensor]) -> Self:
        """Return the same draws with other tensors, in the order of `tensors`."""
        ...


D = TypeVar("D", bound=Draws)


def pack_draws(parts: Sequence[Draws]) -> Tensor:
    """Return the tensors of all parts of a step in one piece, int64 [n]."""
    return torch.cat([tensor.flatten() for part in parts for tensor in part.tensors()])


def unpack_draws(packed: Tensor, parts: Sequence[D]) -> list[D]:
    """Return `parts` with their tensors as views of `packed`, which can be on another device."""
    originals = [part.tensors() for part in parts]
    pieces = iter(packed.split([tensor.numel() for part in originals for tensor in part]))
    return [
        part.with_tensors([next(pieces).view(tensor.shape) for tensor in tensors])
        for part, tensors in zip(parts, originals, strict=True)
    ]
