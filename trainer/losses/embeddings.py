"""The input of every loss, and the mean over tracks that all losses take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ViewEmbeddings:
    """Unit vectors [n, M, E], float32, of M points in each of n frames.

    student: in another view of the frame, by the student
    teacher: in the frame itself, by the teacher
    points:  [n, M, 2] (x, y) in the frame, as fractions 0..1 of its side
    """

    student: Tensor
    teacher: Tensor
    points: Tensor


@dataclass(frozen=True)
class Features:
    """Features of backbones, float32: D numbers after the final norm, before the head.

    The base model is the student at its start weights.
    """

    student: Tensor
    """[M, h, w, D]: patches of the M frames that the student's trained blocks saw."""
    base: Tensor
    """[M, h, w, D]: the same by the base model."""
    tracks: Tensor
    """[B, F, N, D]: the tracks in the compared frames, by the student."""
    base_tracks: Tensor
    """[B, F, N, D]: the same by the base model."""
    base_anchors: Tensor
    """[B, N, D]: the tracks in the anchor frame, by the base model."""


@dataclass(frozen=True)
class PatchMaps:
    """All patches of B clips, float32."""

    features: Tensor
    """[B, 1 + F, h, w, D]: of the anchor frame and the compared frames, by the student's backbone,
    without gradient."""
    teacher: Tensor
    """[B, h, w, E]: unit vectors of the anchor frame, by the teacher."""
    student: Tensor
    """[B, h, w, E]: unit vectors of the last compared frame, by the student."""


@dataclass(frozen=True)
class Embeddings:
    """Unit vectors [..., E], float32, of a batch of B clips with N tracks each.

    Every track is embedded in F compared frames and in the anchor frame.
    """

    student: Tensor
    """[B, F, N, E]: the tracks in the compared frames, by the student."""
    teacher: Tensor
    """[B, N, E]: the same tracks in the anchor frame, by the teacher."""
    references: Tensor
    """[B, R, P, E]: the P patches of each of the R references: crops by the student, or patches of
    the teacher from a queue, without gradient."""
    weights: Tensor
    """[B, F, N]: 1 where a track counts, else 0, and between them with `tracks.epipolar_weight_px`.
    A track that counts in any frame is also visible in the anchor frame."""
    positions: Tensor
    """[B, F, N, 2]: (x, y) of the tracks in the compared frames, as fractions 0..1 of the frame's
    side."""
    anchor_positions: Tensor
    """[B, N, 2]: the same in the anchor frame."""
    teacher_frames: Tensor | None = None
    """[B, F, N, E]: the tracks in the compared frames, by the teacher; None unless a loss needs
    them."""
    views: ViewEmbeddings | None = None
    """None unless a loss needs them. Where no loss needs anything else, N is 0."""
    features: Features | None = None
    """None unless a loss needs them."""
    patches: PatchMaps | None = None
    """None unless a loss needs them."""

    @property
    def valid_tracks(self) -> Tensor:
        """[B, N] bool: whether a track counts in at least one compared frame."""
        return (self.weights > 0).any(dim=1)

    @property
    def anchor_distances(self) -> Tensor:
        """[B, N, N]: distances between tracks in the anchor frame, as fractions of its side."""
        points = self.anchor_positions.detach()
        # the matrix-product form of cdist loses small distances to rounding
        return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


Loss = Callable[[Embeddings], Tensor]
"""The embeddings of a batch → a scalar."""


def mean_over_tracks(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean of losses [B, F, N], as the sorting loss takes it: a scalar.

    For every clip and frame sum(w loss) / (sum(w) + 1e-6), then the mean over frames and clips. A
    clip in which no track counts adds 0 and still counts as a clip.
    """
    normalised = weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)
    return (losses * normalised).sum(dim=-1).mean()
