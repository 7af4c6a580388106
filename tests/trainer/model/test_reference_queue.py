"""References from a queue are the teacher's patches of this and earlier steps, as in NeCo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffsort import DiffSortNet
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize

from shards.errors import SettingsError
from tests.trainer.model.test_step import CPU, a_step
from trainer.config import TrainSettings
from trainer.distributed import Rank
from trainer.losses.settings import LossSettings
from trainer.losses.sorting.objective import make_objective, sorting_loss
from trainer.methods.tracks import TrackMethod, draw_indices
from trainer.model.backbone import normalised_images
from trainer.model.reference_queue import (
    QueueDraws,
    ReferenceQueue,
    draw_from_queue,
    rank_draws,
    take_patches,
)

Make = Callable[..., TrainSettings]
QUEUE = {"kind": "queue", "count": 2, "queue": 40, "patches": 6, "stored": 3}


def draws(parts_before: int, *, patches: int = 3, size: int = 5, clips: int = 1) -> QueueDraws:
    return draw_from_queue(
        clips,
        parts_before=parts_before,
        size=size,
        grid=4,
        stored=2,
        references=(1, patches),
        generator=torch.Generator().manual_seed(parts_before),
    )


def test_the_newest_patches_replace_the_oldest() -> None:
    queue = ReferenceQueue(5, 1)
    for part in range(4):
        queue.exchange(torch.tensor([[[10.0 * part], [10.0 * part + 1]]]), draws(part))
    # Written in turn: 0, 1, 10, 11, 20 | 21, 30, 31; the last three replaced the first three.
    assert queue.vectors.flatten().tolist() == [21, 30, 31, 11, 20]
    (part,) = draws(3).drawn.view(-1, 3)
    assert queue.exchange(torch.tensor([[[30.0], [31.0]]]), draws(3)).flatten().tolist() == [
        queue.vectors[index].item() for index in part
    ]


def test_references_are_drawn_from_what_is_filled_each_patch_once() -> None:
    first = draws(0, patches=4)  # 2 are filled, and 4 wanted: both twice
    assert sorted(first.drawn.flatten().tolist()) == [0, 0, 1, 1]
    seen = torch.cat([draws(1, patches=3, clips=1).drawn for _ in range(3)])
    assert seen.max() <= 3
    late = draw_from_queue(
        200,
        parts_before=9,
        size=900,
        grid=4,
        stored=2,
        references=(2, 49),
        generator=torch.Generator().manual_seed(0),
    )
    assert late.drawn.shape == (200, 2, 49)
    assert all(len(set(row.tolist())) == 49 for row in late.drawn.flatten(0, 1))
    assert late.drawn.min().item() == 0
    assert late.drawn.max().item() == 899
    assert all(len(set(row.tolist())) == 2 for row in late.stored)
    second = rank_draws(late, 100, 1)
    assert torch.equal(second.drawn, late.drawn[100:])
    assert torch.equal(second.slots, late.slots)


def test_patches_are_numbered_row_by_row() -> None:
    maps = torch.arange(12.0).view(1, 3, 4, 1)
    assert take_patches(maps, torch.tensor([[5, 0]])).flatten().tolist() == [5, 0]


def test_a_step_compares_with_the_teachers_patches_of_anchor_frames(settings: Make) -> None:
    s = settings(references=QUEUE)
    model, batch = a_step(s)
    (indices,) = draw_indices(0, patches=(8, 1), settings=s, rank=Rank(0, 1, CPU))
    e = model.embed(batch, indices)
    images = normalised_images(batch["frames"][:, 0], s.data.mean, s.data.std)
    every = model.teacher.embed(model.teacher.backbone(images)).flatten(1, 2)
    assert indices.queue
    stored = torch.cat([every[b, indices.queue.stored[b]] for b in range(4)])
    expected = stored[indices.queue.drawn]  # step 0: entries 0 to 11 are those of this step
    assert expected.shape == (4, 2, 6, 16)
    torch.testing.assert_close(e.references, expected, rtol=0, atol=1e-5)
    assert not e.references.requires_grad
    # The next step adds to them.
    (later,) = draw_indices(1, patches=(8, 1), settings=s, rank=Rank(0, 1, CPU))
    model.embed(batch, later)
    queue: Any = model.losses.queue
    assert (queue.vectors.norm(dim=1) > 0.5).sum() == 24
    torch.testing.assert_close(queue.vectors[:12], stored, rtol=0, atol=1e-5)


def plain_neco(student: Tensor, teacher: Tensor, references: Tensor, steepness: float) -> Tensor:
    """Return NeCo's loss of unit vectors: [B, N, E], [B, N, E], references [B, P, E]."""
    sort = DiffSortNet("bitonic", references.shape[1], steepness=steepness)
    losses = []
    for s, t, r in zip(student, teacher, references, strict=True):
        p, q = sort(s @ r.T)[1], sort(t @ r.T)[1].detach()
        losses.append(-(q * p.log()).sum(dim=1).mean())
    return torch.stack(losses).mean()


def test_the_loss_is_necos() -> None:
    random = torch.Generator().manual_seed(3)

    def units(*shape: int) -> Tensor:
        return normalize(torch.randn(*shape, 5, generator=random, dtype=torch.float64), dim=-1)

    student, teacher, references = units(2, 7).requires_grad_(), units(2, 7), units(2, 8)
    loss = LossSettings(
        objective="teacher_student",
        sorter="bitonic",
        student_steepness=100,
        teacher_steepness=100,
        epsilon=1e-12,
    )
    ours = sorting_loss(
        student[:, None],
        teacher,
        references[:, None],
        torch.ones(2, 1, 7, dtype=torch.float64),
        objective=make_objective(loss),
        detach_teacher=True,
    )
    (gradient,) = torch.autograd.grad(ours, student)
    plain = plain_neco(student, teacher, references, 100)
    (expected,) = torch.autograd.grad(plain, student)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)  # 1e-6 in the mean over tracks
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-8)


def test_settings_that_do_not_fit_a_queue_are_refused(settings: Make) -> None:
    with pytest.raises(ValidationError, match="the queue holds patches of all ranks anyway"):
        settings(references=QUEUE | {"across_ranks": True})
    with pytest.raises(SettingsError, match=r"'references.queue: 11' is too short for the 12"):
        TrackMethod(settings(references=QUEUE | {"queue": 11}), None, Rank(0, 1, CPU), 36)
    with pytest.raises(Exception, match="more than the 64 patches of a frame"):
        TrackMethod(
            settings(references=QUEUE | {"stored": 65, "queue": 9999}), None, Rank(0, 1, CPU), 36
        )


def test_crops_stay_the_default_and_are_written_as_before(settings: Make) -> None:
    written = settings().model_dump(mode="json")["references"]
    assert written == {"count": 3, "crop_ratio": 0.5, "across_ranks": False}
    with_queue = settings(references=QUEUE)
    assert TrainSettings.model_validate(with_queue.model_dump(mode="json")) == with_queue
