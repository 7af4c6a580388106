"""Schedules: values by step that were worked out by hand."""

from __future__ import annotations

import pytest

from trainer.config import TeacherSettings
from trainer.schedule import teacher_momentum


def test_momentum_stays_or_goes_to_its_end() -> None:
    assert {teacher_momentum(step, 100, TeacherSettings()) for step in range(100)} == {0.99}
    rising = [
        teacher_momentum(step, 101, TeacherSettings(momentum=0.9, final_momentum=1.0))
        for step in range(101)
    ]
    assert rising[0] == pytest.approx(0.9)
    assert rising[50] == pytest.approx(0.95)
    assert rising[100] == pytest.approx(1.0)
    assert rising == sorted(rising)
