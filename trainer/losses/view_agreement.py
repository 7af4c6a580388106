"""All views of a point agree, and so do keypoint scores, which peak sparsely (after ConDense)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.losses.embeddings import Embeddings, mean_over_tracks
from trainer.losses.settings import ViewAgreementSettings
from trainer.losses.track_mean import track_mean


class ViewAgreement(nn.Module):
    """A trained keypoint head and its loss.

    What frames and tracks allow of ConDense (Zhang et al., ECCV 2024), whose code is not published:
    its 2D features also agree with a rendered 3D volume, and its keypoints with those of a sparse
    3D network. The keypoint terms are those of R2D2 (Revaud et al., 2019), with the tracks near a
    track in place of a square of pixels.

    `head` maps an embedding to one number, whose sigmoid is the score.
    """

    def __init__(self, settings: ViewAgreementSettings, width: int) -> None:
        super().__init__()
        self.settings = settings
        self.head = nn.Linear(width, 1)

    def forward(self, e: Embeddings) -> Tensor:
        """Return `track_mean` + keypoints * (disagreement + flatness of scores): a scalar.

        s[f, n] is the score of track n in frame f, by the student, and S[n] the weighted mean of
        the track's scores in the anchor frame, where the embedding is the teacher's, and in the
        compared frames. P are the tracks that count in frame f and lie at most `near` from n in the
        anchor frame. Averaged over tracks:

            disagreement = 1 - cos(s[f, P], S[P])
            flatness     = 1 - (max of s[f, P] - mean of s[f, P])

        Raises ValueError if the teacher's embeddings of the compared frames are missing.
        """
        scores, anchors = self.scores(e.student), self.scores(e.teacher.detach())
        weights = e.weights
        mean = (anchors + (scores * weights).sum(dim=1)) / (1 + weights.sum(dim=1))
        near = e.anchor_distances <= self.settings.near
        members = (near[:, None] & (weights > 0)[:, :, None]).to(scores)  # [B, F, N, N]

        def over_members(values: Tensor) -> Tensor:
            """Sum values [B, F, N] over the members of each track's P."""
            return (members @ values[..., None])[..., 0]

        mean = mean[:, None].expand_as(scores)
        # The bound keeps gradients finite where P is empty; such tracks have no weight.
        tiny = torch.finfo(scores.dtype).tiny
        lengths = [over_members(v**2).clamp_min(tiny).sqrt() for v in (scores, mean)]
        disagreement = 1 - over_members(scores * mean) / (lengths[0] * lengths[1])
        highest = (members * scores[:, :, None]).amax(dim=-1)
        flatness = 1 - (highest - over_members(scores) / members.sum(dim=-1).clamp_min(1))
        keypoints = mean_over_tracks(disagreement + flatness, weights)
        return track_mean(e) + self.settings.keypoints * keypoints

    def scores(self, embeddings: Tensor) -> Tensor:
        """Return keypoint scores 0..1 of unit vectors: [..., E] → [...]."""
        numbers: Tensor = self.head(embeddings)
        return torch.sigmoid(numbers[..., 0])
