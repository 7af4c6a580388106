"""The options that all evaluations share. Nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="NAME=WHERE",
        help="A model and a name for it. May be given several times: the others are compared with "
        "the first. WHERE is explained below.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Where models run, such as cpu or cuda:1.",
        show_default="cuda if there is a GPU, otherwise cpu",
    ),
]
OutFolder = Annotated[
    Path, typer.Option("--out", metavar="FOLDER", help="Folder for the results and pictures.")
]

Build = Annotated[str, typer.Argument(metavar="OUT", help="Output folder of a build, or its URL.")]
SnapshotName = Annotated[
    str | None,
    typer.Option("--snapshot", help="A snapshot, such as 000001.", show_default="the current one"),
]
Split = Annotated[str, typer.Option(help="Take clips of this split.")]
Where = Annotated[
    str, typer.Option(help="Take only clips for which this holds, as in 'data.where'.")
]
Clips = Annotated[int, typer.Option(help="Take at most this many clips.")]
Frames = Annotated[int, typer.Option(help="Frames per clip.")]
Step = Annotated[int, typer.Option(help="Stored frames from one of them to the next.")]
Grid = Annotated[int, typer.Option(help="Patches along a side of the image.")]
AllowOverlap = Annotated[
    bool,
    typer.Option(
        "--allow-overlap",
        help="Evaluate a model on footage that it was trained on; the results say so.",
    ),
]

WHERE = """WHERE is one of:

RUN: a training run's folder; its weights after the last step.

RUN:first: its weights before the first step.

FILE.safetensors: weights exported by a run, with their description beside them.

BACKBONE:FILE: a backbone by name, such as dinov2_reg_base, with weights from a file.

BACKBONE:FILE:PART: with those of one of several backbones in it, such as student.

BACKBONE:hub: a backbone with timm's weights.

BACKBONE:random: a backbone with random weights, the same every time.
"""
"""Epilog of every command. Typer joins the lines of a paragraph, hence the empty lines."""


def unwrapped(text: str) -> str:
    """Join the lines of each paragraph: Typer would keep the line breaks of all but the first."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
