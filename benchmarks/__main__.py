"""The benchmarks that a CPU can run, one after the other: `python -m benchmarks FOLDER [--only NAME ...]`. It takes some hours.

What each prints goes to FOLDER/NAME.md, under its command, the commit, the machine and how busy that was. Needs the
`dev` extra, and what `make demo` leaves behind for `scaling`. Two are run by themselves: `decoders` wants a folder of videos, and
`objectives` a build and hours more.
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
    "step": "--backbone dinov2_reg_small --clips 2 --size 112 --rounds 3",
    "scaling": "demo/shards --steps 8",
    "tap": "--clips 4",
    "plan": "",
    "jpeg": "",
    "loader": "",
    "overhead": "",
    "cotracker3": "--frames 8 --grid 16 --rounds 2",
}
"""Short ones first; the arguments are those of the tables in README.md, but for `plan --largest` and one round of `scaling`."""


def run(name: str) -> tuple[str, bool]:
    """What a benchmark prints, as a section of Markdown, and whether it came to its end."""
    arguments = ["-m", f"benchmarks.{name}", *shlex.split(COMMANDS[name])]
    begun, busy = time.monotonic(), os.getloadavg()[0]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    took = duration(time.monotonic() - begun)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    where = f"{os.cpu_count()}-core {platform.machine()}, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    head = f"## `{shlex.join(['python', *arguments])}`\n\nCommit {commit}; {where}; load {busy:.1f} before; took {took}.\n\n"
    end = (
        ""
        if done.returncode == 0
        else f"\nIt ended with {done.returncode}:\n\n```\n{done.stderr[-2000:]}\n```\n"
    )
    return head + done.stdout + end, done.returncode == 0


def main(folder: Path, names: list[str]) -> int:
    """Runs them; 1 if one fails."""
    failed = []
    for name in names:
        text, ended = run(name)
        atomic_write(folder / f"{name}.md", text.encode())
        print(text, flush=True)
        if not ended:
            failed.append(name)
    if failed:
        print(f"did not come to their end: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="NAME"
    )
    given = parser.parse_args()
    raise SystemExit(main(given.folder, given.only))
