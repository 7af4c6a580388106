"""The sorting loss equals a plain transcription of its formula; objectives and diagnostics."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from diffsort import DiffSortNet
from torch import Tensor, nn

from tests.helpers.plain_sorting_loss import plain_loss
from trainer.losses.embeddings import Embeddings
from trainer.losses.settings import LossSettings
from trainer.losses.sorting import objective as objectives
from trainer.losses.sorting.objective import (
    PublishedObjective,
    diagnostics,
    make_objective,
    sorting_loss,
)
from trainer.model.backbone import Tokens
from trainer.model.feature_sampling import References, choose_references
from trainer.model.step_indices import StepIndices, make_indices
from trainer.model.student_teacher import Embedder, Projection, make_teacher

CLIPS, FRAMES, POINTS, SIZE, PATCH = 3, 4, 10, 64, 8
PUBLISHED = LossSettings(objective="published", sorter="bitonic", detach_teacher=False)


class TinyBackbone(nn.Module):
    """Apply one trainable convolution over patches: [B, 3, S, S] → [B, S / 8, S / 8, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, PATCH, stride=PATCH)

    def tail(self, tokens: Tokens) -> Tensor:
        features: Tensor = self(tokens.values)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.patches(images).tanh().movedim(1, -1)


def tokens_of(frames: Tensor) -> Tokens:
    """Return frames [B, T, 3, S, S] as the tokens of a trunk without blocks."""
    return Tokens(frames.flatten(0, 1), (), (SIZE // PATCH, SIZE // PATCH))


def example_batch(
    dtype: torch.dtype,
) -> tuple[Embedder, Embedder, Tensor, Tensor, Tensor, References]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    student = Embedder(
        TinyBackbone(),  # type: ignore[arg-type]
        Projection(6, (16, 8)),
        align_corners=True,
    ).to(dtype)
    teacher = make_teacher(student)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator, dtype=dtype), alpha=0.05)
    frames = torch.randn(CLIPS, FRAMES, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    points = (
        torch.rand(CLIPS, FRAMES, POINTS, 2, generator=generator, dtype=dtype) * (SIZE + 10) - 5
    )
    visible = (torch.rand(CLIPS, FRAMES, POINTS, generator=generator) < 0.7).to(dtype)
    visible[:, 0] = 1
    visible[2, 1:] = 0  # a clip without a visible track
    references = choose_references(
        CLIPS, FRAMES, 5, grid=SIZE // PATCH, side=4, generator=generator
    )
    return student, teacher, frames, points, visible, references


def indices_of(compared: Sequence[int], references: References) -> StepIndices:
    return make_indices(CLIPS, FRAMES, compared=compared, references=references, side=4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("compared", [(1, 2, 3), (3,)])
def test_equals_the_plain_transcription(
    dtype: torch.dtype, tolerance: float, compared: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    # otherwise embeddings become float32
    monkeypatch.setattr(Tensor, "float", lambda self: self)
    student, teacher, frames, points, visible, references = example_batch(dtype)
    plain_student = copy.deepcopy(student)

    tracks, crops = student(tokens_of(frames), points, SIZE, indices_of(compared, references))
    weights = visible[:, :1] * visible[:, list(compared)]
    loss = sorting_loss(
        tracks,
        teacher.tracks(tokens_of(frames[:, :1]), points[:, 0], SIZE),
        crops,
        weights,
        objective=make_objective(PUBLISHED),
        detach_teacher=False,
    )
    loss.backward()  # type: ignore[no-untyped-call]

    corners = torch.stack([references.top, references.left], dim=-1)
    plain = plain_loss(
        student=plain_student.backbone,
        teacher=teacher.backbone,
        student_head=plain_student.head,
        teacher_head=teacher.head,
        frames=frames,
        tracks=points,
        visible=visible,
        compared=compared,
        reference_frames=references.frame,
        reference_corners=corners,
        side=4,
    )
    plain.backward()  # type: ignore[no-untyped-call]

    assert abs(loss.item() - plain.item()) < tolerance
    for (name, ours), theirs in zip(
        student.named_parameters(), plain_student.parameters(), strict=True
    ):
        assert ours.grad is not None
        assert theirs.grad is not None
        difference = (ours.grad - theirs.grad).abs().max().item()
        assert difference < tolerance * max(1.0, theirs.grad.abs().max().item()), name


def test_teacher_order_is_computed_once_per_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, frames, points, visible, references = example_batch(torch.float32)
    tracks, crops = student(tokens_of(frames), points, SIZE, indices_of((1, 2, 3), references))
    calls: list[Tensor] = []
    original = PublishedObjective.teacher_order

    def counted_order(self: PublishedObjective, similarities: Tensor) -> Tensor:
        calls.append(similarities)
        return original(self, similarities)

    monkeypatch.setattr(PublishedObjective, "teacher_order", counted_order)
    sorting_loss(
        tracks,
        teacher.tracks(tokens_of(frames[:, :1]), points[:, 0], SIZE),
        crops,
        visible[:, 1:],
        objective=make_objective(PUBLISHED),
        detach_teacher=False,
    )
    assert len(calls) == 5


ALL = [
    LossSettings(objective="published", sorter="bitonic"),
    LossSettings(objective="published", sorter="odd_even"),
    LossSettings(objective="teacher_student", sorter="bitonic"),
    LossSettings(objective="spearman", sorter="torchsort"),
    LossSettings(objective="spearman", sorter="bitonic"),
]


@pytest.mark.parametrize("settings", ALL, ids=lambda s: f"{s.objective}-{s.sorter}")
def test_every_objective_trains_the_student_alone(settings: LossSettings) -> None:
    student, teacher, frames, points, visible, references = example_batch(torch.float32)
    tracks, crops = student(tokens_of(frames), points, SIZE, indices_of((1, 2, 3), references))
    loss = sorting_loss(
        tracks,
        teacher.tracks(tokens_of(frames[:, :1]), points[:, 0], SIZE),
        crops,
        visible[:, 1:],
        objective=make_objective(settings),
        detach_teacher=True,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(
        weight.grad is not None and torch.isfinite(weight.grad).all()
        for weight in student.parameters()
    )
    assert all(weight.grad is None for weight in teacher.parameters())


@pytest.mark.parametrize(
    "settings",
    [s for s in ALL if s.objective != "published"],
    ids=lambda s: f"{s.objective}-{s.sorter}",
)
def test_agreeing_orders_have_the_lowest_loss(settings: LossSettings) -> None:
    objective = make_objective(
        settings.model_copy(update={"student_steepness": 100.0, "teacher_steepness": 100.0})
    )
    x = torch.randn(1, 40, 49, generator=torch.Generator().manual_seed(0))
    order = objective.teacher_order(x)
    same, other = objective.loss(x, order).mean(), objective.loss(x.flip(1), order).mean()
    assert same < other
    if settings.objective == "spearman":
        assert same < 0.01
        assert abs(other - 1) < 0.1


def test_spearman_of_opposite_orders_is_two() -> None:
    objective = make_objective(LossSettings(strength=1e-4))
    x = torch.randn(1, 5, 49, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        objective.loss(-x, objective.teacher_order(x)), torch.full((1, 5), 2.0), rtol=0, atol=1e-3
    )


def test_spearman_does_not_depend_on_the_scale_of_similarities() -> None:
    objective = make_objective(LossSettings())
    x, y = torch.randn(2, 1, 5, 49, generator=torch.Generator().manual_seed(0))
    order = objective.teacher_order(y)
    torch.testing.assert_close(
        objective.loss(x, order), objective.loss(0.01 * x + 0.5, order), rtol=0, atol=1e-3
    )


def test_detach_teacher_changes_the_gradient() -> None:
    student, teacher, frames, points, visible, references = example_batch(torch.float32)
    gradients = []
    for detach in (False, True):
        student.zero_grad()
        tracks, crops = student(tokens_of(frames), points, SIZE, indices_of((3,), references))
        anchor = teacher.tracks(tokens_of(frames[:, :1]), points[:, 0], SIZE)
        sorting_loss(
            tracks,
            anchor,
            crops,
            visible[:, 3:],
            objective=make_objective(PUBLISHED),
            detach_teacher=detach,
        ).backward()  # type: ignore[no-untyped-call]
        gradients.append(
            student.head[-1].weight.grad.clone()  # type: ignore[operator, union-attr]
        )
    assert not torch.allclose(gradients[0], gradients[1])


def test_nothing_visible_is_zero_and_finite() -> None:
    student, teacher, frames, points, visible, references = example_batch(torch.float32)
    tracks, crops = student(tokens_of(frames), points, SIZE, indices_of((3,), references))
    loss = sorting_loss(
        tracks,
        teacher.tracks(tokens_of(frames[:, :1]), points[:, 0], SIZE),
        crops,
        0 * visible[:, 3:],
        objective=make_objective(PUBLISHED),
        detach_teacher=False,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0


@pytest.mark.parametrize("settings", ALL, ids=lambda s: f"{s.objective}-{s.sorter}")
def test_diagnostics_mean_the_same_with_every_objective(settings: LossSettings) -> None:
    student, teacher, frames, points, visible, references = example_batch(torch.float32)
    tracks, crops = student(tokens_of(frames), points, SIZE, indices_of((3,), references))
    positions = points / SIZE
    embeddings = Embeddings(
        student=tracks,
        teacher=teacher.tracks(tokens_of(frames[:, :1]), points[:, 0], SIZE),
        references=crops,
        weights=visible[:, 3:],
        positions=positions[:, 3:],
        anchor_positions=positions[:, 0],
    )
    values = diagnostics(embeddings, settings)
    assert set(values) == {
        "spearman",
        "student_spread",
        "teacher_spread",
        "student_entropy",
        "teacher_entropy",
        "excess",
        "visible",
    }
    # the others depend on the sorter's steepness
    for name in ("spearman", "student_spread", "teacher_spread", "visible"):
        assert values[name] == diagnostics(embeddings, PUBLISHED)[name], name
    assert values["visible"] == pytest.approx(visible[:, 3].mean().item())
    assert -1 <= values["spearman"] <= 1
    assert 0 < values["student_entropy"] < math.log(16)
    assert values["teacher_entropy"] <= math.log(16) + 1e-5


UNUSUAL = LossSettings(
    objective="published",
    sorter="odd_even",
    distribution="logistic",
    student_steepness=5.0,
    teacher_steepness=8.0,
    epsilon=0.01,
)
"""Differs from every default."""


def unusual_permutation(similarities: Tensor, steepness: float) -> Tensor:
    """Sort softly as `UNUSUAL` says, with diffsort: [..., P] → [..., P (item), P (position)]."""
    count = similarities.shape[-1]
    network = DiffSortNet("odd_even", count, steepness=steepness, distribution="logistic")
    permutation: Tensor = network(similarities.reshape(-1, count))[1]
    return permutation.view(*similarities.shape, count)


@pytest.mark.parametrize("kind", ["published", "teacher_student", "spearman"])
def test_every_setting_of_a_sorting_network_reaches_the_loss(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 1, 3, 6, generator=generator)
    teacher = torch.randn(1, 3, 6, generator=generator)
    a, q = unusual_permutation(student, 5), unusual_permutation(teacher, 8)
    positions = torch.arange(6.0)
    expected = {
        "published": -(a * (q + 0.01).log()).sum(-1).mean(-1),
        "teacher_student": -(q * (a + 0.01).log()).sum(-1).mean(-1),
        "spearman": torch.tensor(
            [
                [
                    [
                        1
                        - np.corrcoef(a[f, 0, n] @ positions, teacher[0, n].argsort().argsort())[
                            0, 1
                        ]
                    ]
                    for n in range(3)
                ]
                for f in range(2)
            ]
        )
        .view(2, 1, 3)
        .float(),
    }
    objective = make_objective(UNUSUAL.model_copy(update={"objective": kind}))
    loss = objective.loss(student, objective.teacher_order(teacher))
    torch.testing.assert_close(loss, expected[kind], rtol=1e-5, atol=1e-5)


def test_every_setting_of_a_sorting_network_reaches_the_diagnostics() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.rand(2, 6, generator=generator)
    embeddings = Embeddings(
        student=student.view(1, 1, 1, 6),
        teacher=teacher.view(1, 1, 6),
        references=torch.eye(6).view(1, 1, 6, 6),  # similarities are the embeddings
        weights=torch.ones(1, 1, 1),
        positions=torch.zeros(1, 1, 1, 2),
        anchor_positions=torch.zeros(1, 1, 2),
    )
    a, q = unusual_permutation(student, 5), unusual_permutation(teacher, 8)
    values = diagnostics(embeddings, UNUSUAL)
    found = [values[name] for name in ("student_entropy", "teacher_entropy", "excess")]
    assert found == pytest.approx(
        [
            -(a * a.log()).sum(-1).mean().item(),
            -(q * q.log()).sum(-1).mean().item(),
            -(a * (q + 0.01).log()).sum(-1).mean().item() - math.log(6),
        ],
        abs=1e-5,
    )


def test_entropy_of_equal_similarities_is_ln_p() -> None:
    zeros = torch.zeros(1, 2, 64)
    order = objectives.permutations(zeros, "bitonic", 20.0, "cauchy")
    torch.testing.assert_close(
        torch.special.entr(order).sum(-1), torch.full((1, 2, 64), math.log(64))
    )


@pytest.mark.parametrize(
    ("student", "spearman", "excess"),
    [
        # hard permutations: -log(1 + 1e-6) = 0 for items in the teacher's position,
        # -log(1e-6) = 13.8155 for others; ln 4 = 1.3863
        ((0.0, 0.2, 0.4, 0.6), 1.0, 0 - 1.3863),
        ((0.2, 0.0, 0.4, 0.6), 0.8, 2 / 4 * 13.8155 - 1.3863),
        ((0.6, 0.4, 0.2, 0.0), -1.0, 13.8155 - 1.3863),
    ],
)
def test_diagnostics_are_those_worked_out_by_hand(
    student: tuple[float, ...], spearman: float, excess: float
) -> None:
    """The excess is negative where orders agree, and positive where they do not."""
    other = torch.tensor([0.3, 0.1, 0.0, 0.2])
    similarities = torch.tensor(student)
    # tracks [seen, unseen]; frames [one that diagnostics do not cover, the last]
    frames = torch.stack([torch.stack([other, other]), torch.stack([similarities, other])])
    teacher = torch.tensor([[0.0, 0.1, 0.2, 0.3], [0.3, 0.0, 0.1, 0.2]])
    embeddings = Embeddings(
        student=frames[None],
        teacher=teacher[None],
        # patches are unit axes, so similarities are the coordinates; the second crop is not covered
        references=torch.stack([torch.eye(4), torch.eye(4).flip(0)])[None],
        weights=torch.tensor([[[1.0, 1.0], [1.0, 0.0]]]),
        positions=torch.zeros(1, 2, 2, 2),
        anchor_positions=torch.zeros(1, 2, 2),
    )
    settings = PUBLISHED.model_copy(
        update={"student_steepness": 1e4, "teacher_steepness": 1e4, "distribution": "logistic"}
    )
    assert diagnostics(embeddings, settings) == pytest.approx(
        {
            "spearman": spearman,
            "student_spread": math.sqrt(0.05),
            "teacher_spread": math.sqrt(0.05) / 2,
            "student_entropy": 0.0,
            "teacher_entropy": 0.0,
            "excess": excess,
            "visible": 0.75,
        },
        abs=1e-3,
    )
