"""What changes from step to step: the learning rate, the teacher's momentum, the frames that are compared."""

from __future__ import annotations

import math

import numpy as np

from trainer.config import OptimSettings, TeacherSettings
from trainer.losses.settings import LossSettings


def learning_rate(step: int, steps: int, optim: OptimSettings) -> float:
    """The head's learning rate at a step: a linear rise, then a cosine to 0, which climbs again past its period."""
    if step < optim.warmup:
        return optim.lr * (step + 1) / optim.warmup
    period = (optim.period or steps) - optim.warmup
    return optim.lr * 0.5 * (1 + math.cos(math.pi * (step - optim.warmup) / max(1, period)))


def teacher_momentum(step: int, steps: int, teacher: TeacherSettings) -> float:
    """The part of the teacher that is kept after a step: constant, or a cosine from `momentum` to `final_momentum`."""
    if teacher.final_momentum is None:
        return teacher.momentum
    gone = 0.5 * (1 - math.cos(math.pi * step / max(1, steps - 1)))
    return teacher.momentum + gone * (teacher.final_momentum - teacher.momentum)


def compared_frames(step: int, frames: int, loss: LossSettings) -> list[int]:
    """Which of a sample's frames 1..T-1 are compared with the anchor frame at a step (`loss.frames` says how)."""
    dropped = 0 if loss.frames == "all" or step == 0 else 1 + (step - 1) // loss.curriculum_steps
    return list(range(1 + min(dropped, frames - 2), frames))


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed for everything random in one step of one rank."""
    return int(
        np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )
