"""The tasks of an experiment: one training run each, in a folder of its own.

    OUT/start/                 the start weights
    OUT/rates/OBJECTIVE-.../   trials of learning rates
    OUT/arms/ARM-SEED/         the arms
    .../task.json              what to do, for the process that does it
    .../result.json            written last: its presence ends the task

Names in a folder's name have only letters, digits, `-` and `_`.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from benchmarks.ablation.experiment import (
    Experiment,
    HeldOutSettings,
    Values,
    arm_values,
    merged,
    training_settings,
)
from manifests.fingerprint import fingerprint
from shards.errors import PretrackError
from shards.files import atomic_write
from trainer.export import weights_path
from trainer.model.weights import split_part


@dataclass(frozen=True, eq=False)
class Task:
    """A training run, and the clips that its weights are scored on.

    name:     as shown in progress
    settings: of the run, validated; None only scores `weights`
    weights:  the weights that are scored without a run, or that the run starts from
    scored:   the clips that the last weights are scored on
    curve:    those that every exported step is scored on; None for no curve
    metrics:  settings of each metric, by name
    controls: score "never moves", chance and raw pixels as well
    given_weights: the file of `start.weights`, whose content determines the result too
    """

    name: str
    folder: Path
    settings: Values | None
    weights: str
    scored: HeldOutSettings
    curve: HeldOutSettings | None
    metrics: dict[str, Any]
    controls: bool = False
    given_weights: str | None = None

    @cached_property
    def document(self) -> dict[str, Any]:
        """Everything that determines the result, as JSON values."""
        # Weights that this experiment trains itself follow from settings; others, from their bytes.
        given = self.given_weights
        content = {}
        if given is not None and given not in ("hub", "random"):
            content["weights_content"] = _content(given)
        return content | {
            "settings": self.settings,
            "weights": self.weights,
            "scored": self.scored.model_dump(mode="json"),
            "curve": None if self.curve is None else self.curve.model_dump(mode="json"),
            "metrics": self.metrics,
            "controls": self.controls,
        }

    @cached_property
    def digest(self) -> str:
        """Changes with what determines the result."""
        return fingerprint(self.document)

    def result(self) -> dict[str, Any] | None:
        """Return the result if the task is done.

        Raises PretrackError if the folder holds the result of another task.
        """
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        result: dict[str, Any] = json.loads(path.read_bytes())
        if result["digest"] != self.digest:
            raise PretrackError(
                f"{self.folder} holds the result of other settings: delete that folder, or set "
                "another 'out' for the experiment"
            )
        return result

    def write(self) -> None:
        """Write task.json."""
        text = json.dumps({"digest": self.digest, **self.document}, indent=1)
        atomic_write(self.folder / "task.json", text.encode())


def start_task(experiment: Experiment) -> Task:
    """Return the task that makes, or takes, the start weights, and scores them."""
    folder, start = experiment.out / "start", experiment.start
    values = merged(experiment.train, start.settings)
    settings = None
    if start.weights is None:
        settings = _run_settings(values, folder, seed=0)
    return Task(
        name="start",
        folder=folder,
        settings=settings,
        weights=start.weights or "",
        scored=experiment.evaluation,
        curve=experiment.validation,
        metrics=_metrics(experiment),
        controls=True,
        given_weights=start.weights,
    )


def start_weights(experiment: Experiment) -> str:
    """Return the weights that arms start from."""
    if experiment.start.weights is not None:
        return experiment.start.weights
    settings = start_task(experiment).settings
    assert settings is not None
    return str(weights_path(experiment.out / "start", settings["run"]["steps"]))


def rate_tasks(experiment: Experiment) -> dict[str, dict[float, list[Task]]]:
    """Return the trials of learning rates: objective → rate → one per condition.

    Empty if there is but one rate.
    """
    rates = experiment.rates
    if len(rates.tried) == 1:
        return {}
    tasks: dict[str, dict[float, list[Task]]] = {}
    for objective in dict.fromkeys(arm.objective for arm in experiment.arms.values()):
        arms = [name for name, arm in experiment.arms.items() if arm.objective == objective]
        conditions = {experiment.arms[name].condition: name for name in arms}
        wanted = [name for name in rates.conditions if name in conditions] or list(conditions)
        tasks[objective] = {
            rate: [_rate_task(experiment, conditions[condition], rate) for condition in wanted]
            for rate in rates.tried
        }
    return tasks


def _rate_task(experiment: Experiment, arm: str, rate: float) -> Task:
    """Return the trial of a learning rate for an arm."""
    folder = experiment.out / "rates" / f"{file_name(arm)}-{rate:g}"
    own: Values = {"optim": {"lr": rate}, "run": {"export_every": None}}
    if experiment.rates.steps is not None:
        own["run"]["steps"] = experiment.rates.steps
    values = merged(arm_values(experiment, arm), own)
    weights = start_weights(experiment)
    return Task(
        name=f"{arm}, rate {rate:g}",
        folder=folder,
        settings=_run_settings(values, folder, experiment.rates.seed, weights),
        weights=weights,
        scored=experiment.validation,
        curve=None,
        metrics={experiment.endpoint: _metrics(experiment)[experiment.endpoint]},
        given_weights=experiment.start.weights,
    )


def arm_task(experiment: Experiment, arm: str, seed: int, rate: float) -> Task:
    """Return the run of an arm with a seed and the learning rate of its objective."""
    folder = experiment.out / "arms" / f"{file_name(arm)}-{seed}"
    values = merged(arm_values(experiment, arm), {"optim": {"lr": rate}})
    weights = start_weights(experiment)
    return Task(
        name=f"{arm}, seed {seed}",
        folder=folder,
        settings=_run_settings(values, folder, seed, weights),
        weights=weights,
        scored=experiment.evaluation,
        curve=experiment.validation,
        metrics=_metrics(experiment),
        given_weights=experiment.start.weights,
    )


def file_name(name: str) -> str:
    """Return a name that can be part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")


def _run_settings(values: Values, folder: Path, seed: int, weights: str | None = None) -> Values:
    """Return a run's whole settings as JSON values."""
    if weights is not None:
        values = merged(values, {"model": {"weights": weights}})
    settings = training_settings(values, folder, seed, where=f"the run {folder}")
    document: Values = settings.model_dump(mode="json")
    return document


def _content(weights: str) -> str:
    """Return the digest of a weight file, FILE or FILE:PART. Raises PretrackError."""
    path, _ = split_part(weights)
    try:
        return _digest(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise PretrackError(
            f"'start.weights' names {path}, which cannot be read ({error.strerror}): give a "
            "weight file"
        ) from error


@cache
def _digest(path: Path, changed_ns: int) -> str:
    """Return the SHA-256 of a file that was changed at a time; all tasks share one reading."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _metrics(experiment: Experiment) -> dict[str, Any]:
    return {name: metric.model_dump(mode="json") for name, metric in experiment.metrics.items()}
