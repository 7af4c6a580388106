"""Public benchmarks as commands: a table for each model, how sure the differences are, and what papers print.

    python -m trainer.evaluate spair SPair-71k --model base=runs/a:first --model trained=runs/a --out runs/a/evaluation

A first look takes minutes with fewer and smaller images: `--size 224 --pairs 20`. The first model is the base that the others are
compared with, by a paired bootstrap over pairs of images, or over photographs. It takes these as independent; pairs that share a
photograph, and photographs of one object, are not, so intervals are somewhat too narrow.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from manifests.settings import Settings, check_settings
from trainer.evaluate.benchmarks.navi import NaviSettings, evaluate_navi
from trainer.evaluate.benchmarks.navi_depth import ProbeSettings, evaluate_depth, evaluate_normals
from trainer.evaluate.benchmarks.published_tables import beside
from trainer.evaluate.benchmarks.spair import SpairSettings, evaluate_spair
from trainer.evaluate.benchmarks.voc import (
    ClusteringSettings,
    RetrievalSettings,
    evaluate_clustering,
    evaluate_retrieval,
)
from trainer.evaluate.bootstrap import Difference, difference
from trainer.evaluate.evaluated_model import add_model_arguments, load_evaluated_models
from trainer.evaluate.features import level_features, patch_features
from trainer.evaluate.report import table_of_differences
from trainer.evaluate.results import versions, write_results


class Result(Protocol):
    """What a benchmark gives for a model; `str` of it is its table."""

    def to_json(self) -> dict[str, Any]:
        """Settings, figures and what they are made of."""

    def by_item(self) -> dict[str, dict[str, float]]:
        """Figures that are means over pairs or photographs: the value of each, by its name."""

    def paper_rows(self) -> dict[str, list[float]]:
        """The published tables (`trainer.evaluate.benchmarks.published_tables`) that a row of ours fits, and that row."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as a command: its name, what its settings are, and how it scores features of patches of so many pixels.

    `levels`: it takes the features of four blocks, which are always from before the final norm.
    """

    name: str
    help: str
    settings: type[Settings]
    evaluate: Callable[[Any, int, Path, Any], Result]
    levels: bool = False


BENCHMARKS = (
    Benchmark(
        "spair",
        "keypoints of SPair-71k, found on other objects of their class",
        SpairSettings,
        evaluate_spair,
    ),
    Benchmark(
        "navi", "places on objects of NAVI, found in other photographs", NaviSettings, evaluate_navi
    ),
    Benchmark(
        "navi-depth",
        "depth of NAVI's objects, by a DPT probe",
        ProbeSettings,
        evaluate_depth,
        levels=True,
    ),
    Benchmark(
        "navi-normals",
        "surface normals of NAVI's objects, by a DPT probe",
        ProbeSettings,
        evaluate_normals,
        levels=True,
    ),
    Benchmark(
        "voc-clusters", "PASCAL VOC's classes, by k-means", ClusteringSettings, evaluate_clustering
    ),
    Benchmark(
        "voc-retrieval",
        "PASCAL VOC's classes, by the nearest labelled patches",
        RetrievalSettings,
        evaluate_retrieval,
    ),
)


def add_command(commands: Any) -> None:
    """Adds all public benchmarks to the command line."""
    for benchmark in BENCHMARKS:
        parser = commands.add_parser(benchmark.name, help=benchmark.help, description=__doc__)
        parser.add_argument(
            "root", type=Path, metavar="ROOT", help="the folder that the dataset unpacks to"
        )
        add_model_arguments(parser)
        if not benchmark.levels:
            parser.add_argument(
                "--final-norm",
                action="store_true",
                help="features after the final norm, as in training; Probe3D's are before it",
            )
        for name, field in benchmark.settings.model_fields.items():
            about = " ".join((field.description or "").split()).replace("%", "%%")
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                metavar="VALUE",
                help=f"{about} (default: {field.default})",
            )
        parser.set_defaults(run=partial(run, benchmark))


def run(benchmark: Benchmark, a: argparse.Namespace) -> None:
    """The command: prints the tables and writes FOLDER/BENCHMARK.json. Raises PretrackError."""
    settings = given_settings(benchmark.settings, a)
    subjects = load_evaluated_models(a.model, a.device)
    logging.getLogger("trainer.evaluate").setLevel(
        logging.INFO
    )  # a benchmark can take hours: tell how far it is
    normed = not benchmark.levels and a.final_norm
    results: dict[str, Result] = {}
    for s in subjects:
        features = level_features(s) if benchmark.levels else patch_features(s, normed)
        results[s.name] = benchmark.evaluate(features, s.patch, a.root, settings)
        print(f"{s.name}: {results[s.name]}\n")
    base, *others = results
    compared = {name: differences(results[base], results[name]) for name in others}
    for name, found in compared.items():
        if found:
            print(table_of_differences(f"{name} less {base}", found, ["of"], digits=3), end="\n\n")
    for table in results[base].paper_rows():
        print(
            beside(table, {name: result.paper_rows()[table] for name, result in results.items()}),
            end="\n\n",
        )
    values = {
        "settings": settings.model_dump(),
        "features": f"patch tokens {'after' if normed else 'before'} the final norm",
        "versions": versions(),
        "models": {subject.name: subject.described() for subject in subjects},
        "results": {name: result.to_json() for name, result in results.items()},
        "differences": {
            name: {key: d.to_json() for key, d in found.items()} for name, found in compared.items()
        },
    }
    print(f"results: {write_results(a.out, benchmark.name, values)}")


def given_settings(model: type[Settings], a: argparse.Namespace) -> Settings:
    """The options that were given, as settings. Raises SettingsError, in one sentence, for what does not fit."""
    given: Mapping[str, str] = {
        name: getattr(a, name) for name in model.model_fields if getattr(a, name) is not None
    }
    lists = {
        name: text.split(",")
        for name, text in given.items()
        if isinstance(model.model_fields[name].default, tuple)
    }
    return check_settings(model, {**given, **lists}, "options")


def differences(base: Result, model: Result) -> dict[str, Difference]:
    """How a model differs from the base in every figure that is a mean over items, over those that both have."""
    found, mine = {}, model.by_item()
    for name, theirs in base.by_item().items():
        both = [item for item in theirs if item in mine[name]]
        better = "lower" if name.endswith("rmse") else "higher"
        found[name] = difference([theirs[i] for i in both], [mine[name][i] for i in both], better)  # type: ignore[arg-type]
    return found
