"""Staying near the base model: how far patch features moved in length and in direction."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings


def keep_base(e: Embeddings) -> Tensor:
    """Return `distance_from_base` of the patches of all frames that the student saw.

    The regulariser of Multi-View Foundation Models. Raises ValueError if features are missing.
    """
    if e.features is None:
        raise ValueError("staying near the base model needs features: set 'features'")
    return distance_from_base(e.features.student, e.features.base)


def distance_from_base(features: Tensor, base: Tensor) -> Tensor:
    """Return how far features [..., D] are from the base model's, which is a constant: a scalar.

    The mean of | |F| / |G| - 1 | plus the mean of 1 - cos(F, G).
    """
    base = base.detach()
    lengths = features.norm(dim=-1) / base.norm(dim=-1).clamp_min(1e-12)
    cosines = torch.cosine_similarity(features, base, dim=-1)
    return (lengths - 1).abs().mean() + (1 - cosines).mean()
