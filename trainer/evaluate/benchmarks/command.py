"""The public benchmarks as commands. Their options are the fields of their settings; imports no torch."""

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
    SpairSettings,
)
from trainer.evaluate.options import WHERE, Device, Models, OutFolder, unwrapped


@dataclass(frozen=True)
class Benchmark:
    """What the command line knows of a benchmark; `benchmarks/run.py` has the function behind its name.

    dense: it takes the features of four blocks for a probe, which are always from before the final norm
    """

    name: str
    help: str
    settings: type[Settings]
    dense: bool = False


BENCHMARKS = (
    Benchmark(
        "spair", "Keypoints of SPair-71k, found on other objects of their class.", SpairSettings
    ),
    Benchmark("navi", "Points on objects of NAVI, found in other photographs.", NaviSettings),
    Benchmark("navi-depth", "Depth of NAVI's objects, by a DPT probe.", ProbeSettings, dense=True),
    Benchmark(
        "navi-normals",
        "Surface normals of NAVI's objects, by a DPT probe.",
        ProbeSettings,
        dense=True,
    ),
    Benchmark("voc-clusters", "PASCAL VOC's classes, by k-means.", ClusteringSettings),
    Benchmark(
        "voc-retrieval", "PASCAL VOC's classes, by the nearest labelled patches.", RetrievalSettings
    ),
)

_DETAILS = """Prints a table per model, how sure the differences are, and what papers report.

A first look takes minutes with fewer and smaller images, such as --size 224 --pairs 20. The first
model is the base that the others are compared with, by a paired bootstrap over image pairs or
photographs. It takes these as independent; pairs that share a photograph, and photographs of one
object, are not, so intervals are somewhat too narrow."""

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
    """The command of a benchmark: a function whose signature Typer reads its options from."""

    def run(root: Path, model: list[str], out: Path, device: str | None, **options: Any) -> None:
        final_norm = options.pop("final_norm", False)
        settings = given_settings(benchmark.settings, options)
        from trainer.evaluate.benchmarks.run import run_benchmark

        run_benchmark(
            benchmark.name, root, settings, model, device=device, out=out, final_norm=final_norm
        )

    shared = {"root": Root, "model": Models, "out": OutFolder}
    optional: dict[str, tuple[Any, Any]] = {"device": (Device, None)}
    if not benchmark.dense:
        optional["final_norm"] = (FinalNorm, False)
    for name, field in benchmark.settings.model_fields.items():
        optional[name] = (_option(name, field), _text(field.default))
    keyword = inspect.Parameter.KEYWORD_ONLY
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(inspect.Parameter(name, keyword, annotation=kind) for name, kind in shared.items()),
            *(
                inspect.Parameter(name, keyword, annotation=kind, default=default)
                for name, (kind, default) in optional.items()
            ),
        ]
    )
    run.__annotations__ = {}  # Typer would prefer the annotations above to those of the signature
    return run


def _option(name: str, field: FieldInfo) -> Any:
    """A setting as an option. Values stay text: `check_settings` refuses wrong ones in a sentence."""
    return Annotated[
        str | None,
        typer.Option(
            f"--{name.replace('_', '-')}",
            metavar=_metavar(field),
            help=" ".join((field.description or "").split()),
        ),
    ]


def _metavar(field: FieldInfo) -> str:
    """What a value looks like: `probe3d|centre`, `true|false`, `VALUE,...` or `VALUE`."""
    if isinstance(field.default, bool):
        return "true|false"
    if isinstance(field.default, tuple):
        return "VALUE,..."
    choices = get_args(field.annotation) if isinstance(field.default, str) else ()
    return "|".join(choices) or "VALUE"


def _text(default: Any) -> str | None:
    """A default as a user would write it; None where there is none."""
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
    app.command(_benchmark.name, help=unwrapped(f"{_benchmark.help}\n\n{_DETAILS}"), epilog=WHERE)(
        _command(_benchmark)
    )
