"""Losses on tracks equal their formulas, ignore masked tracks, and fall when tracks match."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from torch.nn.functional import normalize

from manifests.settings import check_settings
from shards.errors import SettingsError
from tests.helpers import plain_losses
from tests.trainer.test_distributed import torchrun
from tests.trainer.test_train import assert_same, last_state
from trainer.config import TrainSettings
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
from trainer.losses.weighted_sum import Losses, make_losses
from trainer.train import train

README = Path(__file__).parents[3] / "configs" / "train" / "README.md"
CLIPS, FRAMES, TRACKS, WIDTH, REFERENCES, PATCHES = 3, 2, 9, 6, 2, 16
EVERY = {
    "info_nce": {},
    "smooth_ap": {},
    "clusters": {"prototypes": 5},
    "track_mean": {},
    "view_agreement": {},
}


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


def scores_of(points: int, prototypes: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    a, b = (
        normalize(torch.randn(n, WIDTH, generator=generator, dtype=torch.float64), dim=-1)
        for n in (points, prototypes)
    )
    return a @ b.T


def test_sinkhorn_gives_points_mass_one_and_prototypes_equal_mass() -> None:
    counted = torch.arange(60) % 3 > 0
    mass = sinkhorn(scores_of(60, 8), counted, 0.06, 2000)
    torch.testing.assert_close(mass.sum(dim=1), counted.double())
    torch.testing.assert_close(
        mass.sum(dim=0), torch.full((8,), 40 / 8, dtype=torch.float64), rtol=1e-4, atol=0
    )
    few = sinkhorn(scores_of(60, 8), counted, 0.06, 3)
    torch.testing.assert_close(few.sum(dim=1), counted.double())
    assert (few.sum(dim=0) - 5).abs().max() < 2


def test_sinkhorn_stays_finite_at_its_smallest_epsilon() -> None:
    mass = sinkhorn(
        torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, -1.0]]),
        torch.tensor([True, True, False]),
        0.025,
        3,
    )
    torch.testing.assert_close(mass.sum(dim=1), torch.tensor([1.0, 1.0, 0.0]))


def sinkhorn_of_rank(rank: int, meet: Path, part: slice) -> Tensor:
    """Run Sinkhorn on one of two processes, with its part of 40 points."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meet}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        return sinkhorn(scores_of(40, 8)[part], (torch.arange(40) % 4 > 0)[part], 0.06, 3)
    finally:
        dist.destroy_process_group()


def sinkhorn_of_second_rank(meet: Path, path: Path) -> None:
    torch.save(sinkhorn_of_rank(1, meet, slice(17, None)), path)


@pytest.mark.slow
def test_sinkhorn_of_two_processes_equals_one(tmp_path: Path) -> None:
    second = multiprocessing.get_context("spawn").Process(
        target=sinkhorn_of_second_rank, args=(tmp_path / "meet", tmp_path / "rest.pt")
    )
    second.start()
    first = sinkhorn_of_rank(0, tmp_path / "meet", slice(17))
    second.join(120)
    together = torch.cat([first, torch.load(tmp_path / "rest.pt")])
    torch.testing.assert_close(
        together, sinkhorn(scores_of(40, 8), torch.arange(40) % 4 > 0, 0.06, 3), rtol=1e-12, atol=0
    )


def losses_of(**settings: Any) -> Losses:
    torch.manual_seed(2)
    return make_losses(LossSettings.model_validate(settings), WIDTH)


def test_the_total_is_the_weighted_sum() -> None:
    e = example_embeddings(torch.float32)
    weights = {
        "sorting": 0.5,
        "info_nce": 2.0,
        "smooth_ap": 3.0,
        "clusters": 0.25,
        "track_mean": 4.0,
        "view_agreement": 1.5,
    }
    losses = losses_of(
        sorting=0.5, **{name: {**part, "weight": weights[name]} for name, part in EVERY.items()}
    )
    total, parts = losses(replace(e, student=e.student.requires_grad_()))
    assert list(parts) == list(weights)
    torch.testing.assert_close(
        total, torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    )
    assert total.requires_grad
    assert not any(part.requires_grad for part in parts.values())
    for name, part in EVERY.items():
        one = losses_of(sorting=0, **{name: part})
        one.load_state_dict(losses.state_dict(), strict=False)
        alone, only = one(e)
        assert list(only) == [name]
        torch.testing.assert_close(alone, parts[name])


def test_by_default_the_total_is_the_sorting_loss() -> None:
    e, settings = example_embeddings(torch.float32), LossSettings()
    losses = losses_of()
    total, parts = losses(replace(e, teacher_frames=None))
    assert torch.equal(
        total,
        sorting_loss(
            e.student,
            e.teacher,
            e.references,
            e.weights,
            objective=make_objective(settings),
            detach_teacher=True,
        ),
    )
    assert list(parts) == ["sorting"]
    assert not losses.needs_teacher_frames
    assert not list(losses.parameters())


