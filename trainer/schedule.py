"""Values that change with the step: learning rate, teacher momentum, compared frames, seeds."""

from __future__ import annotations

import math

import numpy as np

from trainer.config import OptimSettings
from trainer.losses.settings import LossSettings
from trainer.model.settings import TeacherSettings


def learning_rate(step: int, steps: int, optim: OptimSettings) -> float:
    """Return the head's learning rate at a step: linear warm-up, then a cosine from full rate to 0.

    The cosine ends after `optim.period` steps, or after the run's `steps`; past its period the rate
    rises again.
    """
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    period = (optim.period or steps) - optim.warmup
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - optim.warmup) / max(1, period)))


def teacher_momentum(step: int, steps: int, teacher: TeacherSettings) -> float:
    """Return the teacher's EMA momentum at a step.

    Constant, or a cosine from `momentum` at step 0 to `final_momentum` at the last step.
    """
    if teacher.final_momentum is None:
        return teacher.momentum
    progress = 0.5 * (1 - math.cos(math.pi * step / max(1, steps - 1)))
    return teacher.momentum + progress * (teacher.final_momentum - teacher.momentum)


def compared_frames(step: int, frames: int, loss: LossSettings) -> list[int]:
    """Return which frames 1..T-1 of a clip are compared with the anchor frame at a step.

    All of them, or a curriculum that drops the nearest ones (`loss.frames`).
    """
    dropped = 0 if loss.frames == "all" or step == 0 else 1 + (step - 1) // loss.curriculum_steps
    return list(range(1 + min(dropped, frames - 2), frames))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed for all random choices of one step on one rank, below 2^63."""
    return np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64).item() >> 1
