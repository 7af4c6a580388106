"""Student and teacher: the published head, and the exponential moving average."""

from __future__ import annotations

import pytest
import torch

from trainer.model.backbone import make_backbone
from trainer.model.student_teacher import Embedder, Projection, TeacherAverage, make_teacher

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}


def embedder() -> Embedder:
    torch.manual_seed(0)
    backbone = make_backbone("vit_tiny_patch16_224", None, TINY)
    backbone.freeze(1, train_norm=False)
    return Embedder(backbone, Projection(48, (32, 16)), align_corners=False)


def test_the_published_head() -> None:
    head = Projection(768, (1024, 1024, 512, 256))
    assert [type(layer).__name__ for layer in head] == ["Linear", "GELU"] * 3 + ["Linear"]
    assert (
        sum(layer.weight.numel() for layer in head if isinstance(layer, torch.nn.Linear))
        == 2_490_368
    )


@pytest.mark.parametrize("trained_only", [True, False])
def test_the_teacher_is_the_students_average(trained_only: bool) -> None:
    student = embedder()
    teacher = make_teacher(student)
    before = [weight.clone() for weight in teacher.parameters()]
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1)
    TeacherAverage(teacher, student, trained_only).update(0.9)
    for old, new, theirs in zip(before, teacher.parameters(), student.parameters(), strict=True):
        moved = theirs.requires_grad or not trained_only
        torch.testing.assert_close(new, 0.9 * old + 0.1 * theirs if moved else old)
        assert not new.requires_grad
