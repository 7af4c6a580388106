"""Run the benchmarks that need no GPU, one after the other. It takes some hours.

    python -m benchmarks FOLDER [--only NAME ...]

The output of each goes to FOLDER/NAME.md, below its command, the commit, the machine and its load.
Needs the `dev` extra; `scaling` also needs the results of `make demo`. Three benchmarks are not
included: `decoders` and `frames` need a folder of videos, and `objectives` an experiment and many
more hours.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from manifests.wording import duration
from shards.files import atomic_write

COMMANDS = {
    "installed": "",
    "exactness": "",
    "sorting": "",
    "device_trace": "",
    "step": "--backbone dinov2_reg_small --clips 2 --size 112 --rounds 3",
    "scaling": "demo/shards --steps 8",
    "tap": "--clips 4",
    "plan": "",
    "jpeg": "",
    "track_scores": "",
    "intervals": "",
    "scene_points": "",
    "scenes": "",
    "multiview": "",
    "geometry_tracker": "",
    "loader": "",
    "source_kinds": "",
    "overhead": "",
    "tracker_wait": "",
    "cotracker3": "--frames 8 --grid 16 --rounds 2",
    "tapir": "",
}
"""Arguments of each benchmark, short ones first. They are those of the tables in README.md, except
that `plan --largest` is left out."""


def run(name: str) -> tuple[str, bool]:
    """Run a benchmark; return its output as a section of Markdown, and whether it succeeded."""
    arguments = ["-m", f"benchmarks.{name}", *shlex.split(COMMANDS[name])]
    started, load = time.monotonic(), os.getloadavg()[0]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    took = duration(time.monotonic() - started)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = f"{os.cpu_count()}-core {platform.machine()}, Python {platform.python_version()}"
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    head = (
        f"## `{shlex.join(['python', *arguments])}`\n\n"
        f"Commit {commit}; {machine}, {now}; load {load:.1f} before; took {took}.\n\n"
    )
    end = (
        ""
        if done.returncode == 0
        else f"\nIt failed with exit status {done.returncode}:\n\n```\n{done.stderr[-2000:]}\n```\n"
    )
    return head + done.stdout + end, done.returncode == 0


def main(folder: Path, names: list[str]) -> int:
    """Run the benchmarks; return 1 if one fails, otherwise 0."""
    failed = []
    for name in names:
        text, succeeded = run(name)
        atomic_write(folder / f"{name}.md", text.encode())
        print(text, flush=True)
        if not succeeded:
            failed.append(name)
    if failed:
        print(f"these benchmarks failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="NAME"
    )
    given = parser.parse_args()
    raise SystemExit(main(given.folder, given.only))
