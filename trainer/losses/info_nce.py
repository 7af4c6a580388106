"""InfoNCE on tracks: a point in a compared frame is told from the others by what the teacher saw in the anchor frame."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings, mean_over_tracks

if TYPE_CHECKING:
    from trainer.losses.settings import InfoNCESettings


def info_nce(e: Embeddings, settings: InfoNCESettings) -> Tensor:
    """-log of the softmax at the track itself (van den Oord et al., 2018, eq. 4), the mean over tracks that count: a scalar.

    For the track n in the frame f

        -log( exp(s_n / t) / (exp(s_n / t) + sum over negatives m of exp(s_m / t)) ),   s_m = student[f, n] . teacher[m]

    where the teacher's embeddings are those of the anchor frame, without gradient, and t is the temperature. Negatives are tracks
    of the same clip that count in any compared frame and are at least `apart` from n in the anchor frame; with `other_clips` also
    all tracks of the other clips in this rank's batch that count in any frame, which takes B times the memory.
    """
    teacher, valid = e.teacher.detach(), e.valid_tracks
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    keys = ((e.anchor_distances >= settings.apart) & valid[:, None]) | itself
    own = e.student @ teacher[:, None].transpose(2, 3)
    scores = own.masked_fill(~keys[:, None], -math.inf)
    if settings.other_clips:
        clips = len(valid)
        foreign = ~torch.eye(clips, dtype=torch.bool, device=valid.device)[:, :, None] & valid
        others = e.student @ teacher.flatten(0, 1).T
        scores = torch.cat(
            [scores, others.masked_fill(~foreign.view(clips, 1, 1, -1), -math.inf)], dim=-1
        )
    losses = (scores / settings.temperature).logsumexp(dim=-1) - own.diagonal(
        dim1=2, dim2=3
    ) / settings.temperature
    return mean_over_tracks(losses, e.weights)