def test_losses_state_what_they_need_and_train_their_parameters() -> None:
    assert losses_of(track_mean={}).needs_teacher_frames
    assert losses_of(view_agreement={}).needs_teacher_frames
    assert not losses_of(track_mean={"weight": 0}).needs_teacher_frames
    losses = losses_of(sorting=0, clusters={"prototypes": 7})
    ((name, prototypes),) = losses.named_parameters()
    assert name in losses.state_dict()
    assert prototypes.shape == (7, WIDTH)
    losses(example_embeddings(torch.float32))[0].backward()
    assert prototypes.grad is not None
    assert prototypes.grad.abs().sum() > 0
    assert not list(losses_of(clusters={"weight": 0}).parameters())
    with pytest.raises(ValueError, match="needs the teacher's embeddings in the compared frames"):
        losses_of(track_mean={})(replace(example_embeddings(torch.float32), teacher_frames=None))


def test_losses_are_computed_in_float32_under_autocast() -> None:
    e, losses = example_embeddings(torch.float32), losses_of(**EVERY)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = losses(e)
    assert torch.equal(total, losses(e)[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"sorting": 0},
            "nothing would be trained, since every loss has weight 0: set 'loss.sorting' above 0",
        ),
        ({"sorting": 0, "clusters": {"weight": 0}}, "every loss has weight 0"),
        ({"smooth_ap": {"near": 0.2}}, "'near' should be no larger than 'far'"),
        (
            {"info_nce": {"temperature": 0}},
            "'info_nce.temperature': input should be greater than 0",
        ),
        (
            {"clusters": {"epsilon": 0.001}},
            "'clusters.epsilon': input should be greater than or equal to 0.025",
        ),
        ({"info_nse": {}}, "unknown key 'info_nse' .did you mean 'info_nce'"),
        ({"track_mean": {"wieght": 2}}, "unknown key 'track_mean.wieght' .did you mean 'weight'"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        check_settings(LossSettings, values, "train.yaml")
    assert str(caught.value).count("; ") == 0
    assert "\n" not in str(caught.value)


MIX: dict[str, Any] = {"sorting": 0.5, **EVERY}


@pytest.mark.slow
def test_a_resumed_run_continues_its_prototypes(
    settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    whole = settings(loss=MIX, optim={"lr": 1e-3}, run={"steps": 4, "out": tmp_path / "whole"})
    parts = [
        settings(loss=MIX, optim={"lr": 1e-3, "period": 4}, run={"steps": steps})
        for steps in (2, 4)
    ]
    train(whole)
    states = []
    for part in parts:
        train(part)
        states.append(last_state(part))
    half, end = (state["losses"]["trained.clusters.prototypes"] for state in states)
    assert half.shape == (5, end.shape[1])
    assert (end - half).abs().max() > 1e-4
    assert_same(states[1]["losses"], last_state(whole)["losses"])
    assert_same(states[1]["student"], last_state(whole)["student"])


@pytest.mark.slow
def test_two_ranks_train_the_same_prototypes_and_fill_one_queue(
    settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    queue = {"kind": "queue", "count": 1, "queue": 50, "patches": 6, "stored": 3}
    s = settings(loss=MIX, references=queue, run={"steps": 3})
    config.write_text(yaml.safe_dump(s.model_dump(mode="json")))
    run = torchrun(config)
    assert run.returncode == 0, run.stderr
    (student, _, losses), theirs = (
        torch.load(tmp_path / "run" / f"rank{rank}.pt", weights_only=True)["weights"]
        for rank in (0, 1)
    )
    lengths = {name: len(values) for name, values in losses.items()}
    assert lengths == {
        "queue.vectors": 50,
        "trained.clusters.prototypes": 5,
        "trained.view_agreement.head.weight": 1,
        "trained.view_agreement.head.bias": 1,
    }
    assert_same([student, losses], [theirs[0], theirs[2]])
    # Each step stores 3 patches of each of the 4 clips of both ranks.
    filled = losses["queue.vectors"].norm(dim=1) > 0.5
    assert filled.tolist() == [True] * 36 + [False] * 14


def test_the_example_in_the_readme_loads() -> None:
    (example,) = re.findall(r"```yaml\n(loss:.*?)```", README.read_text(), re.DOTALL)
    settings = check_settings(LossSettings, yaml.safe_load(example)["loss"], "README.md")
    assert set(settings.weights) == {"sorting", "info_nce", "clusters"}
    assert make_losses(settings, WIDTH)(example_embeddings(torch.float32))[0].isfinite()
