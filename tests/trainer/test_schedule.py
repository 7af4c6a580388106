"""Learning rate, momentum, curriculum and seeds have the values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from trainer.config import OptimSettings
from trainer.losses.settings import LossSettings
from trainer.model.settings import TeacherSettings
from trainer.schedule import compared_frames, learning_rate, step_seed, teacher_momentum


def test_the_learning_rate_warms_up_and_then_follows_torchs_cosine() -> None:
    optim = OptimSettings(lr=2.0, warmup=4)
    rates = [learning_rate(step, 20, optim) for step in range(21)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[12] == pytest.approx(1.0)
    assert rates[20] == pytest.approx(0.0)
    published = OptimSettings(lr=1.0, period=10)
    parameter = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, T_max=10)
    for step in range(25):  # past the period it climbs again, as torch's does
        assert learning_rate(step, 25, published) == pytest.approx(
            sgd.param_groups[0]["lr"], abs=1e-9
        )
        sgd.step()
        theirs.step()


def test_the_curriculum_drops_the_nearest_frame_first() -> None:
    curriculum = LossSettings(frames="curriculum")
    steps = {0: [1, 2, 3], 1: [2, 3], 1085: [2, 3], 1086: [3], 5000: [3]}
    assert {step: compared_frames(step, 4, curriculum) for step in steps} == steps
    assert compared_frames(5000, 4, LossSettings()) == [1, 2, 3]


def test_the_learning_rate_at_thirds_of_the_cosine() -> None:
    # 2 steps of warm-up, then 0.5 (1 + cos(pi k / 12)) for k = 0, 3, 4, 6, 8, 12
    optim = OptimSettings(lr=1e-3, warmup=2)
    rates = [learning_rate(step, 14, optim) for step in (0, 1, 2, 5, 6, 8, 10, 14)]
    expected = [0.5e-3, 1e-3, 1e-3, 0.853553e-3, 0.75e-3, 0.5e-3, 0.25e-3, 0.0]
    assert rates == pytest.approx(expected, abs=1e-9)
    # a period of 8 steps, warm-up included, ends earlier than the run and rises again
    short = OptimSettings(lr=1e-3, warmup=2, period=8)
    rates = [learning_rate(step, 100, short) for step in (4, 5, 8, 14)]
    assert rates == pytest.approx([0.75e-3, 0.5e-3, 0.0, 1e-3], abs=1e-9)
    # the shortest cosine: from the full rate to 0 in one step, and back in the next
    shortest = OptimSettings(lr=1e-3, period=1)
    rates = [learning_rate(step, 4, shortest) for step in range(4)]
    assert rates == pytest.approx([1e-3, 0.0, 1e-3, 0.0], abs=1e-9)


def test_teacher_momentum_rises_by_a_cosine_to_its_final_value_at_the_last_step() -> None:
    teacher = TeacherSettings(momentum=0.9, final_momentum=1.0)
    # 7 steps, so the cosine runs over 6: 0.9 + 0.1 (1 - cos(pi k / 6)) / 2
    momenta = [teacher_momentum(step, 7, teacher) for step in range(7)]
    expected = [0.9, 0.9066987, 0.925, 0.95, 0.975, 0.9933013, 1.0]
    assert momenta == pytest.approx(expected, abs=1e-7)
    assert teacher_momentum(3, 7, TeacherSettings(momentum=0.9)) == 0.9
    assert teacher_momentum(0, 1, teacher) == 0.9  # a run of one step
    assert [teacher_momentum(step, 2, teacher) for step in range(2)] == pytest.approx([0.9, 1.0])


def test_seeds_differ_by_seed_step_and_rank_and_fit_torch() -> None:
    seeds = [step_seed(*key) for key in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 1, 1))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # recorded: a run that resumes after an upgrade draws what the unbroken run would have drawn
    assert step_seed(1, 0, 0) == 3717377837946358015
    assert step_seed(3, 100, 7) == 7279689523322202462


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
