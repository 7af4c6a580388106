"""The total is the weighted sum of the losses that settings name, also in a resumed run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from manifests.settings import check_settings
from shards.errors import SettingsError
from tests.trainer.losses.test_losses import WIDTH, example_embeddings
from tests.trainer.test_distributed import torchrun
from tests.trainer.test_train import assert_same, last_state
from trainer.config import TrainSettings
from trainer.losses.settings import LossSettings
from trainer.losses.sorting.objective import make_objective, sorting_loss
from trainer.losses.weighted_sum import Losses, make_losses
from trainer.train import train

README = Path(__file__).parents[3] / "configs" / "train" / "README.md"
EVERY = {
    "info_nce": {},
    "smooth_ap": {},
    "clusters": {"prototypes": 5},
    "track_mean": {},
    "view_agreement": {},
}


def losses_of(**settings: Any) -> Losses:
    torch.manual_seed(2)
    return make_losses(LossSettings.model_validate(settings), WIDTH)


def test_the_total_is_the_weighted_sum() -> None:
    e = example_embeddings(torch.float32)
    weights = {
        "sorting": 0.5,
        "info_nce": 2.0,
        "smooth_ap": 3.0,
        "clusters": 0.25,
        "track_mean": 4.0,
        "view_agreement": 1.5,
    }
    losses = losses_of(
        sorting=0.5, **{name: {**part, "weight": weights[name]} for name, part in EVERY.items()}
    )
    total, parts = losses(replace(e, student=e.student.requires_grad_()))
    assert list(parts) == list(weights)
    torch.testing.assert_close(
        total, torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    )
    assert total.requires_grad
    assert not any(part.requires_grad for part in parts.values())
    for name, part in EVERY.items():
        one = losses_of(sorting=0, **{name: part})
        one.load_state_dict(losses.state_dict(), strict=False)
        alone, only = one(e)
        assert list(only) == [name]
        torch.testing.assert_close(alone, parts[name])


def test_by_default_the_total_is_the_sorting_loss() -> None:
    e, settings = example_embeddings(torch.float32), LossSettings()
    losses = losses_of()
    total, parts = losses(replace(e, teacher_frames=None))
    assert torch.equal(
        total,
        sorting_loss(
            e.student,
            e.teacher,
            e.references,
            e.weights,
            objective=make_objective(settings),
            detach_teacher=True,
        ),
    )
    assert list(parts) == ["sorting"]
    assert not losses.needs_teacher_frames
    assert not list(losses.parameters())


def test_losses_state_what_they_need_and_train_their_parameters() -> None:
    assert losses_of(track_mean={}).needs_teacher_frames
    assert losses_of(view_agreement={}).needs_teacher_frames
    assert not losses_of(track_mean={"weight": 0}).needs_teacher_frames
    losses = losses_of(sorting=0, clusters={"prototypes": 7})
    ((name, prototypes),) = losses.named_parameters()
    assert name in losses.state_dict()
    assert prototypes.shape == (7, WIDTH)
    losses(example_embeddings(torch.float32))[0].backward()
    assert prototypes.grad is not None
    assert prototypes.grad.abs().sum() > 0
    assert not list(losses_of(clusters={"weight": 0}).parameters())
    with pytest.raises(ValueError, match="needs the teacher's embeddings in the compared frames"):
        losses_of(track_mean={})(replace(example_embeddings(torch.float32), teacher_frames=None))


def test_losses_are_computed_in_float32_under_autocast() -> None:
    e, losses = example_embeddings(torch.float32), losses_of(**EVERY)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = losses(e)
    assert torch.equal(total, losses(e)[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"sorting": 0},
            "nothing would be trained, since every loss has weight 0: set 'loss.sorting' above 0",
        ),
        ({"sorting": 0, "clusters": {"weight": 0}}, "every loss has weight 0"),
        ({"smooth_ap": {"near": 0.2}}, "'near' should be no larger than 'far'"),
        (
            {"info_nce": {"temperature": 0}},
            "'info_nce.temperature': input should be greater than 0",
        ),
        (
            {"clusters": {"epsilon": 0.001}},
            "'clusters.epsilon': input should be greater than or equal to 0.025",
        ),
        ({"info_nse": {}}, "unknown key 'info_nse' .did you mean 'info_nce'"),
        ({"track_mean": {"wieght": 2}}, "unknown key 'track_mean.wieght' .did you mean 'weight'"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        check_settings(LossSettings, values, "train.yaml")
    assert str(caught.value).count("; ") == 0
    assert "\n" not in str(caught.value)


MIX: dict[str, Any] = {"sorting": 0.5, **EVERY}


@pytest.mark.slow
def test_a_resumed_run_continues_its_prototypes(
    settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    whole = settings(loss=MIX, optim={"lr": 1e-3}, run={"steps": 4, "out": tmp_path / "whole"})
    parts = [
        settings(loss=MIX, optim={"lr": 1e-3, "period": 4}, run={"steps": steps})
        for steps in (2, 4)
    ]
    train(whole)
    states = []
    for part in parts:
        train(part)
        states.append(last_state(part))
    half, end = (state["losses"]["trained.clusters.prototypes"] for state in states)
    assert half.shape == (5, end.shape[1])
    assert (end - half).abs().max() > 1e-4
    assert_same(states[1]["losses"], last_state(whole)["losses"])
    assert_same(states[1]["student"], last_state(whole)["student"])


@pytest.mark.slow
def test_two_ranks_train_the_same_prototypes_and_fill_one_queue(
    settings: Callable[..., TrainSettings], tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    queue = {"kind": "queue", "count": 1, "queue": 50, "patches": 6, "stored": 3}
    s = settings(loss=MIX, references=queue, run={"steps": 3})
    config.write_text(yaml.safe_dump(s.model_dump(mode="json")))
    run = torchrun(config)
    assert run.returncode == 0, run.stderr
    (student, _, losses), theirs = (
        torch.load(tmp_path / "run" / f"rank{rank}.pt", weights_only=True)["weights"]
        for rank in (0, 1)
    )
    lengths = {name: len(values) for name, values in losses.items()}
    assert lengths == {
        "queue.vectors": 50,
        "trained.clusters.prototypes": 5,
        "trained.view_agreement.head.weight": 1,
        "trained.view_agreement.head.bias": 1,
    }
    assert_same([student, losses], [theirs[0], theirs[2]])
    # Each step stores 3 patches of each of the 4 clips of both ranks.
    filled = losses["queue.vectors"].norm(dim=1) > 0.5
    assert filled.tolist() == [True] * 36 + [False] * 14


def test_the_example_in_the_readme_loads() -> None:
    (example,) = re.findall(r"```yaml\n(loss:.*?)```", README.read_text(), re.DOTALL)
    settings = check_settings(LossSettings, yaml.safe_load(example)["loss"], "README.md")
    assert set(settings.weights) == {"sorting", "info_nce", "clusters"}
    assert make_losses(settings, WIDTH)(example_embeddings(torch.float32))[0].isfinite()
