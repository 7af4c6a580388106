"""Track-mean distillation: a track's embedding must be the teacher's mean embedding along it."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from trainer.losses.embeddings import Embeddings, mean_over_tracks


def track_mean(e: Embeddings) -> Tensor:
    """Return 1 - cosine with the teacher's mean, averaged over tracks: a scalar in [0, 2].

    For track n in frame f, 1 - student[f, n] . m_n / |m_n|, where m_n is the mean of the teacher's
    embeddings of n in the anchor frame and in the compared frames where n counts, without gradient.
    FiT3D (Yue et al., 2024) regresses features that were lifted to three dimensions and rendered;
    the mean along a track is the counterpart without a reconstructed scene.

    Raises ValueError if the teacher's embeddings of the compared frames are missing.
    """
    if e.teacher_frames is None:
        raise ValueError(
            "the track mean needs the teacher's embeddings in the compared frames: "
            "set 'teacher_frames'"
        )
    seen = (e.teacher_frames * e.weights[..., None]).sum(dim=1)
    # the sum serves for the mean, since normalising removes the length
    target = normalize(e.teacher + seen, dim=-1).detach()
    return mean_over_tracks(1 - (e.student * target[:, None]).sum(dim=-1), e.weights)
