"""A loss of your own, trained without a change to pretrack: python examples/custom_loss.py CONFIG [key=value ...]

The example asks that a track's embedding stays what the teacher saw of it in the anchor frame. It is added to the losses that a
config names:

    loss: {sorting: 1.0, steady: {weight: 0.5}}
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from pydantic import Field
from torch import Tensor

from manifests.settings import Settings, load_settings
from shards.errors import PretrackError
from trainer import train as training
from trainer.config import LossSettings, TrainSettings
from trainer.losses import mix
from trainer.losses.embeddings import Embeddings, mean_over_tracks


class SteadySettings(Settings):
    """A track's embedding stays what the teacher saw of it in the anchor frame."""

    weight: float = Field(default=1.0, gt=0)
    """Its part in the sum of all losses."""


class Loss(LossSettings):
    """The settings of pretrack's losses, and of ours."""

    steady: SteadySettings = SteadySettings()
    """Ours."""


class Train(TrainSettings):
    """A run's settings in which `loss.steady` is known too."""

    loss: Loss = Loss()


def steady(e: Embeddings) -> Tensor:
    """1 - cosine of each track in the compared frames with the teacher's in the anchor frame, the mean over tracks that count.

    All embeddings are unit vectors, so the cosine is a product. The teacher learns nothing from it. A scalar from 0 to 2.
    """
    cosines = (e.student * e.teacher.detach()[:, None]).sum(dim=-1)  # [B, F, N]
    return mean_over_tracks(1 - cosines, e.weights)


def make_losses(settings: LossSettings, width: int) -> mix.Losses:
    """pretrack's losses, and ours beside them."""
    theirs = mix.make_losses(settings, width)
    if not isinstance(settings, Loss):
        return theirs
    return mix.Losses({**theirs.losses, "steady": steady}, {**theirs.weights, "steady": settings.steady.weight})


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    training.make_losses = make_losses  # type: ignore[attr-defined]  # where `trainer.train` takes its losses from
    try:
        print(training.train(load_settings(Train, Path(sys.argv[1]), sys.argv[2:])))
    except PretrackError as error:
        sys.exit(f"trainer: {error}")
