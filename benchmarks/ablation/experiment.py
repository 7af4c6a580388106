"""The settings of an experiment: arms, seeds, learning rates, and what is measured."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from manifests.settings import LocationSetting, Settings, check_settings, load_settings
from shards.errors import SettingsError
from trainer.config import TrainSettings

Values = dict[str, Any]
"""A part of a training config, as in its YAML."""


class HeldOutSettings(Settings):
    """Clips that weights are scored on: whole frames, forward from the first anchor."""

    out: LocationSetting
    """Output folder of a build."""
    split: str = "eval"
    """Clips of this split."""
    where: str = ""
    """Only clips for which this holds, as in `data.where`."""
    clips: int = Field(default=100, ge=1)
    """At most this many clips, evenly spaced in the snapshot's list."""
    frames: int = Field(default=4, ge=2)
    """Frames per clip: the anchor and those in which its points are looked for."""
    step: int = Field(default=2, ge=1)
    """Stored frames from one of them to the next."""


class MetricSettings(Settings):
    """The mean of a measure over some of the points of a sequence."""

    measure: Literal[
        "pck@0.05",
        "pck@0.1",
        "pck@0.2",
        "auc",
        "error",
        "city_block",
        "track@1",
        "track@5",
        "epipolar@4px",
        "rank_correlation",
    ] = "pck@0.1"
    """A measure of `trainer.evaluate.heldout.measures`."""
    objects: bool = False
    """Counts only points on objects, by the masks of clips that have them."""
    angle: tuple[float, float] | None = None
    """Counts only points that the two cameras see from directions this many degrees apart: from the
    first number up to, and without, the second."""
    moving: bool = False
    """Counts only points that move by more than a tenth of the image."""

    @model_validator(mode="after")
    def _check_angle(self) -> MetricSettings:
        if self.angle and not 0 <= self.angle[0] < self.angle[1]:
            raise ValueError("'angle' should be two numbers of degrees, the smaller one first")
        return self


class StartSettings(Settings):
    """The weights that every arm starts from: a file, or those that a run of its own ends with."""

    weights: str | None = None
    """A weight file, or `FILE:PART`, as in `model.weights`."""
    settings: Values = Field(default_factory=dict)
    """Training settings of the run that makes the weights, beside the common ones."""

    @model_validator(mode="after")
    def _check_choice(self) -> StartSettings:
        if (self.weights is None) == (not self.settings):
            raise ValueError("set one of 'start.weights' and 'start.settings'")
        return self


class RateSettings(Settings):
    """How an objective's learning rate is chosen: the best endpoint on the validation clips."""

    tried: tuple[float, ...] = Field(min_length=1)
    """Learning rates of the head to try; a single one is taken without a trial."""
    conditions: tuple[str, ...] = ()
    """Conditions under which each rate is tried, whose mean decides; an objective that has no arm
    under any of them is tried under those of its own arms."""
    steps: int | None = Field(default=None, ge=1)
    """Length of a trial in steps; null takes that of an arm."""
    seed: int = Field(default=0, ge=0)
    """Seed of the trials, which should not be among `seeds`."""


class ArmSettings(Settings):
    """An objective under a condition, and the arm that it is compared with."""

    objective: str
    """A name in `objectives`."""
    condition: str
    """A name in `conditions`."""
    control: str | None = None
    """The arm that is subtracted from this one; null compares it with none."""


class Experiment(Settings):
    """All settings of an experiment. Training settings are those of `pretrack train`."""

    title: str
    """The heading of the results."""
    out: Path
    """Folder for runs and results."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Every arm is trained once with each seed."""
    train: Values
    """Training settings of all runs."""
    start: StartSettings
    """The weights that arms start from."""
    objectives: dict[str, Values] = Field(min_length=1)
    """What is minimised: training settings by name."""
    conditions: dict[str, Values] = Field(min_length=1)
    """What it is minimised on, such as `data.control`: training settings by name."""
    arms: dict[str, ArmSettings] = Field(min_length=1)
    """The arms by name."""
    rates: RateSettings
    """The choice of learning rates."""
    validation: HeldOutSettings
    """Clips that decide about learning rates."""
    evaluation: HeldOutSettings
    """Clips that the results are about."""
    metrics: dict[str, MetricSettings] = Field(min_length=1)
    """What is measured, by the name that it has in the results."""
    endpoint: str
    """The metric that decides."""

    @model_validator(mode="after")
    def _check_names(self) -> Experiment:
        _check_name("endpoint", self.endpoint, self.metrics)
        for name, arm in self.arms.items():
            _check_name(f"arms.{name}.objective", arm.objective, self.objectives)
            _check_name(f"arms.{name}.condition", arm.condition, self.conditions)
            if arm.control is not None:
                _check_name(f"arms.{name}.control", arm.control, self.arms)
            if arm.control == name:
                raise ValueError(f"'arms.{name}.control' names the arm itself")
        for condition in self.rates.conditions:
            _check_name("rates.conditions", condition, self.conditions)
        if self.rates.seed in self.seeds:
            raise ValueError(
                f"'rates.seed: {self.rates.seed}' is one of 'seeds', whose runs would then be "
                "those that chose the learning rate"
            )
        return self


def _check_name(key: str, name: str, known: Collection[str]) -> None:
    """Raise ValueError, naming the key, for a name that is not in the file."""
    if name in known:
        return
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
    raise ValueError(f"'{key}' names '{name}', which the file does not define ({hint})")


def load_experiment(path: Path, changes: list[str]) -> Experiment:
    """Read an experiment's YAML, and check the training settings of its start and its arms.

    Raises SettingsError, in one sentence that names the key.
    """
    experiment = load_settings(Experiment, path, changes)
    folder = experiment.out / "check"
    if experiment.start.settings:
        start_values = merged(experiment.train, experiment.start.settings)
        training_settings(start_values, folder, seed=0, where=f"{path}, 'start.settings'")
    for name in experiment.arms:
        training_settings(
            arm_values(experiment, name), folder, seed=0, where=f"{path}, arm '{name}'"
        )
    return experiment


def arm_values(experiment: Experiment, name: str) -> Values:
    """Return the training settings of an arm: common ones, its objective's, its condition's."""
    arm = experiment.arms[name]
    return merged(
        experiment.train, experiment.objectives[arm.objective], experiment.conditions[arm.condition]
    )


def merged(*parts: Values) -> Values:
    """Merge nested mappings; of two values for a key the later one counts."""
    result: Values = {}
    for part in parts:
        for key, value in part.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else deepcopy(value)
    return result


def training_settings(values: Values, out: Path, seed: int, where: str) -> TrainSettings:
    """Validate the settings of a run. Raises SettingsError, in which `where` names it."""
    if "seed" in values.get("run", {}) or "out" in values.get("run", {}):
        raise SettingsError(
            f"{where}: 'run.seed' and 'run.out' follow from 'seeds' and 'out': leave them out"
        )
    own = {"run": {"out": str(out), "seed": seed}}
    if "weights" not in values.get("model", {}):
        own["model"] = {"weights": "random"}
    return check_settings(TrainSettings, merged(values, own), where)
