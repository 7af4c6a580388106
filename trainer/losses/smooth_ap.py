"""SmoothAP on tracks: how high a point of the anchor frame ranks among all of them, seen from a compared frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings, mean_over_tracks

if TYPE_CHECKING:
    from trainer.losses.settings import SmoothAPSettings


def smooth_ap(e: Embeddings, settings: SmoothAPSettings) -> Tensor:
    """1 - SmoothAP (Brown et al., 2020; on correspondences as in 3DCorrEnhance), the mean over tracks that count: a scalar.

    The student's track n in a frame is the query, the teacher's anchor embeddings (without gradient) are what is ranked, by the
    cosine s. With G(x) = sigmoid(x / temperature)

        AP = mean over i in P of  (1 + sum over j in P, j != i, of G(s_j - s_i))
                                / (1 + sum over j in P, j != i, of G(s_j - s_i) + sum over j in N of G(s_j - s_i))

    P are n itself and the tracks nearer than `near` to it in the anchor frame, N those further than `far`, both of the same clip
    and only where they count in any compared frame. 3DCorrEnhance measures in three dimensions, on objects; the image's plane
    stands in for them.
    """
    clips, frames, tracks, _ = e.student.shape
    distances, valid = e.anchor_distances, e.valid_tracks[:, None]
    itself = torch.eye(tracks, dtype=torch.bool, device=distances.device)
    positive = ((distances < settings.near) & valid) | itself
    negative = (distances > settings.far) & valid
    scores = torch.einsum("bfne,bme->bnfm", e.student, e.teacher.detach())

    clip, query, item = positive.nonzero(
        as_tuple=True
    )  # pairs, K of them: few more than there are tracks
    rows = scores[clip, query]  # [K, F, N]
    above = torch.sigmoid((rows - scores[clip, query, :, item][..., None]) / settings.temperature)
    # the item against itself is the sigmoid's half, and counts 1
    among = (above * positive[clip, query][:, None]).sum(dim=-1) + 0.5
    precision = among / (among + (above * negative[clip, query][:, None]).sum(dim=-1))
    sums = scores.new_zeros(clips, tracks, frames).index_put(
        (clip, query), precision, accumulate=True
    )
    return mean_over_tracks(
        1 - (sums / positive.sum(dim=-1, keepdim=True)).transpose(1, 2), e.weights
    )
