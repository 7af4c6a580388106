"""What the page says of arms is worked out from their scores: differences, p-values and rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.ablation.experiment import Experiment, load_experiment
from benchmarks.ablation.page import page_parts
from benchmarks.ablation.plan import rate_tasks
from benchmarks.ablation.results import START, Results, Scores
from benchmarks.objectives import chosen_rate
from trainer.evaluate.heldout.scoring import CHANCE, RAW, STATIC

FIRST_LOOK = Path(__file__).parents[3] / "configs" / "evidence" / "first_look.yaml"
ENDPOINT = "objects at 40-70°"


def scores(*values: float | None) -> Scores:
    """Scores of a model, the same in every metric: one value per sequence."""
    by_sequence = {f"scene {i}": value for i, value in enumerate(values)}
    metrics = ("objects at 0-40°", "objects at 70-180°", "told apart at 40-70°")
    of_model = dict.fromkeys((ENDPOINT, *metrics), by_sequence)
    return dict.fromkeys(("model", RAW, STATIC, CHANCE), of_model) | {"effective_rank": 5.0}


@pytest.fixture
def results() -> Results:
    """Two seeds in common, which differ by nothing in the comparisons, on eight of nine scenes."""
    same = [0.5] * 8
    gains = [0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17]
    swings = [0.1, -0.1, 0.12, -0.12, 0.14, -0.14, 0.16, -0.15]
    arms = {}
    for objective, changes in {
        "info_nce": gains,
        "spearman": [-gain for gain in gains],
        "published": swings,
    }.items():
        ours = [value + change for value, change in zip(same, changes, strict=True)]
        arms[f"{objective}, tracks"] = {seed: scores(*ours, 0.9) for seed in (1, 2)}
        arms[f"{objective}, same"] = {seed: scores(*same, None) for seed in (2, 1)}
    arms["info_nce, tracks"][3] = scores(*[0.0] * 9)  # its control has no third seed
    curve = {step: scores(0.1 + step / 1000) for step in range(0, 401, 50)}
    return Results(
        experiment=load_experiment(FIRST_LOOK, []),
        rates=dict.fromkeys(("continued pretraining", "published", "spearman", "info_nce"), 1e-4),
        trials={},
        start=scores(*same, None),
        arms=arms,
        curves={name: {0: curve} for name in (START, *arms)},
        seconds={arm: dict.fromkeys(by_seed, 60.0) for arm, by_seed in arms.items()},
    )


def test_an_arm_less_its_control_with_p_values_corrected_for_the_rows(results: Results) -> None:
    """Eight scenes of one sign have p = 2 / 256, which counts three times in three rows."""
    rows = {row[0]: row[1:] for row in next(page_parts(results)).rows}
    assert list(rows) == ["published, tracks", "spearman, tracks", "info_nce, tracks"]
    control, sequences, seeds, difference, interval, p, verdict = rows["info_nce, tracks"]
    assert (control, sequences, seeds, difference) == ("info_nce, same", "8", "2", "+13.50")
    assert (p, verdict) == ("0.023", "higher")
    low, high = (float(end) for end in interval.split(" to "))
    assert 10 < low < 13.5 < high < 17
    assert rows["spearman, tracks"][3] == "-13.50"
    assert rows["spearman, tracks"][5:] == ("0.023", "lower")
    assert rows["published, tracks"][6] == "not distinguishable from 0"


def test_means_of_arms_have_the_standard_deviation_over_seeds(results: Results) -> None:
    """Of 0.2 and 0.4 it is 0.1414; the start weights have none."""
    results.arms["spearman, same"] = {
        1: scores(*[0.1, 0.3] * 4, None),
        2: scores(*[0.4] * 9),
    }
    [part] = [part for part in page_parts(results) if part.title == "All arms"]
    rows = {row[0]: row[1:] for row in part.rows}
    assert rows["spearman, same"][0] == "30.00 ± 14.14"
    assert rows["spearman, same"][-2:] == ("5.0", "1 min")
    assert (rows[START][0], rows[START][-2]) == ("50.00", "5.0")


def test_what_the_last_quarter_of_the_start_added_is_said(results: Results) -> None:
    [part] = [part for part in page_parts(results) if part.title == "Start weights by step"]
    assert part.note.endswith("The last quarter of the steps added +10.00 points.")


def with_trials(folder: Path, *changes: str) -> Experiment:
    """An experiment whose trials of `info_nce` are done: by rate, on tracks and on the control."""
    experiment = load_experiment(FIRST_LOOK, [f"out={folder}", *changes])
    found = {1e-4: (0.5, 0.1), 1e-3: (0.35, 0.35)}
    for rate, tasks in rate_tasks(experiment)["info_nce"].items():
        for task, value in zip(tasks, found[rate], strict=True):
            task.folder.mkdir(parents=True)
            result = {"digest": task.digest, "final": scores(value)}
            (task.folder / "result.json").write_text(json.dumps(result))
    return experiment


def test_the_rate_with_the_best_mean_over_conditions_is_taken(tmp_path: Path) -> None:
    """Of an error the best is the lowest."""
    found = with_trials(tmp_path / "found")
    assert chosen_rate(found, rate_tasks(found), "info_nce, tracks") == 1e-3
    error = with_trials(tmp_path / "error", f"metrics.{ENDPOINT}.measure=city_block")
    assert chosen_rate(error, rate_tasks(error), "info_nce, tracks") == 1e-4
