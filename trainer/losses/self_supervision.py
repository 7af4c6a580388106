"""Self-supervision by two views of a frame: features learn without any track."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings
from trainer.losses.settings import SelfSupervisionSettings


def self_supervision(e: Embeddings, settings: SelfSupervisionSettings) -> Tensor:
    """Return InfoNCE between points of two views, averaged over all points: a scalar.

    For point m of a frame, with the student's embeddings s in its view, the teacher's t in the
    frame itself (without gradient) and temperature T,

        -log( exp(s_m . t_m / T) / (exp(s_m . t_m / T) + sum over others k of exp(s_m . t_k / T)) )

    where the others are the points of the same frame that are at least `apart` from m in it. This
    is dense contrast as in PixPro (Xie et al., 2021), with a momentum teacher. Covered patches make
    the student infer a point from what surrounds it, as in iBOT (Zhou et al., 2022).

    Raises ValueError if the views are missing.
    """
    if e.views is None:
        raise ValueError("self-supervision needs embeddings of two views: set 'views'")
    student, teacher, points = e.views.student, e.views.teacher.detach(), e.views.points
    distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    itself = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    scores = student @ teacher.transpose(1, 2) / settings.temperature
    counted = scores.masked_fill((distances < settings.apart) & ~itself, -math.inf)
    return (counted.logsumexp(dim=-1) - scores.diagonal(dim1=1, dim2=2)).mean()
