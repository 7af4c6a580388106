"""Track-mean distillation: a point is to look in every frame as the teacher sees it on average along its track."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from trainer.losses.embeddings import Embeddings, mean_over_tracks


def track_mean(e: Embeddings) -> Tensor:
    """1 - cosine with the teacher's mean, the mean over tracks that count: a scalar in [0, 2].

    For the track n in the frame f, 1 - student[f, n] . m_n / |m_n|, where m_n is the mean of the teacher's embeddings of n in the
    anchor frame and in those compared frames where it counts, without gradient. FiT3D (Yue et al., 2024) regresses features that
    were lifted to three dimensions and rendered; a track's mean is what that is without a scene.

    Raises ValueError where the teacher's embeddings of the compared frames are missing.
    """
    if e.teacher_frames is None:
        raise ValueError(
            "the track mean needs the teacher's embeddings in the compared frames: set 'teacher_frames'"
        )
    seen = (e.teacher_frames * e.weights[..., None]).sum(dim=1)
    target = normalize(
        e.teacher + seen, dim=-1
    ).detach()  # its length is lost anyway: the sum does for the mean
    return mean_over_tracks(1 - (e.student * target[:, None]).sum(dim=-1), e.weights)
