"""Do one task of an experiment, in a process of its own.

It trains, or resumes training, scores all weights that the run exported, and writes
FOLDER/result.json. A task that another process works on is waited for.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from benchmarks.ablation.experiment import HeldOutSettings, MetricSettings
from benchmarks.ablation.scoring import Scorer
from shards.errors import exit_on_errors
from shards.files import atomic_write
from trainer.config import TrainSettings
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.results import plain
from trainer.export import exported_weights
from trainer.step_record import DivergedError
from trainer.train import train

PROGRAM = "objectives"
"""The name before an error's sentence."""


def work(folder: Path) -> None:
    """Do the task of a folder as the whole work of this process, which prints to FOLDER/log.txt."""
    with open(folder / "log.txt", "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with exit_on_errors(PROGRAM, extra="train", interrupted="stopped."):
        do_task(folder)


def do_task(folder: Path) -> None:
    """Do the task of a folder, unless it is done."""
    task = json.loads((folder / "task.json").read_bytes())
    # A run whose parent was killed may still be at work in this folder.
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "result.json"
        if done.is_file() and json.loads(done.read_bytes())["digest"] == task["digest"]:
            return
        result = {"digest": task["digest"], **train_and_score(task, folder)}
        atomic_write(done, json.dumps(plain(result), allow_nan=False).encode())


def train_and_score(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the scores of a run (`score_task`) and its seconds; or why it `diverged`."""
    started = time.perf_counter()
    if task["settings"] is not None:
        try:
            train(TrainSettings.model_validate(task["settings"]))
        except DivergedError as error:
            # This says something of the arm, so it is a result. Other errors end the experiment.
            return {"diverged": str(error)}
    return {"seconds": time.perf_counter() - started, **score_task(task, folder)}


def score_task(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Score the last weights (`final`), and all that a run exported (`curve`: step → scores)."""
    # A run's export before its first step is what it started from.
    exports = {0: task["weights"]}
    if task["settings"] is not None:
        exports = {int(path.stem.split("_")[1]): str(path) for path in exported_weights(folder)}
    models = {step: load_evaluated_model("model", where) for step, where in exports.items()}
    last = models[max(models)]
    # What needs no training is the same for all tasks: the start's has it.
    controls = task["controls"]
    result = {"final": make_scorer(task, task["scored"], last.size).score(last, controls)}
    if task["curve"] is not None:
        scorer = make_scorer(task, task["curve"], last.size)
        result["curve"] = {str(step): scorer.score(it, False) for step, it in models.items()}
    return result


def make_scorer(task: dict[str, Any], clips: dict[str, Any], image_size: int) -> Scorer:
    """Read clips to score on."""
    metrics = {name: MetricSettings.model_validate(it) for name, it in task["metrics"].items()}
    return Scorer(HeldOutSettings.model_validate(clips), metrics, image_size)
