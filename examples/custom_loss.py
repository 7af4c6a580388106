"""A loss of your own, trained without a change to pretrack: python examples/custom_loss.py CONFIG [key=value ...]

The example asks that a track's embedding stays what the teacher saw of it in the anchor frame. It is added to the losses that a
config names:

    loss: {sorting: 1.0, steady: {weight: 0.5}}
"""

from __future__ import annotations

import sys

from pydantic import Field
from torch import Tensor

from manifests.settings import Settings
from trainer.__main__ import main
from trainer.config import TrainSettings
from trainer.losses.embeddings import Embeddings, mean_over_tracks
from trainer.losses.settings import LossSettings
from trainer.losses.weighted_sum import Losses, make_losses


class SteadySettings(Settings):
    """A track's embedding stays what the teacher saw of it in the anchor frame."""

    weight: float = Field(default=1.0, ge=0)
    """Its part in the sum of all losses; 0 leaves it out."""


class Loss(LossSettings):
    """The settings of pretrack's losses, and of ours."""

    steady: SteadySettings = SteadySettings()
    """Ours."""

    def make(self, width: int) -> Losses:
        """pretrack's losses, and ours beside them."""
        return make_losses(self, width, steady=steady)


class Train(TrainSettings):
    """A run's settings in which `loss.steady` is known too."""

    loss: Loss = Loss()


def steady(e: Embeddings) -> Tensor:
    """1 - cosine of each track in the compared frames with the teacher's in the anchor frame, the mean over tracks that count.

    All embeddings are unit vectors, so the cosine is a product. The teacher learns nothing from it. A scalar from 0 to 2.
    """
    cosines = (e.student * e.teacher.detach()[:, None]).sum(dim=-1)  # [B, F, N]
    return mean_over_tracks(1 - cosines, e.weights)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Train))
