"""The arguments and options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.errors import PretrackError

if TYPE_CHECKING:
    from pipeline.config import BuildSettings
    from shards.files import Location

Config = Annotated[Path, typer.Argument(help="A YAML config, such as configs/demo.yaml.")]
ConfigOrOut = Annotated[str, typer.Argument(help="A YAML config, or an output folder or its URL.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change: key=value, such as tracks.grid=24.")
]
Stored = Annotated[
    bool,
    typer.Option(
        "--stored",
        help="Take the videos from the current snapshot, to re-track them without the sources.",
    ),
]
RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed",
        help="Retry everything that failed, for any reason; for files that were repaired in place.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON for programs instead of tables for people.")
]
SnapshotName = Annotated[
    str | None,
    typer.Option("--snapshot", help="A snapshot, such as 000001; by default the current one."),
]
TrainFrames = Annotated[
    int,
    typer.Option(
        help="Frames per training sample (data.frames): tracks that none can use are named.", min=2
    ),
]
TrainStep = Annotated[
    int, typer.Option(help="Step between the frames of a training sample (data.step).", min=0)
]


def settings_of(config: Path, overrides: list[str] | None) -> BuildSettings:
    """Load the settings of a config. Raises SettingsError."""
    from manifests.settings import load_settings
    from pipeline.config import BuildSettings

    return load_settings(BuildSettings, config, overrides or [])


def out_of(where: str, overrides: list[str] | None = None) -> Location:
    """Return an output folder, given as it is or by a config's `out`. Raises PretrackError."""
    from shards.files import parse_location

    folder = parse_location(where)
    if isinstance(folder, Path) and not folder.is_dir():
        return settings_of(folder, overrides).out
    if overrides:
        raise PretrackError(
            f"overrides ({' '.join(overrides)}) need a config, and {where} is a folder"
        )
    return folder
