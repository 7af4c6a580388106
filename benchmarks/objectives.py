"""Compare training objectives: run the arms of an experiment, and write its results.

    python -m benchmarks.objectives EXPERIMENT.yaml [--jobs 1] [--only ARM] [key=value ...]

It makes the start weights, tries learning rates on validation clips, trains every arm once per
seed, and scores all weights on held-out clips that no arm saw. OUT/results.html and OUT/results.md
(`out` of the experiment) have the table of all arms, each arm less its control with intervals over
sequences and seeds, and curves; they are written again after every run. Each run is a process of
its own. The same command goes on where it was stopped or killed.

`configs/evidence/` has experiments, `docs/evidence.md` says what they are for.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

from benchmarks.ablation.experiment import Experiment, load_experiment
from benchmarks.ablation.page import write_page
from benchmarks.ablation.plan import Task, arm_task, rate_tasks, start_task
from benchmarks.ablation.queue import TaskQueue
from benchmarks.ablation.results import START, Results, Scores, mean_of
from benchmarks.ablation.task import PROGRAM
from shards.errors import SettingsError, exit_on_errors
from trainer.evaluate.heldout.measures import METRICS
from trainer.evaluate.results import finite_mean


def run_experiment(experiment: Experiment, arms: list[str], jobs: int) -> Results:
    """Do all tasks that are not done yet, and write the results after each arm's run."""
    start, trials = start_task(experiment), rate_tasks(experiment)
    tried = [
        task
        for objective, by_rate in trials.items()
        for tasks in by_rate.values()
        for task in tasks
        if objective in {experiment.arms[arm].objective for arm in arms}
    ]
    runs = len(arms) * len(experiment.seeds)
    queue = TaskQueue(jobs, total=1 + len(tried) + runs)
    queue.run([start])
    queue.run(tried)
    # One seed after the other, so that an experiment that is stopped has whole comparisons.
    tasks = [
        arm_task(experiment, arm, seed, chosen_rate(experiment, trials, arm))
        for seed in experiment.seeds
        for arm in arms
    ]
    queue.run(tasks, after_each=lambda: write_page(read_results(experiment)))
    results = read_results(experiment)
    write_page(results)
    return results


def trial_means(
    experiment: Experiment, trials: dict[str, dict[float, list[Task]]], objective: str
) -> dict[float, float]:
    """Return rate → mean endpoint over the conditions of its trials.

    Rates with a trial that is not done, or that diverged, are left out.
    """
    means = {}
    for rate, tasks in trials.get(objective, {}).items():
        found = [task.result() for task in tasks]
        ends = [result["final"] for result in found if result and "final" in result]
        if len(ends) == len(tasks):
            means[rate] = finite_mean([mean_of(end, experiment.endpoint) for end in ends])
    return means


def chosen_rate(
    experiment: Experiment, trials: dict[str, dict[float, list[Task]]], arm: str
) -> float:
    """Return the learning rate of an arm's objective: the best on the validation clips."""
    means = trial_means(experiment, trials, experiment.arms[arm].objective)
    if not means:
        return experiment.rates.tried[0]
    measure = experiment.metrics[experiment.endpoint].measure
    lower = any(metric.measure == measure and metric.better == "lower" for metric in METRICS)
    return (min if lower else max)(means, key=lambda rate: means[rate])


def read_results(experiment: Experiment) -> Results:
    """Read the results of all tasks that are done."""
    trials = rate_tasks(experiment)
    found = start_task(experiment).result()
    objectives = dict.fromkeys(arm.objective for arm in experiment.arms.values())
    by_objective = {name: trial_means(experiment, trials, name) for name in objectives}
    results = Results(
        experiment=experiment,
        rates={
            arm.objective: chosen_rate(experiment, trials, name)
            for name, arm in experiment.arms.items()
        },
        trials={name: means for name, means in by_objective.items() if means},
        start=found["final"] if found else {},
        curves={START: {0: curve_of(found)}} if found else {},
    )
    for arm, settings in experiment.arms.items():
        for seed in experiment.seeds:
            result = arm_task(experiment, arm, seed, results.rates[settings.objective]).result()
            if result and "diverged" in result:
                results.diverged.append((arm, seed, result["diverged"]))
            elif result:
                results.arms.setdefault(arm, {})[seed] = result["final"]
                results.curves.setdefault(arm, {})[seed] = curve_of(result)
                results.seconds.setdefault(arm, {})[seed] = result["seconds"]
    return results


def curve_of(result: dict[str, Any]) -> dict[int, Scores]:
    """Return the scores of a task's result by step."""
    return {int(step): scores for step, scores in result["curve"].items()}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.objectives")
    parser.add_argument("experiment", type=Path, help="a YAML, such as configs/evidence/*.yaml")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--only", action="append", metavar="ARM", help="only this arm; repeatable")
    parser.add_argument("changes", nargs="*", metavar="key=value", default=[])
    return parser.parse_intermixed_args()


def chosen_arms(experiment: Experiment, only: list[str] | None) -> list[str]:
    """Return the arms to run. Raises SettingsError for one that the experiment does not have."""
    for name in only or ():
        if name not in experiment.arms:
            near = difflib.get_close_matches(name, experiment.arms, 1)
            hint = (
                f"did you mean '{near[0]}'?" if near else f"there are {', '.join(experiment.arms)}"
            )
            raise SettingsError(f"'--only' names the arm '{name}', which does not exist ({hint})")
    return [arm for arm in experiment.arms if only is None or arm in only]


def main() -> None:
    """Run an experiment, and say where its results are."""
    with exit_on_errors(
        PROGRAM, extra="train", interrupted="stopped: the same command goes on from here."
    ):
        arguments = parse_arguments()
        if arguments.jobs < 1:
            raise SettingsError("'--jobs' should be at least 1")
        experiment = load_experiment(arguments.experiment, arguments.changes)
        run_experiment(experiment, chosen_arms(experiment, arguments.only), arguments.jobs)
        print(f"results: {experiment.out / 'results.md'}")


if __name__ == "__main__":
    main()
