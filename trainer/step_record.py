"""Losses and gradient norms of the latest steps, kept on the device until they are read.

Reading a value makes the host wait for the device, so a run does it every few steps. Until then a
flag on the device keeps the optimizer from applying a gradient that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.errors import PretrackError


class DivergedError(PretrackError):
    """A loss, a gradient or a weight is not finite."""


@dataclass(frozen=True)
class _Step:
    number: int
    keys: list[str]
    loss: Tensor
    norm: Tensor


class StepRecord:
    """The steps since the last check, and whether any step so far was not finite.

    deferred:   steps are read by `check` only; otherwise by `add` too, as on a CPU, where reading
                costs nothing
    not_finite: float32 scalar on the device: 0, or 1 from the first step on whose loss or gradient
                norm is not finite; the fused AdamW takes it as `found_inf` and then changes nothing
    """

    def __init__(self, device: torch.device, deferred: bool) -> None:
        self.deferred = deferred
        self.not_finite = torch.zeros((), device=device)
        self._steps: list[_Step] = []

    def add(self, loss: Tensor, norm: Tensor, number: int, keys: list[str]) -> None:
        """Add step `number`, with its loss, its gradient's norm and the keys of its clips.

        Raises DivergedError as `check` does, unless steps are deferred.
        """
        self._steps.append(_Step(number, keys, loss, norm))
        if not self.deferred:
            self.check()
            return
        total = loss + norm
        # The difference is 0 for a finite number, and NaN otherwise.
        torch.logical_or(self.not_finite, total - total != 0, out=self.not_finite)

    def check(self) -> None:
        """Read the steps since the last check; waits for the device.

        Raises DivergedError, naming the clips of the first step that is not finite.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return
        values = torch.stack([value for step in steps for value in (step.loss, step.norm)])
        for step, (loss, norm) in zip(steps, values.view(-1, 2).tolist(), strict=True):
            if not math.isfinite(loss + norm):
                raise DivergedError(
                    f"step {step.number}: the loss is {loss:.3g} and the gradient's norm "
                    f"{norm:.3g}; the clips of this rank were {', '.join(step.keys)}: lower "
                    "'optim.lr', set 'optim.clip_norm', or leave bad ones out with 'data.where'"
                )


def check_weights(weights: Sequence[Tensor], step: int) -> None:
    """Raise DivergedError if any of the weights after `step` steps is not finite."""
    largest = torch.nn.utils.get_total_norm(weights, norm_type=math.inf).item()
    if not math.isfinite(largest):
        raise DivergedError(
            f"the weights after step {step} are not finite, so no checkpoint was saved: lower "
            "'optim.lr' or set 'optim.clip_norm'"
        )
