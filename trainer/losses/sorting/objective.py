"""Sorting objectives: compare the student's order of a reference's patches with the teacher's.

Similarities are cosines of a track's embedding with the P patches of a reference crop. The
teacher's similarities are computed once per clip and reference, and compared with the student's in
every frame. Three objectives share one interface, `Objective`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor

from trainer.losses.embeddings import Embeddings
from trainer.losses.settings import LossSettings
from trainer.losses.sorting.cross_entropy import sorting_cross_entropy
from trainer.losses.sorting.network import Distribution, Network, expected_ranks, soft_permutation
from trainer.losses.sorting.soft_rank import (
    correlation,
    hard_rank,
    spearman,
    spearman_loss,
)


class Objective(Protocol):
    """A loss per track."""

    def teacher_order(self, similarities: Tensor) -> Tensor:
        """Return the order of the teacher's similarities [B, N, P], in the form `loss` takes."""

    def loss(self, similarities: Tensor, order: Tensor) -> Tensor:
        """Return the loss of every track in every frame, [F, B, N].

        similarities: [F, B, N, P], the student's; order: from `teacher_order`.
        """


@dataclass(frozen=True)
class PublishedObjective:
    """3DPoV as published: mean over items of -sum over positions of A log(Q + epsilon).

    A is the student's soft permutation, Q the teacher's. The loss is linear in A: for a fixed Q its
    minimum puts all of A's mass on Q's largest entries; it is not at A = Q.
    """

    network: Network
    distribution: Distribution
    student_steepness: float
    teacher_steepness: float
    epsilon: float

    def teacher_order(self, similarities: Tensor) -> Tensor:
        """Return the similarities unchanged, [B, N, P]: `loss` computes Q and stores none of it."""
        return similarities

    def loss(self, similarities: Tensor, order: Tensor) -> Tensor:
        """Return the loss per frame and track: [F, B, N, P], [B, N, P] → [F, B, N]."""
        return sorting_cross_entropy(
            similarities,
            order,
            network=self.network,
            x_steepness=self.student_steepness,
            y_steepness=self.teacher_steepness,
            distribution=self.distribution,
            epsilon=self.epsilon,
        )


@dataclass(frozen=True)
class TeacherStudentObjective:
    """Cross-entropy in NeCo's direction, with the teacher's soft permutation as the target.

    Mean over items of -sum over positions of Q log(A + epsilon). A is the student's soft
    permutation; Q, the teacher's, is a constant.
    """

    network: Network
    distribution: Distribution
    student_steepness: float
    teacher_steepness: float
    epsilon: float

    def teacher_order(self, similarities: Tensor) -> Tensor:
        """Return the similarities [B, N, P], detached."""
        return similarities.detach()

    def loss(self, similarities: Tensor, order: Tensor) -> Tensor:
        """Return the loss per frame and track: [F, B, N, P], [B, N, P] → [F, B, N]."""
        return sorting_cross_entropy(
            order,
            similarities,
            network=self.network,
            x_steepness=self.teacher_steepness,
            y_steepness=self.student_steepness,
            distribution=self.distribution,
            epsilon=self.epsilon,
        )


@dataclass(frozen=True)
class SpearmanObjective:
    """1 - correlation of the student's soft ranks with the teacher's ranks.

    In [0, 2]; 0 only where the orders agree. Soft ranks are torchsort's of standardised rows
    (`sorter` None), or each item's expected position in a sorting network.
    """

    sorter: Network | None
    distribution: Distribution
    student_steepness: float
    strength: float

    def teacher_order(self, similarities: Tensor) -> Tensor:
        """Return hard ranks: [B, N, P], without gradient."""
        return hard_rank(similarities)

    def loss(self, similarities: Tensor, order: Tensor) -> Tensor:
        """Return the loss per frame and track: [F, B, N, P], [B, N, P] → [F, B, N]."""
        if self.sorter is None:
            return spearman_loss(similarities, order, self.strength)
        ranks = expected_ranks(similarities, self.sorter, self.student_steepness, self.distribution)
        return 1 - correlation(ranks, order)


def permutations(
    similarities: Tensor, network: Network, steepness: float, distribution: Distribution
) -> Tensor:
    """Sort softly over any leading axes: [..., P] → [..., P (item), P (position)]."""
    rows = similarities.reshape(-1, similarities.shape[-1])
    sorted_softly = soft_permutation(rows, network, steepness, distribution)
    return sorted_softly.view(*similarities.shape, similarities.shape[-1])


