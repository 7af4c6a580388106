"""Parse the command lines of benchmarks: `--help` prints what a benchmark measures."""

from __future__ import annotations

import argparse
from pathlib import Path


def make_parser(name: str, document: str | None) -> argparse.ArgumentParser:
    """Make the parser of `python -m benchmarks.NAME`; its help begins with the docstring."""
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=document,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def existing_folder(text: str) -> Path:
    """Convert an argument to the path of a folder. Raises ArgumentTypeError if there is none."""
    if not (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no folder")
    return path


def existing_file(text: str) -> Path:
    """Convert an argument to the path of a file. Raises ArgumentTypeError if there is none."""
    if not (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(f"{text} is no file")
    return path
