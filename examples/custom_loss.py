"""Train with a loss of your own without changing pretrack.

    python examples/custom_loss.py CONFIG [key=value ...]

The example pulls the embedding of each track, in every compared frame, towards the teacher's
embedding of the same track in the anchor frame. A config names it beside pretrack's losses:

    loss: {sorting: 1.0, steady: {weight: 0.5}}
"""

from __future__ import annotations

import sys

from pydantic import Field
from torch import Tensor

from manifests.settings import Settings
from trainer.__main__ import main
from trainer.config import TrainSettings
from trainer.losses.embeddings import Embeddings, Loss, mean_over_tracks
from trainer.losses.settings import LossSettings


class SteadySettings(Settings):
    """Settings of the loss: keep embeddings of a track close to the teacher's anchor embedding."""

    weight: float = Field(default=1.0, ge=0)
    """Weight of this loss in the sum of all losses; 0 turns it off."""


class OwnLossSettings(LossSettings):
    """The settings of pretrack's losses and of ours."""

    steady: SteadySettings = SteadySettings()
    """Settings of our loss."""

    def custom_losses(self) -> dict[str, Loss]:
        """Map the field `steady` to the function that computes it."""
        return {"steady": steady}


class Train(TrainSettings):
    """The settings of a run, with `loss.steady` as one more choice."""

    loss: OwnLossSettings = OwnLossSettings()


def steady(e: Embeddings) -> Tensor:
    """Return the mean of 1 - cosine(student, teacher) over the tracks that count: 0 to 2.

    The student's embeddings are those of the compared frames; the teacher's are those of the anchor
    frame, as constants. All embeddings are unit vectors, so their dot product is the cosine.
    """
    cosines = (e.student * e.teacher.detach()[:, None]).sum(dim=-1)  # [B, F, N]
    return mean_over_tracks(1 - cosines, e.weights)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Train))
