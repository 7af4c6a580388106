"""A step that is not finite changes no weight, and is named with its clips when it is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from shards.errors import PretrackError
from trainer.config import TrainSettings
from trainer.distributed import Rank
from trainer.run_setup import make_optimizer
from trainer.step_record import StepRecord, check_weights
from trainer.train import TrainingRun

Make = Callable[..., TrainSettings]
CPU = torch.device("cpu")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_step_that_is_not_finite_is_named_with_its_clips(bad: float) -> None:
    record = StepRecord(CPU, deferred=True)
    flags = []
    for number, loss in enumerate([1.5, 2.0, bad, 3.0, bad], start=7):
        record.add(torch.tensor(loss), torch.tensor(0.5), number, [f"a{number}", f"b{number}"])
        flags.append(record.not_finite.item())
    assert flags == [0, 0, 1, 1, 1]  # from then on no step changes a weight
    with pytest.raises(
        PretrackError, match=rf"^step 9: the loss is {bad:.3g} .* were a9, b9: lower"
    ):
        record.check()
    record.check()  # each step is read once


def test_a_norm_that_is_not_finite_counts_too() -> None:
    record = StepRecord(CPU, deferred=True)
    record.add(torch.tensor(1.0), torch.tensor(math.inf), 1, ["a"])
    with pytest.raises(PretrackError, match="the loss is 1 and the gradient's norm inf"):
        record.check()
    record = StepRecord(CPU, deferred=True)
    record.add(torch.tensor(1.0), torch.tensor(2.0), 1, ["a"])
    record.check()


def test_a_run_whose_steps_are_read_later_stops_with_the_weights_before_the_bad_step(
    settings: Make,
) -> None:
    # As on a GPU: steps are read later, and the optimizer is fused.
    run = TrainingRun(settings(), Rank(0, 1, CPU))
    run.record = StepRecord(CPU, deferred=True)
    run.optimizer = make_optimizer(run.model, run.settings.optim, fused=True)
    run.optimizer.found_inf = run.record.not_finite  # type: ignore[attr-defined]
    batches = iter(run.loader)

    def weights() -> list[Any]:
        return [weight.detach().clone() for weight in run.trained]

    def same(a: list[Any], b: list[Any]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    first = weights()
    run.take_step(*run.prepare(next(batches)))
    good = weights()
    assert not same(first, good)
    run.model.mean[0] = math.nan
    run.take_step(*run.prepare(next(batches)))
    run.model.mean[0] = 0.485
    run.take_step(*run.prepare(next(batches)))
    assert same(good, weights())
    with pytest.raises(PretrackError, match=r"^step 2: the loss is nan .* were made-0"):
        run.record.check()


def test_weights_that_are_not_finite_are_not_saved(settings: Make) -> None:
    run = TrainingRun(settings(), Rank(0, 1, CPU))
    check_weights(run.trained, 3)
    with torch.no_grad():
        run.trained[5].view(-1)[-1] = math.nan
    with pytest.raises(PretrackError, match=r"^the weights after step 0 are not finite, so no"):
        run.save(None)  # type: ignore[arg-type]
    assert not (run.settings.run.out / "checkpoints").exists()
    # Large numbers are finite, although their squares are not.
    check_weights([torch.full((3,), 1e30)], 3)
