"""Clustering along tracks (MoSiC): a track must keep the prototype the teacher assigns to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from trainer.distributed import all_reduce_sum
from trainer.losses.embeddings import Embeddings, mean_over_tracks
from trainer.losses.settings import ClusterSettings


class Clusters(nn.Module):
    """Trained prototypes, and the cross-entropy of the student's assignments with the teacher's.

    `prototypes` [K, E] get gradients from the student's scores only. Rows are normalised on every
    use, so their length has no effect and they need no normalisation after an optimiser step.
    """

    def __init__(self, settings: ClusterSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.prototypes = nn.Parameter(normalize(torch.randn(settings.prototypes, width), dim=-1))

    def forward(self, e: Embeddings) -> Tensor:
        """Return the cross-entropy, averaged over tracks: a scalar (MoSiC, Salehi et al., 2025).

        For track n in frame f, with q_n the teacher's Sinkhorn assignment of n in the anchor frame
        (without gradient) or, unless `soft`, 1 at its largest entry and 0 elsewhere,

            -sum over k of q_n[k] log_softmax(student[f, n] . prototypes / temperature)[k]

        MoSiC assigns in a later frame and compares the anchor frame. Tracks are the same in both
        directions, and here the teacher sees the anchor frame. Sinkhorn balances over the tracks
        of all ranks, so every rank must call this.
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
    """Assign points to prototypes with equal mass per prototype: cosines [M, K], [M] → [M, K].

    Sinkhorn-Knopp (Cuturi, 2013, as in SwAV): alternately scale exp(scores / epsilon) so that all
    prototypes have the same mass and every point has mass 1. The points come last: rows of valid
    points sum to 1, rows of others are 0 and affect nothing. Column sums are equal only up to
    the convergence reached in `iterations`.

    Where torch.distributed is initialised, the balance is over the points of all ranks: every rank
    must call this, with the same number of prototypes.
    """
    points = valid.to(scores.dtype)[:, None]
    tiny = torch.finfo(scores.dtype).tiny
    # subtracting 1, the largest possible cosine, keeps exp from overflowing; the scale cancels
    mass = torch.exp((scores - 1) / epsilon) * points
    for _ in range(iterations):
        mass = mass / all_reduce_sum(mass.sum(dim=0)).clamp_min(tiny)
        mass = mass / mass.sum(dim=1, keepdim=True).clamp_min(tiny)
    return mass
