"""Losses on tracks equal their formulas, ignore masked tracks, and fall when tracks match."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.helpers import plain_losses
from trainer.losses.clusters import Clusters, sinkhorn
from trainer.losses.embeddings import Embeddings, mean_over_tracks
from trainer.losses.info_nce import info_nce
from trainer.losses.settings import (
    ClusterSettings,
    InfoNCESettings,
    LossSettings,
    SmoothAPSettings,
    ViewAgreementSettings,
)
from trainer.losses.smooth_ap import smooth_ap
from trainer.losses.sorting.objective import make_objective, sorting_loss
from trainer.losses.track_mean import track_mean
from trainer.losses.view_agreement import ViewAgreement

CLIPS, FRAMES, TRACKS, WIDTH, REFERENCES, PATCHES = 3, 2, 9, 6, 2, 16


def example_embeddings(
    dtype: torch.dtype = torch.float64, clips: int = CLIPS, tracks: int = TRACKS, width: int = WIDTH
) -> Embeddings:
    """Make random embeddings; some tracks are masked, and some are near each other.

    Of several clips, the last one has no track that counts.
    """
    generator = torch.Generator().manual_seed(0)

    def units(*shape: int) -> Tensor:
        return normalize(
            torch.randn(*shape, width, generator=generator, dtype=torch.float64), dim=-1
        ).to(dtype)

    weights = (torch.rand(clips, FRAMES, tracks, generator=generator) < 0.7).to(dtype)
    weights[:, :, 4] = 0  # a track that counts in no frame
    if clips > 1:
        weights[-1] = 0
    anchors = torch.rand(clips, tracks, 2, generator=generator, dtype=torch.float64).to(dtype)
    anchors[:, 1] = anchors[:, 0] + 0.002
    anchors[:, 2] = anchors[:, 0] - 0.05
    anchors[:, 4] = anchors[:, 0] + 0.001
    positions = torch.rand(clips, FRAMES, tracks, 2, generator=generator, dtype=torch.float64).to(
        dtype
    )
    return Embeddings(
        student=units(clips, FRAMES, tracks),
        teacher=units(clips, tracks),
        references=units(clips, REFERENCES, PATCHES),
        weights=weights,
        positions=positions,
        anchor_positions=anchors,
        teacher_frames=units(clips, FRAMES, tracks),
    )


def make_clusters(
    soft: bool = False, prototypes: int = 5, width: int = WIDTH, dtype: torch.dtype = torch.float64
) -> Clusters:
    torch.manual_seed(1)
    return Clusters(ClusterSettings(prototypes=prototypes, soft=soft), width).to(dtype)


def make_view_agreement(dtype: torch.dtype = torch.float64) -> ViewAgreement:
    """Make a loss whose keypoint scores differ more than those of a new head."""
    torch.manual_seed(1)
    loss = ViewAgreement(ViewAgreementSettings(near=0.4, keypoints=0.7), WIDTH).to(dtype)
    torch.nn.init.normal_(loss.head.weight, std=2)
    return loss


def every_loss(dtype: torch.dtype = torch.float64) -> dict[str, Callable[[Embeddings], Tensor]]:
    return {
        "info_nce": partial(info_nce, settings=InfoNCESettings()),
        "info_nce of all clips": partial(info_nce, settings=InfoNCESettings(other_clips=True)),
        "smooth_ap": partial(smooth_ap, settings=SmoothAPSettings(temperature=0.1)),
        "smooth_ap beside an ideal match": partial(
            smooth_ap, settings=SmoothAPSettings(temperature=0.1, ideal=True)
        ),
        "clusters": make_clusters(dtype=dtype),
        "soft clusters": make_clusters(soft=True, dtype=dtype),
        "track_mean": track_mean,
        "view_agreement": make_view_agreement(dtype),
    }


EVERY_LOSS = pytest.mark.parametrize("name", every_loss())


def assert_value(ours: Tensor, plain: float) -> None:
    assert ours.item() == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("other_clips", [False, True])
@pytest.mark.parametrize("apart", [0.0, 0.1, 0.4])
def test_info_nce_equals_its_formula(apart: float, other_clips: bool) -> None:
    e = example_embeddings()
    plain = plain_losses.info_nce(
        e.student.numpy(),
        e.teacher.numpy(),
        e.weights.numpy(),
        e.anchor_positions.numpy(),
        temperature=0.07,
        apart=apart,
        other_clips=other_clips,
    )
    assert_value(info_nce(e, InfoNCESettings(apart=apart, other_clips=other_clips)), plain)


@pytest.mark.parametrize(("near", "far"), [(0.005, 0.1), (0.1, 0.1), (0.3, 0.5)])
@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("ideal", [False, True])
def test_smooth_ap_equals_its_formula(
    near: float, far: float, temperature: float, ideal: bool
) -> None:
    e = example_embeddings()
    plain = plain_losses.smooth_ap(
        e.student.numpy(),
        e.teacher.numpy(),
        e.weights.numpy(),
        e.anchor_positions.numpy(),
        temperature=temperature,
        near=near,
        far=far,
        ideal=ideal,
    )
    s = SmoothAPSettings(near=near, far=far, temperature=temperature, ideal=ideal)
    assert_value(smooth_ap(e, s), plain)


@pytest.mark.parametrize("soft", [False, True])
def test_clusters_equal_their_formula(soft: bool) -> None:
    e, clusters = example_embeddings(), make_clusters(soft)
    with torch.no_grad():
        clusters.prototypes.mul_(torch.arange(1, 6)[:, None])  # lengths have no effect
    plain = plain_losses.clusters(
        e.student.numpy(),
        e.teacher.numpy(),
        e.weights.numpy(),
        clusters.prototypes.detach().numpy(),
        temperature=0.1,
        epsilon=0.06,
        iterations=3,
        soft=soft,
    )
    assert_value(clusters(e), plain)


def test_track_mean_equals_its_formula() -> None:
    e = example_embeddings()
    assert e.teacher_frames is not None
    plain = plain_losses.track_mean(
        e.student.numpy(), e.teacher.numpy(), e.weights.numpy(), e.teacher_frames.numpy()
    )
    assert_value(track_mean(e), plain)


def test_all_losses_average_as_the_sorting_loss_does() -> None:
    e, objective = example_embeddings(torch.float32), make_objective(LossSettings())
    losses = torch.stack(
        [
            objective.loss(
                e.student[:, f] @ e.references[:, 0].mT,
                objective.teacher_order(e.teacher @ e.references[:, 0].mT),
            )
            for f in range(FRAMES)
        ],
        dim=1,
    )
    theirs = sorting_loss(
        e.student,
        e.teacher,
        e.references[:, :1],
        e.weights,
        objective=objective,
        detach_teacher=True,
    )
    torch.testing.assert_close(mean_over_tracks(losses, e.weights), theirs)


@EVERY_LOSS
def test_gradient_against_finite_differences(name: str) -> None:
    e, loss = example_embeddings(clips=2, tracks=6), every_loss()[name]

    def of_student(student: Tensor) -> Tensor:
        return loss(replace(e, student=normalize(student, dim=-1)))

    assert torch.autograd.gradcheck(of_student, e.student.clone().requires_grad_())


def test_gradient_of_prototypes_against_finite_differences() -> None:
    e, clusters = example_embeddings(clips=2, tracks=6), make_clusters()

    def of_prototypes(prototypes: Tensor) -> Tensor:
        return torch.func.functional_call(clusters, {"prototypes": prototypes}, (e,))  # type: ignore[no-any-return]

    assert torch.autograd.gradcheck(
        of_prototypes, clusters.prototypes.detach().clone().requires_grad_()
    )


@EVERY_LOSS
def test_the_teacher_gets_no_gradient(name: str) -> None:
    e = example_embeddings()
    assert e.teacher_frames is not None
    inputs = [values.requires_grad_() for values in (e.student, e.teacher, e.teacher_frames)]
    student, *teacher = torch.autograd.grad(every_loss()[name](e), inputs, allow_unused=True)
    assert student.abs().sum() > 0
    assert all(gradient is None for gradient in teacher)


@EVERY_LOSS
def test_masked_tracks_do_not_change_the_loss(name: str) -> None:
    e, loss = example_embeddings(), every_loss()[name]
    assert e.teacher_frames is not None
    hidden, nowhere = (e.weights == 0)[..., None], ~e.valid_tracks[..., None]
    noise = normalize(
        torch.randn(
            e.student.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        ),
        dim=-1,
    )
    changed = replace(
        e,
        student=torch.where(hidden, noise, e.student),
        teacher=torch.where(nowhere, noise[:, 0], e.teacher),
        teacher_frames=torch.where(hidden, noise, e.teacher_frames),
        anchor_positions=torch.where(nowhere, 0.5, e.anchor_positions),
    )
    torch.testing.assert_close(loss(changed), loss(e), rtol=0, atol=1e-14)
    moved = replace(e, student=torch.where(hidden, e.student, noise))
    assert abs(loss(moved) - loss(e)) > 1e-3


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_visible_is_zero_without_gradient(name: str, dtype: torch.dtype) -> None:
    e, loss = example_embeddings(dtype, clips=1), every_loss(dtype)[name]
    for weights, is_zero in ((0 * e.weights, True), (e.weights, False)):
        value = loss(replace(e, student=e.student.requires_grad_(), weights=weights))
        (gradient,) = torch.autograd.grad(value, e.student)
        assert value.dtype == dtype
        assert torch.isfinite(gradient).all()
        assert (value.item() == 0) == (gradient.abs().max().item() == 0) == is_zero


def retrieval_rate(e: Embeddings) -> float:
    """Return the fraction of tracks whose most similar anchor point is their own or one near it."""
    scores = (e.student @ e.teacher[:, None].mT).masked_fill(~e.valid_tracks[:, None, None], -1)
    apart = (
        e.anchor_distances[:, None]
        .expand_as(scores)
        .gather(-1, scores.argmax(dim=-1, keepdim=True))[..., 0]
    )
    return float(((apart < 0.1) * e.weights).sum() / e.weights.sum())


@pytest.mark.parametrize("name", ["info_nce", "info_nce of all clips", "smooth_ap", "track_mean"])
def test_minimising_the_loss_makes_tracks_retrieve_their_anchor_points(name: str) -> None:
    loss = every_loss()[name]
    e = example_embeddings(width=16)
    e = replace(e, teacher_frames=e.teacher[:, None].expand(-1, FRAMES, -1, -1))
    student = e.student.clone().requires_grad_()
    optimizer = torch.optim.Adam([student], lr=0.05)
    assert retrieval_rate(e) < 0.5
    values = []
    for _ in range(60):
        e = replace(e, student=normalize(student, dim=-1))
        values.append(loss(e))
        optimizer.zero_grad()
        values[-1].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert retrieval_rate(e) == 1
    assert values[1] < values[0]
    assert values[-1] < 0.2 * values[0]
    assert loss(replace(e, student=e.teacher[:, None].expand_as(student))) < 0.2 * values[0]


def test_minimising_the_loss_keeps_clusters_along_tracks() -> None:
    e, clusters = example_embeddings(), make_clusters()
    student = e.student.clone().requires_grad_()
    optimizer = torch.optim.Adam([student, *clusters.parameters()], lr=0.05)

    def agreement() -> float:
        prototypes = normalize(clusters.prototypes, dim=-1)
        assigned = sinkhorn(
            (e.teacher @ prototypes.T).flatten(0, 1), e.valid_tracks.flatten(), 0.06, 3
        ).argmax(dim=-1)
        followed = (normalize(student, dim=-1) @ prototypes.T).argmax(dim=-1) == assigned.view(
            CLIPS, 1, TRACKS
        )
        return float((followed * e.weights).sum() / e.weights.sum())

    assert agreement() < 0.5
    values = []
    for _ in range(100):
        values.append(clusters(replace(e, student=normalize(student, dim=-1))))
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert agreement() == 1
    assert values[1] < values[0]
    assert values[-1] < 0.2 * values[0]
