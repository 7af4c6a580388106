"""The public benchmarks as commands; their options are the fields of their settings. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic.fields import FieldInfo

from manifests.settings import Settings, check_settings
from trainer.evaluate.benchmarks.settings import (
    ClusteringSettings,
    NaviSettings,
    ProbeSettings,
    RetrievalSettings,
    SetNormalsSettings,
    SpairSettings,
)
from trainer.evaluate.options import WHERE, Device, Models, OutFolder, unwrapped


@dataclass(frozen=True)
class Benchmark:
    """What the command line shows of a benchmark; `run.py` has the function behind its name.

    quick: options for a first look that takes minutes
    dense: trains a probe on the features of four blocks, always from before the final norm
    items: what comparisons are paired over; "" for a metric over all images together
    """

    name: str
    help: str
    settings: type[Settings]
    quick: str
    items: str
    dense: bool = False


BENCHMARKS = (
    Benchmark(
        name="spair",
        help="Keypoints of SPair-71k, found on other objects of their class.",
        settings=SpairSettings,
        quick="--size 224 --pairs 20",
        items="image pairs",
    ),
    Benchmark(
        name="navi",
        help="Points on objects of NAVI, found in other photographs.",
        settings=NaviSettings,
        quick="--size 224 --pairs 20",
        items="image pairs",
    ),
    Benchmark(
        name="navi-depth",
        help="Depth of NAVI's objects, by a DPT probe.",
        settings=ProbeSettings,
        quick="--size 224 --steps 100",
        items="photographs",
        dense=True,
    ),
    Benchmark(
        name="navi-normals",
        help="Surface normals of NAVI's objects, by a DPT probe.",
        settings=ProbeSettings,
        quick="--size 224 --steps 100",
        items="photographs",
        dense=True,
    ),
    Benchmark(
        name="navi-set-normals",
        help="Surface normals of NAVI's objects in the axes of a set's first view, by a DPT probe.",
        settings=SetNormalsSettings,
        quick="--size 224 --every 4 --steps 100",
        items="photographs",
        dense=True,
    ),
    Benchmark(
        name="voc-clusters",
        help="PASCAL VOC's classes, by k-means.",
        settings=ClusteringSettings,
        quick="--images 100",
        items="",
    ),
    Benchmark(
        name="voc-retrieval",
        help="PASCAL VOC's classes, by the nearest labelled patches.",
        settings=RetrievalSettings,
        quick="--images 100",
        items="",
    ),
)

_COMPARED = """The first model is the base. The others are compared with it by paired tests over
{items}; p-values are corrected for the number of metrics. The tests take these as independent;
pairs that share a photograph, and photographs of one object, are not, so intervals are somewhat too
narrow."""


def _help(benchmark: Benchmark) -> str:
    """Return the help page of a benchmark, up to its options."""
    paragraphs = [
        benchmark.help,
        "Prints a table per model, and published results where they are comparable. "
        f"For a first look in minutes: {benchmark.quick}.",
    ]
    if benchmark.items:
        paragraphs.append(_COMPARED.format(items=benchmark.items))
    return unwrapped("\n\n".join(paragraphs))


Root = Annotated[
    Path, typer.Argument(metavar="ROOT", help="The folder that the dataset unpacks to.")
]
FinalNorm = Annotated[
    bool,
    typer.Option(
        "--final-norm",
        help="Take features after the final norm, as training does. Probe3D's are before it.",
    ),
]

app = typer.Typer()


def _command(benchmark: Benchmark) -> Callable[..., None]:
    """Make the command of a benchmark: a function with the signature that Typer reads."""

    def run(root: Path, model: list[str], out: Path, device: str | None, **options: Any) -> None:
        final_norm = options.pop("final_norm", False)
        settings = given_settings(benchmark.settings, options)
        from trainer.evaluate.benchmarks.run import run_benchmark

        run_benchmark(
            benchmark.name, root, settings, model, device=device, out=out, final_norm=final_norm
        )

    required = {"root": Root, "model": Models, "out": OutFolder}
    optional: dict[str, tuple[Any, Any]] = {"device": (Device, None)}
    if not benchmark.dense:
        optional["final_norm"] = (FinalNorm, False)
    for name, field in benchmark.settings.model_fields.items():
        optional[name] = (_option(name, field), _text(field.default))
    parameters = [
        *(_parameter(name, kind, inspect.Parameter.empty) for name, kind in required.items()),
        *(_parameter(name, kind, default) for name, (kind, default) in optional.items()),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}  # Typer prefers these to the signature's
    return run


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)


def _option(name: str, field: FieldInfo) -> Any:
    """Make an option of a setting. Values stay text: `check_settings` refuses wrong ones."""
    return Annotated[
        str | None,
        typer.Option(
            f"--{name.replace('_', '-')}",
            metavar=_metavar(field),
            help=" ".join((field.description or "").split()),
        ),
    ]


def _metavar(field: FieldInfo) -> str:
    """Show what a value looks like: `probe3d|centre`, `true|false`, `VALUE,...` or `VALUE`."""
    if isinstance(field.default, bool):
        return "true|false"
    if isinstance(field.default, tuple):
        return "VALUE,..."
    choices = get_args(field.annotation) if isinstance(field.default, str) else ()
    return "|".join(choices) or "VALUE"


def _text(default: Any) -> str | None:
    """Return a default as a user would write it; None if there is none."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, bool):
        return str(default).lower()
    return None if default is None else str(default)


def given_settings(model: type[Settings], options: dict[str, str | None]) -> Settings:
    """Check the options' text. Raises SettingsError, in one sentence, for what does not fit."""
    given: dict[str, Any] = {name: text for name, text in options.items() if text is not None}
    for name, text in given.items():
        if isinstance(model.model_fields[name].default, tuple):
            given[name] = text.split(",")
    return check_settings(model, given, "options")


for _benchmark in BENCHMARKS:
    app.command(_benchmark.name, help=_help(_benchmark), epilog=WHERE)(_command(_benchmark))
