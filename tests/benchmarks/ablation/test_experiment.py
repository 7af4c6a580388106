"""An experiment's file is checked before anything runs, and says what each arm is."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.ablation.experiment import arm_values, load_experiment, merged
from benchmarks.ablation.plan import arm_task, rate_tasks, start_task, start_weights
from benchmarks.objectives import chosen_arms
from shards.errors import PretrackError, SettingsError

REPOSITORY = Path(__file__).parents[3]
EXPERIMENTS = [
    REPOSITORY / "configs" / "evidence" / name
    for name in ("first_look.yaml", "second_look.yaml", "evidence.yaml", "third_look.yaml")
]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_arms_less_their_controls_differ_in_the_tracks_alone(path: Path) -> None:
    experiment = load_experiment(path, [])
    compared = {name: arm for name, arm in experiment.arms.items() if arm.control}
    assert compared
    for name, arm in compared.items():
        assert arm.control is not None
        ours, control = arm_values(experiment, name), arm_values(experiment, arm.control)
        ours.pop("data")
        control.pop("data")
        assert ours == control
        task = arm_task(experiment, name, 1, 1e-3)
        other = arm_task(experiment, arm.control, 1, 1e-3)
        assert task.settings is not None
        assert other.settings is not None
        different = {
            key
            for key, value in task.settings["data"].items()
            if other.settings["data"][key] != value
        }
        assert different <= {"control", "out"}
        assert task.settings["run"]["seed"] == other.settings["run"]["seed"] == 1
        assert task.weights == other.weights == start_weights(experiment)


def test_timetunings_arms_differ_in_what_carries_its_clusters() -> None:
    experiment = load_experiment(REPOSITORY / "configs" / "evidence" / "timetuning.yaml", [])
    tracks, forwarder = (arm_values(experiment, name) for name in ("stored tracks", "forwarder"))
    carried, forwarded = (values["loss"].pop("timetuning") for values in (tracks, forwarder))
    assert tracks == forwarder
    assert carried == {"prototypes": 50, "carry": "tracks"}
    assert forwarded == {"prototypes": 50, "window": 3}


def test_a_rate_is_tried_on_tracks_and_on_the_control_with_a_seed_of_its_own() -> None:
    experiment = load_experiment(EXPERIMENTS[0], [])
    trials = rate_tasks(experiment)
    assert trials.keys() == experiment.objectives.keys()
    assert [len(tasks) for tasks in trials["spearman"].values()] == [2, 2]
    assert [len(tasks) for tasks in trials["continued pretraining"].values()] == [1, 1]
    tasks = [
        task for by_rate in trials.values() for of_rate in by_rate.values() for task in of_rate
    ]
    assert {task.scored for task in tasks} == {experiment.validation}
    assert {task.settings["run"]["seed"] for task in tasks if task.settings} == {0}
    assert len({task.folder for task in tasks}) == len(tasks)
    assert start_task(experiment).scored == experiment.evaluation
    assert not rate_tasks(load_experiment(EXPERIMENTS[0], ["rates.tried=[0.001]"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("endpoint=objects at 40-71°", r"'endpoint' names 'objects at 40-71°', .*did you mean"),
        (
            "arms.continued pretraining.objective=contined pretraining",
            r"'arms\.continued pretraining\.objective' names 'contined pretraining', which the "
            r"file does not define \(did you mean 'continued pretraining'\?\)",
        ),
        ("arms.continued pretraining.control=spearman", r"arms\.continued pretraining\.control"),
        ("rates.conditions=[tracks, smae]", r"'rates\.conditions' names 'smae'"),
        ("rates.seed=2", r"'rates\.seed: 2' is one of 'seeds'"),
        (
            "objectives.spearman.loss.sorted=1",
            r"arm 'spearman, tracks': unknown key 'loss\.sorted'",
        ),
        ("start.settings.model.dept=1", r"'start\.settings': unknown key 'model\.dept'"),
        ("train.run.seed=1", r"'run\.seed' and 'run\.out' follow from"),
        ("start.weights=w.pth", r"set one of 'start\.weights' and 'start\.settings'"),
        ("metrics.objects at 0-40°.measure=pck", r"'metrics\.objects at 0-40°\.measure'"),
        ("metrics.objects at 0-40°.angle=[40, 0]", "the smaller one first"),
        ("arm.x=1", r"unknown key 'arm' \(did you mean 'arms'\?\)"),
    ],
)
def test_what_a_file_gets_wrong_is_named_in_one_sentence(change: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        load_experiment(EXPERIMENTS[0], [change])
    assert "\n" not in str(error.value)
    assert str(EXPERIMENTS[0]) in str(error.value)


def test_other_start_weights_under_the_same_name_are_another_experiment(tmp_path: Path) -> None:
    weights = tmp_path / "start.pth"
    changes = ["start.settings={}", f"start.weights={weights}"]
    experiment = load_experiment(EXPERIMENTS[0], changes)

    def digests() -> list[str]:
        return [
            start_task(experiment).digest,
            arm_task(experiment, "spearman, same", 1, 1e-3).digest,
            *(task.digest for task in rate_tasks(experiment)["spearman"][1e-3]),
        ]

    with pytest.raises(
        PretrackError, match=r"'start\.weights' names .*start\.pth, which cannot be"
    ):
        digests()
    weights.write_bytes(b"one")
    one = digests()
    assert digests() == one
    weights.write_bytes(b"two")
    os.utime(weights, ns=(1, 1))
    assert not set(digests()) & set(one)


def test_an_arm_that_does_not_exist_is_named() -> None:
    experiment = load_experiment(EXPERIMENTS[0], [])
    assert chosen_arms(experiment, ["spearman, same"]) == ["spearman, same"]
    assert chosen_arms(experiment, None) == [*experiment.arms]
    wrong = re.escape("the arm 'spearman', which does not exist")
    with pytest.raises(SettingsError, match=wrong):
        chosen_arms(experiment, ["spearman"])


def test_later_mappings_win_and_leave_the_earlier_ones_alone() -> None:
    first = {"a": {"b": 1, "c": [1]}, "d": 2}
    assert merged(first, {"a": {"b": 3}, "e": {}}) == yaml.safe_load(
        "{a: {b: 3, c: [1]}, d: 2, e: {}}"
    )
    assert first == {"a": {"b": 1, "c": [1]}, "d": 2}
