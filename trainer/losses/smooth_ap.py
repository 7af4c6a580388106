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

    With `ideal` (3DCorrEnhance's code), each positive i has the mean of two precisions, in which
    the other positive is an ideal match of cosine 1:

        (1 + G(1 - s_i)) / (1 + G(1 - s_i) + sum over j in N of G(s_j - s_i))
        (1 + G(s_i - 1)) / (1 + G(s_i - 1) + sum over j in N of G(s_j - 1))

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
    if settings.ideal:
        to_ideal = torch.sigmoid((1 - item_scores[..., 0]) / settings.temperature)
        above_ideal = torch.sigmoid((rows - 1) / settings.temperature)
        negatives_above_ideal = (above_ideal * negative[clip, query][:, None]).sum(dim=-1)
        precision = (
            (1 + to_ideal) / (1 + to_ideal + negatives_above)
            + (2 - to_ideal) / (2 - to_ideal + negatives_above_ideal)  # G(-x) = 1 - G(x)
        ) / 2
    else:
        precision = positives_above / (positives_above + negatives_above)

    # add up the pairs of each query, then divide by their number
    sums = scores.new_zeros(clips, tracks, frames)
    sums = sums.index_put((clip, query), precision, accumulate=True)
    average_precision = (sums / positive.sum(dim=-1, keepdim=True)).transpose(1, 2)
    return mean_over_tracks(1 - average_precision, e.weights)
