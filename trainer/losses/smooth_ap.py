"""SmoothAP on tracks: a track's own anchor point must rank above all points far from it."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings, mean_over_tracks
from trainer.losses.settings import SmoothAPSettings


def smooth_ap(e: Embeddings, settings: SmoothAPSettings) -> Tensor:
    """Return 1 - SmoothAP (Brown et al., 2020), averaged over tracks: a scalar.

    Like 3DCorrEnhance on correspondences: the query is the student's track n in a frame, and
    the teacher's anchor embeddings (without gradient) are ranked by their cosine s with it. With
    G(x) = sigmoid(x / temperature), positives P and negatives N,

        AP = mean over i in P of  (1 + sum over j in P, j != i, of G(s_j - s_i))
                                / (1 + sum over j in P, j != i, of G(s_j - s_i)
                                     + sum over j in N of G(s_j - s_i))

    P is n itself and the tracks nearer than `near` to it in the anchor frame, N the tracks
    further than `far`; both are of the same clip, and only tracks that count in any compared
    frame. 3DCorrEnhance measures distances in three dimensions, on objects; here they are measured
    in the image plane.
    """
    clips, frames, tracks, _ = e.student.shape
    distances, valid = e.anchor_distances, e.valid_tracks[:, None]
    itself = torch.eye(tracks, dtype=torch.bool, device=distances.device)
    positive = ((distances < settings.near) & valid) | itself
    negative = (distances > settings.far) & valid
    scores = torch.einsum("bfne,bme->bnfm", e.student, e.teacher.detach())

    # K (query, positive) pairs: little more than one per track, so no [N, N, N] tensor is needed
    clip, query, item = positive.nonzero(as_tuple=True)
    rows = scores[clip, query]  # [K, F, N]: all scores of the pair's query
    item_scores = scores[clip, query, :, item][..., None]
    above = torch.sigmoid((rows - item_scores) / settings.temperature)
    # an item compared with itself gives G(0) = 0.5 in this sum, where the formula has 1: add 0.5
    positives_above = (above * positive[clip, query][:, None]).sum(dim=-1) + 0.5
    negatives_above = (above * negative[clip, query][:, None]).sum(dim=-1)
    precision = positives_above / (positives_above + negatives_above)

    # add up the pairs of each query, then divide by their number
    sums = scores.new_zeros(clips, tracks, frames)
    sums = sums.index_put((clip, query), precision, accumulate=True)
    average_precision = (sums / positive.sum(dim=-1, keepdim=True)).transpose(1, 2)
    return mean_over_tracks(1 - average_precision, e.weights)
