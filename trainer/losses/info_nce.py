"""InfoNCE on tracks: the student's point must match its own anchor point and no other."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings, mean_over_tracks
from trainer.losses.settings import InfoNCESettings


def info_nce(e: Embeddings, settings: InfoNCESettings) -> Tensor:
    """Return the InfoNCE loss (van den Oord et al., 2018, eq. 4), averaged over tracks: a scalar.

    For track n in frame f, with temperature t and s_m = student[f, n] . teacher[m],

        -log( exp(s_n / t) / (exp(s_n / t) + sum over negatives m of exp(s_m / t)) )

    Keys are the teacher's embeddings in the anchor frame, without gradient. Negatives are the
    tracks of the same clip that count in any compared frame and are at least `apart` from n in the
    anchor frame. With `other_clips`, negatives are also all tracks of the other clips in this
    rank's batch that count in any frame; the scores then take B times the memory.
    """
    teacher, valid = e.teacher.detach(), e.valid_tracks
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    keys = ((e.anchor_distances >= settings.apart) & valid[:, None]) | itself
    same_clip = e.student @ teacher[:, None].transpose(2, 3)  # [B, F, N, N]
    scores = same_clip.masked_fill(~keys[:, None], -math.inf)
    if settings.other_clips:
        clips = len(valid)
        # [B, B, N]: keys of clip c are negatives for clip b where b != c and the track counts
        negatives = ~torch.eye(clips, dtype=torch.bool, device=valid.device)[:, :, None] & valid
        others = e.student @ teacher.flatten(0, 1).T  # [B, F, N, B * N]
        others = others.masked_fill(~negatives.view(clips, 1, 1, -1), -math.inf)
        scores = torch.cat([scores, others], dim=-1)
    positives = same_clip.diagonal(dim1=2, dim2=3) / settings.temperature
    losses = (scores / settings.temperature).logsumexp(dim=-1) - positives
    return mean_over_tracks(losses, e.weights)
