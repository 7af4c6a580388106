"""Clusters carried along tracks (MoSiC): the teacher assigns points of the anchor frame, the student is to follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from trainer.distributed import all_reduce_sum
from trainer.losses.embeddings import Embeddings, mean_over_tracks

if TYPE_CHECKING:
    from trainer.losses.settings import ClusterSettings


class Clusters(nn.Module):
    """Prototypes, and the cross-entropy of the student's clusters with the teacher's.

    `prototypes` [K, E] is trained beside the student, by the student's scores alone. Its rows are normalised whenever they are
    used, so that their length means nothing and nothing is to be done after a step.
    """

    def __init__(self, settings: ClusterSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.prototypes = nn.Parameter(normalize(torch.randn(settings.prototypes, width), dim=-1))

    def forward(self, e: Embeddings) -> Tensor:
        """The mean over tracks that count: a scalar (MoSiC, Salehi et al., 2025).

        For the track n in the frame f, with q_n the teacher's assignment of n in the anchor frame by Sinkhorn (without gradient),
        or, unless `soft`, 1 at its largest entry and 0 elsewhere,

            -sum over prototypes k of q_n[k] log_softmax(student[f, n] . prototypes / temperature)[k]

        MoSiC labels a frame further on and compares the anchor; tracks are the same in both, and here the anchor is the teacher's.
        Sinkhorn balances over the tracks of all ranks, each of which must call this.
        """
        prototypes = normalize(self.prototypes, dim=-1)
        with torch.no_grad():
            scores = e.teacher @ prototypes.T
            assigned = sinkhorn(
                scores.flatten(0, 1),
                e.valid_tracks.flatten(),
                self.settings.epsilon,
                self.settings.iterations,
            )
            if not self.settings.soft:
                assigned = one_hot(assigned.argmax(dim=-1), len(prototypes)).to(scores)
        logs = (e.student @ prototypes.T / self.settings.temperature).log_softmax(dim=-1)
        losses = -(logs * assigned.view(scores.shape)[:, None]).sum(dim=-1)
        return mean_over_tracks(losses, e.weights)


@torch.no_grad()
def sinkhorn(scores: Tensor, valid: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assigns points to prototypes, the same mass to each (Cuturi, 2013, as in SwAV): cosines [M, K], [M] → [M, K].

    exp(scores / epsilon) is scaled by turns so that every prototype has the same part of all points, and every point is given once.
    The last turn is the points': rows of points that count sum to 1, those of others are 0 and have no part in anything. Columns
    are equal only as far as `iterations` went.

    Where torch.distributed is initialised, the points are those of all ranks: every rank calls this, with as many prototypes.
    """
    points = valid.to(scores.dtype)[:, None]
    tiny = torch.finfo(scores.dtype).tiny
    mass = torch.exp((scores - 1) / epsilon) * points  # cosines: the largest is 1
    for _ in range(iterations):
        mass = mass / all_reduce_sum(mass.sum(dim=0)).clamp_min(tiny)
        mass = mass / mass.sum(dim=1, keepdim=True).clamp_min(tiny)
    return mass
