"""Objectives: how far the student's order of a reference's patches is from the teacher's. One interface, three of them.

Similarities are cosines of a track's embedding with the P patches of a reference crop. The teacher's, of a (clip, reference), are
computed once and compared with the student's in every frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings
from trainer.losses.sorting.cross_entropy import sorting_cross_entropy
from trainer.losses.sorting.network import Distribution, Network, expected_ranks, soft_permutation
from trainer.losses.sorting.soft_rank import (
    correlation,
    hard_rank,
    soft_rank,
    spearman,
    standardised,
)

if TYPE_CHECKING:
    from trainer.losses.settings import LossSettings


class Objective(Protocol):
    """What is minimised, a track at a time."""

    def teacher_order(self, similarities: Tensor) -> Tensor:
        """The order of the teacher's similarities [B, N, P], in whatever form `loss` takes it: [B, N, ...]."""

    def loss(self, similarities: Tensor, order: Tensor) -> Tensor:
        """The loss of every track in all frames: the student's similarities [F, B, N, P], the teacher's order → [F, B, N]."""


@dataclass(frozen=True)
class PublishedObjective:
    """3DPoV as published: mean over items of -sum over positions of A log(Q + epsilon), A and Q the two soft permutations.

    A is the student's, Q the teacher's. The loss is linear in A: for a fixed Q it is least where A puts everything on Q's largest
    entries, not where A equals Q.
    """

    network: Network
    distribution: Distribution
    student_steepness: float
    teacher_steepness: float
    epsilon: float

    def teacher_order(self, similarities: Tensor) -> Tensor:
        """The similarities as they are, [B, N, P]: Q is made beside A, and neither is kept."""
        return similarities

    def loss(self, similarities: Tensor, order: Tensor) -> Tensor:
        """[F, B, N, P], [B, N, P] → [F, B, N]."""
        return sorting_cross_entropy(
            similarities,
            order,
            self.network,
            self.student_steepness,
            self.teacher_steepness,
            self.distribution,
            self.epsilon,
        )


@dataclass(frozen=True)
class TeacherStudent:
    """Cross-entropy in NeCo's direction, mean over items of -sum over positions of Q log(A + epsilon); Q is a constant."""

    network: Network
    distribution: Distribution
    student_steepness: float
    teacher_steepness: float
    epsilon: float

    def teacher_order(self, similarities: Tensor) -> Tensor:
        """The similarities as they are, [B, N, P], without gradient."""
        return similarities.detach()

    def loss(self, similarities: Tensor, order: Tensor) -> Tensor:
        """[F, B, N, P], [B, N, P] → [F, B, N]."""
        return sorting_cross_entropy(
            order,
            similarities,
            self.network,
            self.teacher_steepness,
            self.student_steepness,
            self.distribution,
            self.epsilon,
        )


@dataclass(frozen=True)
class Spearman:
    """1 - correlation of the student's soft ranks with the teacher's ranks: in [0, 2], and 0 only where the orders agree.

    Soft ranks are torchsort's of standardised rows, or, with a network, the expected position of every item.
    """

    sorter: Network | None
    distribution: Distribution
    student_steepness: float
    strength: float

    def teacher_order(self, similarities: Tensor) -> Tensor:
        """Ranks: [B, N, P], without gradient."""
        return hard_rank(similarities)

    def loss(self, similarities: Tensor, order: Tensor) -> Tensor:
        """[F, B, N, P], [B, N, P] → [F, B, N]."""
        if self.sorter is None:
            ranks = soft_rank(standardised(similarities).flatten(0, -2), self.strength).view_as(
                similarities
            )
        else:
            ranks = expected_ranks(
                similarities, self.sorter, self.student_steepness, self.distribution
            )
        return 1 - correlation(ranks, order)


def permutations(
    similarities: Tensor, network: Network, steepness: float, distribution: Distribution
) -> Tensor:
    """Soft permutations over any leading axes: [..., P] → [..., P (item), P (position)]."""
    p = similarities.shape[-1]
    return soft_permutation(similarities.reshape(-1, p), network, steepness, distribution).view(
        *similarities.shape, p
    )


def make_objective(settings: LossSettings) -> Objective:
    """The objective that the settings name."""
    s = settings
    if s.objective == "spearman":
        return Spearman(
            None if s.sorter == "torchsort" else s.sorter,
            s.distribution,
            s.student_steepness,
            s.strength,
        )
    assert s.sorter != "torchsort", "ruled out by the settings"
    kind = PublishedObjective if s.objective == "published" else TeacherStudent
    return kind(s.sorter, s.distribution, s.student_steepness, s.teacher_steepness, s.epsilon)


def sorting_loss(
    student: Tensor,
    teacher: Tensor,
    references: Tensor,
    weights: Tensor,
    objective: Objective,
    detach_teacher: bool,
) -> Tensor:
    """The loss of a batch (3DPoV): a scalar.

    student:    [B, F, N, E]  unit embeddings of the tracks in the F compared frames
    teacher:    [B, N, E]     unit embeddings of the tracks in the anchor frame, by the teacher
    references: [B, R, P, E]  unit embeddings of the reference crops' patches
    weights:    [B, F, N]     1 where a track counts, 0 where not

    For every clip, frame and reference the mean over the tracks that count, sum(w loss) / (sum(w) + 1e-6); then the mean over
    references, frames and clips. A clip without any visible track adds 0 and still counts as a clip.
    """
    count = references.shape[1]
    share = (weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)).transpose(0, 1)
    total = student.new_zeros(())
    for r in range(count):
        patches = references[:, r].transpose(1, 2)
        order = objective.teacher_order(teacher @ (patches.detach() if detach_teacher else patches))
        similarities = student.transpose(0, 1) @ patches  # [F, B, N, P]
        total = total + (objective.loss(similarities, order) * share).sum(dim=-1).mean()
    return total / count


@torch.no_grad()
def diagnostics(embeddings: Embeddings, settings: LossSettings) -> dict[str, float]:
    """What to watch beside the loss, the same in every mode, for the last frame and first reference.

    spearman:                  correlation of the student's order with the teacher's; a falling loss alone proves nothing
    student/teacher_spread:    standard deviation of similarities along a row
    student/teacher_entropy:   of the soft permutations' rows at the settings' steepness (at most ln P)
    excess:                    the published loss minus ln P, its value where all positions are equally likely
    visible:                   the part of all tracks, in all compared frames, that counts
    """
    patches, weights = embeddings.references[:, 0].transpose(1, 2), embeddings.weights
    a, q, share = (
        embeddings.student[:, -1] @ patches,
        embeddings.teacher @ patches,
        weights[:, -1] / weights[:, -1].sum().clamp_min(1),
    )
    network: Network = "bitonic" if settings.sorter == "torchsort" else settings.sorter
    a_order = permutations(a, network, settings.student_steepness, settings.distribution)
    q_order = permutations(q, network, settings.teacher_steepness, settings.distribution)

    def mean(values: Tensor) -> float:
        return float((values * share).sum())

    def entropy(order: Tensor) -> Tensor:
        return torch.special.entr(order).sum(dim=-1).mean(dim=-1)

    published = -(a_order * (q_order + settings.epsilon).log()).sum(dim=-1).mean(dim=-1)
    return {
        "spearman": mean(spearman(a, q)),
        "student_spread": mean(a.std(dim=-1, correction=0)),
        "teacher_spread": mean(q.std(dim=-1, correction=0)),
        "student_entropy": mean(entropy(a_order)),
        "teacher_entropy": mean(entropy(q_order)),
        "excess": mean(published - log(a.shape[-1])),
        "visible": float(weights.mean()),
    }
