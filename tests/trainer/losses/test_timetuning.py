"""TimeTuning equals its formula, with its forwarder and with stored tracks in place of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.helpers import plain_losses
from tests.helpers.killed_run import train_killed_once
from tests.trainer.losses.test_losses import example_embeddings
from tests.trainer.model.test_step import a_step, all_compared
from tests.trainer.test_train import assert_same, last_state
from trainer.config import TrainSettings
from trainer.losses.embeddings import Embeddings, PatchMaps
from trainer.losses.settings import TimeTuningSettings
from trainer.losses.timetuning import TimeTuning, forward_labels, patch_of
from trainer.model.backbone import normalised_images
from trainer.model.feature_sampling import choose_references
from trainer.train import train

Make = Callable[..., TrainSettings]
CLIPS, FRAMES, GRID, WIDTH = 3, 4, (4, 5), 6


def example() -> tuple[TimeTuning, Embeddings]:
    """Make a loss whose averaged prototypes differ from its own, and maps of 4 x 5 patches."""
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    patches = PatchMaps(
        features=draw(CLIPS, FRAMES, *GRID, 3),
        teacher=normalize(draw(CLIPS, *GRID, WIDTH), dim=-1),
        student=normalize(draw(CLIPS, *GRID, WIDTH), dim=-1).requires_grad_(),
    )
    torch.manual_seed(1)
    loss = TimeTuning(TimeTuningSettings(prototypes=5), WIDTH).double()
    loss.average.copy_(normalize(draw(5, WIDTH), dim=-1))
    e = replace(example_embeddings(), patches=patches)
    return loss, replace(e, student=e.student.clone().requires_grad_())


def options(**changes: Any) -> dict[str, Any]:
    return {"window": 6, "top": 5, "temperature": 0.1, "earlier": 7} | changes


@pytest.mark.parametrize(
    "changes", [{}, {"window": 1}, {"top": 1}, {"earlier": 1}, {"earlier": 0}, {"temperature": 1.0}]
)
def test_forwarded_labels_equal_their_formula(changes: dict[str, Any]) -> None:
    _, e = example()
    assert e.patches
    labels = torch.rand(CLIPS, 20, 3, generator=torch.Generator().manual_seed(2)).double()
    ours = forward_labels(e.patches.features, labels, **options(**changes)).view(CLIPS, *GRID, 3)
    for clip in range(CLIPS):
        plain = plain_losses.forward_labels(
            e.patches.features[clip].numpy(),
            labels[clip].view(*GRID, 3).numpy(),
            **options(**changes),
        )
        np.testing.assert_allclose(ours[clip].numpy(), plain, rtol=1e-9)


def test_labels_follow_what_moves_within_the_window_only() -> None:
    """A patch moves 2 columns per frame: two steps of a window of 2 reach it, one of 1 does not."""
    frames = torch.zeros(1, 3, 1, 7, 2)
    frames[..., 0] = 1
    for t in range(3):
        frames[0, t, 0, 2 * t] = torch.tensor([0.0, 1.0])
    labels = torch.nn.functional.one_hot((torch.arange(7) == 0).long(), 2)[None].float()
    found = {
        window: forward_labels(frames, labels, **options(window=window, top=1))[0, 4, 1].item()
        for window in (1, 2)
    }
    assert found[2] == 1
    assert found[1] == 0


def cross_entropies(scores: Tensor, targets: list[int]) -> list[Tensor]:
    return [-row.log_softmax(0)[k] for row, k in zip(scores, targets, strict=True)]


def assigned_patches(loss: TimeTuning, patches: PatchMaps) -> np.ndarray[Any, Any]:
    scores = patches.teacher.reshape(-1, WIDTH) @ loss.average.T
    return plain_losses.sinkhorn(scores.numpy(), 0.05, 10).reshape(CLIPS, *GRID, 5)


def test_the_loss_and_its_gradients_equal_their_formula() -> None:
    loss, e = example()
    assert e.patches
    assigned = assigned_patches(loss, e.patches)
    losses: list[Tensor] = []
    unit = loss.prototypes / loss.prototypes.norm(dim=1, keepdim=True)
    for clip in range(CLIPS):
        features = e.patches.features[clip].numpy()
        target = plain_losses.forward_labels(features, assigned[clip], **options()).argmax(-1)
        scores = e.patches.student[clip].reshape(-1, WIDTH) @ unit.T / 0.1
        losses += cross_entropies(scores, target.flatten().tolist())
    inputs = [e.patches.student, loss.prototypes]
    assert_same_loss(loss(e), torch.stack(losses).mean(), inputs)


def test_with_tracks_the_target_is_the_cluster_where_a_track_starts() -> None:
    loss, e = example()
    assert e.patches
    loss.settings = loss.settings.model_copy(update={"carry": "tracks"})
    assigned = assigned_patches(loss, e.patches)
    unit = loss.prototypes / loss.prototypes.norm(dim=1, keepdim=True)
    means: list[Tensor] = []
    for clip in range(CLIPS):
        x, y = e.anchor_positions[clip].T.numpy()
        row, column = (y * 4).astype(int).clip(0, 3), (x * 5).astype(int).clip(0, 4)
        target = assigned[clip][row, column].argmax(-1).tolist()
        each = torch.stack(cross_entropies(e.student[clip, -1] @ unit.T / 0.1, target))
        weights = e.weights[clip, -1]
        means.append((each * weights).sum() / (weights.sum() + 1e-6))
    assert_same_loss(loss(e), torch.stack(means).mean(), [e.student, loss.prototypes])


def assert_same_loss(ours: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    assert ours.item() == pytest.approx(plain.item(), rel=1e-9)
    gradients = [torch.autograd.grad(each, inputs) for each in (ours, plain)]
    for mine, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(mine, expected, rtol=1e-8, atol=1e-12)


def test_the_teachers_prototypes_follow_with_its_momentum() -> None:
    loss, _ = example()
    before, current = loss.average.clone(), normalize(loss.prototypes.detach(), dim=-1)
    loss.update_average(0.75)
    expected = normalize(0.75 * before + 0.25 * current, dim=-1)
    torch.testing.assert_close(loss.average, expected)


def test_a_point_lies_in_the_patch_that_shows_it() -> None:
    points = torch.tensor([[0.0, 0.0], [0.19, 0.26], [0.2, 0.24], [1.0, 1.0], [-0.1, 1.2]])
    assert patch_of(points, (4, 5)).tolist() == [0, 5, 1, 19, 15]


def test_maps_of_patches_are_those_of_whole_passes(settings: Make) -> None:
    s = settings(loss={"timetuning": {"prototypes": 7}})
    model, batch = a_step(s)
    drawn = choose_references(4, 4, 3, grid=8, side=4, generator=torch.Generator().manual_seed(0))
    indices = all_compared(4, drawn)
    found = model.embed(batch, indices).patches
    assert found
    images = normalised_images(batch["frames"], s.data.mean, s.data.std).flatten(0, 1)
    student = model.student.backbone(images).unflatten(0, (4, 4))
    teacher = model.teacher.backbone(images).unflatten(0, (4, 4))
    for ours, expected in (
        (found.features, student),
        (found.teacher, model.teacher.embed(teacher[:, 0])),
        (found.student, model.student.embed(student[:, 3])),
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert not found.features.requires_grad
    assert not found.teacher.requires_grad


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_prototypes_and_its_queue(
    settings: Make, tmp_path: Path
) -> None:
    loss = {"timetuning": {"prototypes": 7}}
    queue = {"kind": "queue", "count": 1, "queue": 40, "patches": 6, "stored": 3}

    def run(name: str) -> TrainSettings:
        """Four steps of two parts: the queue of 40 comes round in the last."""
        changes = {"steps": 4, "accumulate": 2, "checkpoint_every": 2, "out": tmp_path / name}
        return settings(loss=loss, references=queue, run=changes)

    train(run("unbroken"))
    train_killed_once(run("broken"), 3)
    a, b = (last_state(run(name)) for name in ("unbroken", "broken"))
    for part in ("student", "teacher", "losses", "optimizer"):
        assert_same(a[part], b[part], part)
    prototypes, average = (
        b["losses"][f"trained.timetuning.{n}"] for n in ("prototypes", "average")
    )
    assert 1e-4 < (normalize(prototypes, dim=-1) - average).abs().max() < 0.1
    assert (b["losses"]["queue.vectors"].norm(dim=1) > 0.5).all()