def make_objective(settings: LossSettings) -> Objective:
    """Make the objective that the settings name."""
    s = settings
    if s.objective == "spearman":
        return SpearmanObjective(
            sorter=None if s.sorter == "torchsort" else s.sorter,
            distribution=s.distribution,
            student_steepness=s.student_steepness,
            strength=s.strength,
        )
    assert s.sorter != "torchsort", "the settings refuse torchsort with this objective"
    kind = PublishedObjective if s.objective == "published" else TeacherStudentObjective
    return kind(
        network=s.sorter,
        distribution=s.distribution,
        student_steepness=s.student_steepness,
        teacher_steepness=s.teacher_steepness,
        epsilon=s.epsilon,
    )


def sorting_loss(
    student: Tensor,
    teacher: Tensor,
    references: Tensor,
    weights: Tensor,
    *,
    objective: Objective,
    detach_teacher: bool,
) -> Tensor:
    """Return the sorting loss of a batch (3DPoV): a scalar.

    student:    [B, F, N, E]  unit embeddings of the tracks in the F compared frames
    teacher:    [B, N, E]     unit embeddings of the tracks in the anchor frame, by the teacher
    references: [B, R, P, E]  unit embeddings of the reference crops' patches, by the student
    weights:    [B, F, N]     1 where a track counts, else 0

    For every clip, frame and reference the mean over the tracks that count,
    sum(w loss) / (sum(w) + 1e-6); then the mean over references, frames and clips. A clip without
    a visible track adds 0 and still counts as a clip. Without `detach_teacher`, gradients also
    reach the references through the teacher's similarities.
    """
    count = references.shape[1]
    # 1e-6 keeps a clip without counted tracks at 0 instead of NaN
    normalised = (weights / (weights.sum(dim=-1, keepdim=True) + 1e-6)).transpose(0, 1)
    total = student.new_zeros(())
    # one reference at a time: similarities of all at once would take R times the memory
    for r in range(count):
        patches = references[:, r].transpose(1, 2)
        order = objective.teacher_order(teacher @ (patches.detach() if detach_teacher else patches))
        similarities = student.transpose(0, 1) @ patches  # [F, B, N, P]
        total = total + (objective.loss(similarities, order) * normalised).sum(dim=-1).mean()
    return total / count


@torch.no_grad()
def diagnostics(embeddings: Embeddings, settings: LossSettings) -> dict[str, float]:
    """Return metrics to log beside the loss, for the last frame and the first reference.

    They are comparable between objectives. Values are means over the tracks that count.

    spearman:                 rank correlation of the student's similarities with the teacher's;
                              a falling loss alone proves nothing
    student/teacher_spread:   standard deviation of the P similarities of a track
    student/teacher_entropy:  of the soft permutations' rows at the settings' steepness; at most
                              ln P
    excess:                   the published loss minus ln P, its value where all positions are
                              equally likely: below 0 is better than that
    visible:                  fraction of tracks that count, over all compared frames
    """
    patches, weights = embeddings.references[:, 0].transpose(1, 2), embeddings.weights
    student = embeddings.student[:, -1] @ patches  # similarities [B, N, P]
    teacher = embeddings.teacher @ patches
    normalised = weights[:, -1] / weights[:, -1].sum().clamp_min(1)
    # torchsort makes no permutations: entropies and excess are then those of the bitonic network
    network: Network = "bitonic" if settings.sorter == "torchsort" else settings.sorter
    student_order = permutations(
        student, network, settings.student_steepness, settings.distribution
    )
    teacher_order = permutations(
        teacher, network, settings.teacher_steepness, settings.distribution
    )

    def mean(values: Tensor) -> Tensor:
        return (values * normalised).sum()

    def entropy(order: Tensor) -> Tensor:
        return torch.special.entr(order).sum(dim=-1).mean(dim=-1)

    log_teacher = (teacher_order + settings.epsilon).log()
    published = -(student_order * log_teacher).sum(dim=-1).mean(dim=-1)
    means = {
        "spearman": mean(spearman(student, teacher)),
        "student_spread": mean(student.std(dim=-1, correction=0)),
        "teacher_spread": mean(teacher.std(dim=-1, correction=0)),
        "student_entropy": mean(entropy(student_order)),
        "teacher_entropy": mean(entropy(teacher_order)),
        "excess": mean(published - log(student.shape[-1])),
        "visible": (weights > 0).float().mean(),
    }
    # One read, because the host waits for a GPU at each.
    return dict(zip(means, torch.stack([*means.values()]).tolist(), strict=True))
