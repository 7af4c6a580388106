"""What every loss is computed from, and the mean that all of them take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """A batch of B clips with N tracks each, seen in F compared frames and in the anchor frame. Unit vectors [..., E], float32."""

    student: Tensor
    """[B, F, N, E]: the tracks in the compared frames, by the student."""
    teacher: Tensor
    """[B, N, E]: the same tracks in the anchor frame, by the teacher."""
    references: Tensor
    """[B, R, P, E]: the patches of the reference crops, by the student."""
    weights: Tensor
    """[B, F, N]: 1 where a track counts, 0 where not. One that counts anywhere is visible in the anchor frame, too."""
    positions: Tensor
    """[B, F, N, 2]: (x, y) of the tracks in the compared frames, in parts of the frame's side, 0..1."""
    anchor_positions: Tensor
    """[B, N, 2]: likewise in the anchor frame."""
    teacher_frames: Tensor | None = None
    """[B, F, N, E]: the tracks in the compared frames, by the teacher; only where a loss asks for them."""

    @property
    def valid_tracks(self) -> Tensor:
        """[B, N]: whether a track counts in any compared frame."""
        return (self.weights > 0).any(dim=1)

    @property
    def anchor_distances(self) -> Tensor:
        """[B, N, N]: how far tracks are from each other in the anchor frame, in parts of the frame's side."""
        points = self.anchor_positions.detach()
        return torch.cdist(
            points, points, compute_mode="donot_use_mm_for_euclid_dist"
        )  # products lose small distances


def mean_over_tracks(losses: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of losses [B, F, N], as the sorting loss takes it: a scalar.

    For every clip and frame sum(w loss) / (sum(w) + 1e-6), then the mean over frames and clips. A clip without a track that counts
    adds 0 and still counts as a clip.
    """
    share = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
    return (losses * share).sum(dim=-1).mean()
