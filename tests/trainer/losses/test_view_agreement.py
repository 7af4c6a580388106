"""The agreement of all views of a point, and of its keypoint scores, equals its formula."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.killed_run import train_killed_once
from tests.trainer.losses.test_losses import example_embeddings, make_view_agreement
from tests.trainer.test_train import assert_same, last_state
from trainer.config import TrainSettings
from trainer.losses.embeddings import Embeddings
from trainer.losses.settings import ViewAgreementSettings
from trainer.losses.view_agreement import ViewAgreement
from trainer.train import train

Make = Callable[..., TrainSettings]


def plain_loss(loss: ViewAgreement, e: Embeddings) -> Tensor:
    """The formula, track by track, with every sum over what counts written out."""
    weight, bias = loss.head.weight[0], loss.head.bias[0]
    assert e.teacher_frames is not None

    def score(vector: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-(vector @ weight + bias)))

    frames: list[Tensor] = []
    clips, compared, tracks = e.weights.shape
    for b in range(clips):
        means, targets = [], []
        for n in range(tracks):
            shown = [f for f in range(compared) if e.weights[b, f, n] > 0]
            views = [score(e.teacher[b, n]), *(score(e.student[b, f, n]) for f in shown)]
            means.append(torch.stack(views).mean())
            vectors = [e.teacher[b, n], *(e.teacher_frames[b, f, n] for f in shown)]
            target = torch.stack(vectors).mean(dim=0)
            targets.append(target / target.norm())
        for f in range(compared):
            shown = [n for n in range(tracks) if e.weights[b, f, n] > 0]
            losses = []
            for n in shown:
                a = e.anchor_positions[b]
                near = [m for m in shown if math.dist(a[m].tolist(), a[n].tolist()) <= 0.4]
                s = torch.stack([score(e.student[b, f, m]) for m in near])
                mean = torch.stack([means[m] for m in near])
                disagreement = 1 - s @ mean / s.norm() / mean.norm()
                flatness = 1 - (s.max() - s.mean())
                agreement = 1 - e.student[b, f, n] @ targets[n]
                losses.append(agreement + 0.7 * (disagreement + flatness))
            total = torch.stack(losses).sum() if losses else e.weights.new_zeros(())
            frames.append(total / (len(losses) + 1e-6))
    return torch.stack(frames).mean()


def test_the_loss_and_its_gradients_equal_their_formula() -> None:
    loss, e = make_view_agreement(), example_embeddings()
    e = replace(e, student=e.student.clone().requires_grad_())
    inputs = [e.student, loss.head.weight, loss.head.bias]
    ours, plain = loss(e), plain_loss(loss, e)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-9)
    for mine, expected in zip(
        *(torch.autograd.grad(each, inputs) for each in (ours, plain)), strict=True
    ):
        assert expected.abs().max() > 1e-4
        torch.testing.assert_close(mine, expected, rtol=1e-7, atol=1e-12)


def test_one_repeated_peak_costs_least() -> None:
    """Five tracks in a row: a peak that stays, one that jumps, and no peak at all."""
    e = example_embeddings(clips=1, tracks=5, width=2)
    anchors = torch.zeros(1, 5, 2, dtype=torch.float64)
    anchors[..., 0] = torch.arange(5) / 10
    loss = ViewAgreement(ViewAgreementSettings(near=0.5), 2).double()
    with torch.no_grad():
        loss.head.weight.copy_(torch.tensor([[20.0, 0.0]]))
        loss.head.bias.zero_()

    def value(peaks: tuple[int | None, int | None, int | None]) -> float:
        """Return the keypoint terms for peaks in the anchor frame and both compared frames."""
        vectors = torch.tensor([-1.0, 0.0], dtype=torch.float64).repeat(3, 5, 1)
        for view, peak in enumerate(peaks):
            if peak is not None:
                vectors[view, peak] *= -1
        same = replace(
            e,
            student=vectors[None, 1:],
            teacher=vectors[None, 0],
            teacher_frames=vectors[None, 1:],
            anchor_positions=anchors,
            weights=torch.ones(1, 2, 5, dtype=torch.float64),
        )
        return float(loss(same).detach())

    # The mean of 5 scores with one peak is 1/5; embeddings agree wherever peaks do.
    assert value((1, 1, 1)) == pytest.approx(1 / 5, abs=1e-5)
    assert value((None, None, None)) == pytest.approx(1, abs=1e-5)
    assert value((1, 1, 2)) > value((1, 1, 1)) + 0.2


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_keypoint_head(settings: Make, tmp_path: Path) -> None:
    def run(name: str) -> TrainSettings:
        changes = {"steps": 3, "checkpoint_every": 1, "out": tmp_path / name}
        loss = {"sorting": 0, "view_agreement": {}}
        return settings(loss=loss, optim={"lr": 1e-2}, run=changes)

    train(run("unbroken"))
    train_killed_once(run("broken"), 2)
    a, b = (last_state(run(name)) for name in ("unbroken", "broken"))
    for part in ("student", "teacher", "losses", "optimizer"):
        assert_same(a[part], b[part], part)
    assert "trained.view_agreement.head.weight" in b["losses"]
