"""Run a benchmark: a table per model, differences with intervals, and published tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from manifests.settings import Settings
from trainer.evaluate.benchmarks.navi import evaluate_navi
from trainer.evaluate.benchmarks.navi_depth import evaluate_depth, evaluate_normals
from trainer.evaluate.benchmarks.navi_set_normals import evaluate_normals_in_sets
from trainer.evaluate.benchmarks.navi_sets import PAIRS, evaluate_as_pairs
from trainer.evaluate.benchmarks.published_tables import beside
from trainer.evaluate.benchmarks.settings import NaviSettings, SetNormalsSettings
from trainer.evaluate.benchmarks.spair import evaluate_spair
from trainer.evaluate.benchmarks.voc import evaluate_clustering, evaluate_retrieval
from trainer.evaluate.evaluated_model import EvaluatedModel, load_evaluated_models
from trainer.evaluate.features import level_features, patch_features
from trainer.evaluate.intervals import Better, Difference, corrected, difference
from trainer.evaluate.results import versions, write_results
from trainer.evaluate.sets.evaluation import has_controls, row_title
from trainer.evaluate.tables import table_of_differences


class Result(Protocol):
    """The result of a benchmark for one model; `str` of it is its table."""

    def to_json(self) -> dict[str, Any]:
        """Return settings, metrics and what they were computed from."""

    def by_item(self) -> dict[str, dict[str, float]]:
        """Return metrics that are means over image pairs or photographs: metric → item → value."""

    def paper_rows(self) -> dict[str, list[float]]:
        """Name the published tables that this result fits, each with its row."""


DENSE: dict[str, Callable[[Any, int, Path, Any], Result]] = {
    "navi-depth": evaluate_depth,
    "navi-normals": evaluate_normals,
}
"""Benchmarks that train a probe on the features of four blocks."""
PATCHES: dict[str, Callable[[Any, int, Path, Any], Result]] = {
    "spair": evaluate_spair,
    "navi": evaluate_navi,
    "voc-clusters": evaluate_clustering,
    "voc-retrieval": evaluate_retrieval,
}
"""Benchmarks on the patch features of the last block.

The arguments of both kinds are features, patch size in pixels, root folder and settings.
"""


def run_benchmark(
    name: str,
    root: Path,
    settings: Settings,
    models: Sequence[str],
    *,
    device: str | None,
    out: Path,
    final_norm: bool = False,
) -> None:
    """Print the tables of a benchmark and write OUT/NAME.json. Raises PretrackError.

    root:       the dataset's folder
    models:     the values of `--model`; the first is the base of the comparison
    final_norm: take patch features after the final norm; no effect on `DENSE` benchmarks
    """
    evaluated = load_evaluated_models(models, device)
    # A benchmark can take hours: log the progress.
    logging.getLogger("trainer.evaluate").setLevel(logging.INFO)
    results: dict[str, Result] = {}
    for model in evaluated:
        controls = has_controls(model, evaluated)
        rows: dict[str, Result] = {}
        if isinstance(settings, SetNormalsSettings):
            rows |= evaluate_normals_in_sets(model, root, settings, controls=controls)
        else:
            rows[""] = _evaluate(name, model, root, settings, final_norm)
        if isinstance(settings, NaviSettings) and controls:
            rows |= evaluate_as_pairs(model, root, settings, final_norm)
        for title, result in rows.items():
            results[row_title(model, title)] = result
            print(f"{row_title(model, title)}: {result}\n")
    base, *others = results
    compared = {other: differences(results[base], results[other]) for other in others}
    for other, by_metric in compared.items():
        if by_metric:
            print(table_of_differences(f"{other} less {base}", by_metric, ["of"], digits=3))
            print()
    for model in evaluated:
        of_model = differences_from_controls(model, results, base)
        for title, by_metric in of_model.items():
            print(table_of_differences(title, by_metric, ["of"], digits=3), end="\n\n")
        compared |= of_model
    for table in results[base].paper_rows():
        ours = {model: result.paper_rows()[table] for model, result in results.items()}
        print(beside(table, ours), end="\n\n")
    normed = final_norm and name not in DENSE
    values = {
        "settings": settings.model_dump(),
        "features": f"patch tokens {'after' if normed else 'before'} the final norm",
        "versions": versions(),
        "models": {model.name: model.to_json() for model in evaluated},
        "results": {model: result.to_json() for model, result in results.items()},
        "differences": {
            other: {metric: d.to_json() for metric, d in by_metric.items()}
            for other, by_metric in compared.items()
        },
    }
    print(f"results: {write_results(out, name, values)}")


def differences_from_controls(
    model: EvaluatedModel, results: Mapping[str, Result], base: str
) -> dict[str, dict[str, Difference]]:
    """Compare the views that a model encodes together with its other rows, by title.

    Empty for a model with one row. The row of the base is compared with it anyway.
    """
    rows = [row for row in results if row == model.name or row.startswith(f"{model.name}, ")]
    pairs = row_title(model, PAIRS[0].title)
    together = pairs if pairs in rows else model.name
    return {
        f"{together} less {row}": differences(results[row], results[together])
        for row in rows
        if row not in (together, base)
    }


def _evaluate(
    name: str, model: EvaluatedModel, root: Path, settings: Settings, final_norm: bool
) -> Result:
    if name in DENSE:
        return DENSE[name](level_features(model), model.patch, root, settings)
    return PATCHES[name](patch_features(model, final_norm), model.patch, root, settings)


def differences(base: Result, model: Result) -> dict[str, Difference]:
    """Compare a model with the base in every metric that is a mean over items that both have."""
    compared, better = {}, {}
    model_items = model.by_item()
    for metric, base_values in base.by_item().items():
        model_values = model_items[metric]
        items = [item for item in base_values if item in model_values]
        better[metric] = _better(metric)
        compared[metric] = difference(
            [base_values[item] for item in items],
            [model_values[item] for item in items],
            better[metric],
        )
    return corrected(compared, better)


def _better(metric: str) -> Better:
    return "lower" if metric.endswith("rmse") else "higher"
