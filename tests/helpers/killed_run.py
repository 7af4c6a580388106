"""A run that is killed in the middle of a step and then started again."""

from __future__ import annotations

from typing import Any

import pytest

from trainer import train as training
from trainer.config import TrainSettings
from trainer.train import TrainingRun, train


def train_killed_once(settings: TrainSettings, step: int) -> None:
    """Train to the end, killed once at step number `step`, counted from 0."""
    original = training.TrainingRun.take_step

    def killed(run: TrainingRun, batch: Any, indices: Any) -> Any:
        if run.step == step:
            raise KeyboardInterrupt
        return original(run, batch, indices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.TrainingRun, "take_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    train(settings)
