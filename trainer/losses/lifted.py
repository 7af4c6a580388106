"""Features along a track must be the base model's mean along it (after FiT3D)."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.embeddings import Embeddings, mean_over_tracks


def lifted(e: Embeddings) -> Tensor:
    """Return the distance from the base model's mean along each track, averaged: a scalar.

    For track n in frame f, the mean over channels of | student[f, n] - m_n |, where m_n is the mean
    of the *base* model's features of n in the anchor frame and, weighted, in the compared frames
    where n counts. FiT3D (Yue et al., 2024) regresses base features that were fused into 3D
    Gaussians and rendered, at every patch; the mean along a track is the counterpart without a
    reconstructed scene, at tracked points.

    Raises ValueError if features are missing.
    """
    if e.features is None:
        raise ValueError("lifted features need features along tracks: set 'features'")
    f, weights = e.features, e.weights[..., None]
    seen = (f.base_tracks * weights).sum(dim=1)
    target = ((f.base_anchors + seen) / (1 + weights.sum(dim=1))).detach()
    return mean_over_tracks((f.tracks - target[:, None]).abs().mean(dim=-1), e.weights)
