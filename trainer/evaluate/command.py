"""The command `evaluate`: judge one or several backbones side by side.

`labelfree`, `probe`, `robustness` and `views` are defined here, the public benchmarks in
`benchmarks/command.py`. Neither this module nor `--help` imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from shards.errors import exit_on_errors
from shards.standard_streams import accept_any_text
from trainer.evaluate.options import (
    WHERE,
    AllowOverlap,
    Build,
    Clips,
    Device,
    Frames,
    Grid,
    Models,
    OutFolder,
    SnapshotName,
    Split,
    Step,
    Where,
    unwrapped,
)


class EvaluateGroup(TyperGroup):
    """The group of evaluations: adds the benchmarks on demand and turns errors into one sentence.

    A benchmark's options are made from its settings class, which needs pydantic. Programs that
    mount this group should not wait for that, so benchmarks are listed only on demand.
    """

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the program; its help, too, must print where the encoding is not UTF-8."""
        accept_any_text()
        return super().main(*args, **options)

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of all evaluations, in the order of the help page."""
        return [*super().list_commands(ctx), *_benchmark_commands()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of an evaluation, or None."""
        return super().get_command(ctx, cmd_name) or _benchmark_commands().get(cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Run an evaluation; errors that a user can act on become one sentence and status 1."""
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        program = "trainer" if ctx.parent is None else "pretrack"
        with exit_on_errors(program, extra="train", interrupted="stopped: nothing was written."):
            return super().invoke(ctx)


def _benchmark_commands() -> Mapping[str, Any]:
    """Return the commands of the public benchmarks by name."""
    from trainer.evaluate.benchmarks.command import app as benchmarks

    return typer.main.get_group(benchmarks).commands


app = typer.Typer(
    cls=EvaluateGroup,
    help="Judge backbones side by side, on held-out clips without labels and on benchmarks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


_LABEL_FREE = """Do features follow tracked points of held-out clips? Needs a build, no labels.

Every model sees the same frames and the same points, at the image size that gives it the same grid
of patches: with --grid 16, 224 pixels for patches of 14 and 256 for patches of 16. Metrics are
means over clips; they are also given by frame gap and source, by viewpoint of cameras and of points
where poses are stored, and for points on objects where masks are.

The first model is the base. The others are compared with it by paired tests over videos, each with
all its clips; p-values are corrected for the number of metrics. Three more columns say what these
clips are worth: a descriptor of raw pixels, the answer "it has not moved", and chance.

A model that was trained on the footage of a clip is refused, as far as its weights say what they
were trained on: those that pretrack exports do.

The tracks are a tracker's, and training on the same tracker's tracks may learn its mistakes:
confirm a gain by another evaluation. Clips of the sources `scenes` and `synthetic` have exact
tracks.
"""


@app.command(help=unwrapped(_LABEL_FREE), epilog=WHERE)
def labelfree(
    build: Build,
    model: Models,
    out: OutFolder,
    device: Device = None,
    snapshot: SnapshotName = None,
    split: Split = "eval",
    where: Where = "",
    clips: Clips = 32,
    frames: Frames = 4,
    step: Step = 10,
    grid: Grid = 16,
    pictures: Annotated[int, typer.Option(help="Clips to draw.")] = 3,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Score models on held-out clips: `_LABEL_FREE` is the help page."""
    from trainer.evaluate.heldout.label_free import HeldOutOptions, evaluate_label_free

    evaluate_label_free(
        HeldOutOptions(
            build=build,
            snapshot=snapshot,
            split=split,
            where=where,
            clips=clips,
            frames=frames,
            step=step,
            grid=grid,
            pictures=pictures,
        ),
        model,
        device=device,
        out=out,
        allow_overlap=allow_overlap,
    )


_PROBE = """How much of depth and surface normals is in features? Needs clips with depth maps.

A ridge regression reads log depth and normals from the frozen features of patches. It is
cross-validated over sequences, so none is predicted by a regression that saw it. Depth is compared
up to the scale of each frame. Minutes on a CPU; the DPT probes of NAVI take hours.

The first model is the base. The others are compared with it by paired tests over videos, each with
all its clips; p-values are corrected for the number of metrics. Two more columns are probed in the
same way: a descriptor of raw pixels, and the position in the picture alone.
"""


@app.command(help=unwrapped(_PROBE), epilog=WHERE)
def probe(
    build: Build,
    model: Models,
    out: OutFolder,
    device: Device = None,
    snapshot: SnapshotName = None,
    split: Split = "eval",
    where: Where = "",
    clips: Clips = 100,
    frames: Frames = 4,
    step: Step = 10,
    grid: Grid = 16,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Probe models on clips with depth maps: `_PROBE` is the help page."""
    from trainer.evaluate.heldout.label_free import HeldOutOptions
    from trainer.evaluate.heldout.probe import evaluate_probe

    evaluate_probe(
        HeldOutOptions(
            build=build,
            snapshot=snapshot,
            split=split,
            where=where,
            clips=clips,
            frames=frames,
            step=step,
            grid=grid,
        ),
        model,
        device=device,
        out=out,
        allow_overlap=allow_overlap,
    )


_ROBUSTNESS = """Do models find points in other light and beside occluders? Needs rendered scenes.

The sources of the build are the conditions: the same rendered scenes in other light, or with bodies
between the camera and the objects, as configs/robustness.yaml builds them. Every model is scored on
the same points under each condition, those that all conditions show, so figures differ by what
pictures look like and by nothing else.

The conditions are compared with `--reference`, and the models with the first one, by paired tests
over videos; p-values are corrected for the number of conditions. Raw pixels, "it has not moved" and
chance are scored beside the models.

Models that were trained on the footage of a clip are refused, as by `labelfree`.
"""


@app.command(help=unwrapped(_ROBUSTNESS), epilog=WHERE)
def robustness(
    build: Build,
    model: Models,
    out: OutFolder,
    reference: Annotated[
        str, typer.Option(metavar="SOURCE", help="The condition that others are compared with.")
    ] = "normal",
    device: Device = None,
    snapshot: SnapshotName = None,
    split: Split = "eval",
    where: Where = "",
    clips: Annotated[int, typer.Option(help="Take at most this many clips per condition.")] = 100,
    frames: Frames = 4,
    step: Step = 10,
    grid: Grid = 16,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Score models under several conditions: `_ROBUSTNESS` is the help page."""
    from trainer.evaluate.heldout.label_free import HeldOutOptions
    from trainer.evaluate.heldout.robustness import evaluate_robustness

    evaluate_robustness(
        HeldOutOptions(
            build=build,
            snapshot=snapshot,
            split=split,
            where=where,
            clips=clips,
            frames=frames,
            step=step,
            grid=grid,
        ),
        reference,
        model,
        device=device,
        out=out,
        allow_overlap=allow_overlap,
    )


_VIEWS = """Do multi-view models find points in other views? Needs a build, no labels.

Points of a clip's anchor frame are searched in its other frames, as the most similar patch. The
table has the mean error by the angle between the optical axes. A multi-view model is encoded in
several ways: all views together, the anchor with one other view, each view alone, without cameras,
with the cameras of other views, and with grey images, which shows what rays alone find. The last
row is the answer "it has not moved".

The first model is the base, without controls of its own if there are others. Models are compared
with it, and multi-view models with their controls, by paired tests over videos; p-values are
corrected for the number of comparisons.

Clips without cameras are left out if any clip has cameras. Models that were trained on the footage
of a clip are refused, as by `labelfree`.
"""


@app.command(help=unwrapped(_VIEWS), epilog=WHERE)
def views(
    build: Build,
    model: Models,
    out: OutFolder,
    device: Device = None,
    snapshot: SnapshotName = None,
    split: Split = "eval",
    where: Where = "",
    clips: Clips = 32,
    frames: Frames = 4,
    step: Step = 10,
    grid: Grid = 16,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Score models on sets of views: `_VIEWS` is the help page."""
    from trainer.evaluate.heldout.label_free import HeldOutOptions
    from trainer.evaluate.sets.evaluation import evaluate_views

    evaluate_views(
        HeldOutOptions(
            build=build,
            snapshot=snapshot,
            split=split,
            where=where,
            clips=clips,
            frames=frames,
            step=step,
            grid=grid,
        ),
        model,
        device=device,
        out=out,
        allow_overlap=allow_overlap,
    )
