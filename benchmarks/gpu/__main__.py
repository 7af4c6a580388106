"""Check and time everything that runs on a GPU, in less than ten minutes on one.

    python -m benchmarks.gpu [--json FILE] [--parts NAME ...]
    python -m benchmarks.gpu --small      on a CPU, in small, to see that everything runs

First each part checks that results are right, then it times. The table shows what each figure must
be; a line that misses is marked, and the command then exits with status 1. Each part runs in a new
process with a time limit, and a section of a part that fails is a marked line, so that a crash, a
full GPU or a missing library costs its own lines only.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO

import torch

from benchmarks.gpu.device import Device, in_another_process
from benchmarks.gpu.line import Line
from manifests.wording import duration
from shards.errors import PretrackError

PARTS = {
    "machine": 30,
    "losses": 100,
    "tracker": 140,
    "tapir": 120,
    "step": 90,
    "training": 120,
    "build": 150,
    "memory": 60,
    "loading": 60,
    "pictures": 45,
    "video": 45,
}
"""The parts, and after how many seconds each is stopped on a GPU."""
TOTAL_S = 580
"""After how many seconds the last part is stopped on a GPU."""
CPU_FACTOR = 5
"""How much longer a part may take on a CPU."""
GRACE_S = 10
"""How long a part that is stopped may take to end its own processes, such as Ray's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a part fails or a figure misses, otherwise 0."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--small", action="store_true", help="few and small inputs")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", choices=list(PARTS), help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.only:
        write_part(a.only, a.device, a.small, a.json)
        return 0
    try:
        device = "cpu" if a.device == "cpu" else in_another_process(a.device or "auto")
    except PretrackError as error:
        parser.error(f"{error} ('--small --device cpu' runs without a GPU)")
    if device == "cpu" and not a.small:
        parser.error("there is no GPU that torch can use: add --small to run it on the CPU")
    started = time.monotonic()
    print("| part | figure | value | must be | |\n|---|---|---|---|---|", flush=True)
    figures: dict[str, list[Line]] = {}
    for part in a.parts:
        limit = PARTS[part] * CPU_FACTOR
        if device == "cuda":
            limit = min(PARTS[part], round(TOTAL_S - (time.monotonic() - started)))
        figures[part] = run_part(part, device, a.small, limit)
        for line in figures[part]:
            mark = "**missed**" if line.missed else ("ok" if line.bounds else "")
            what = f"**failed**: {line.what}" if line.failed else line.what
            shown = line.shown.replace("|", "\\|")
            print(f"| {part} | {what} | {shown} | {line.bounds} | {mark} |")
        sys.stdout.flush()
        if a.json:  # after every part, so that a run that is stopped keeps what it has
            write_json(a.json, figures)
    lines = [line for of_part in figures.values() for line in of_part]
    failed = sum(line.failed for line in lines)
    missed = sum(line.missed for line in lines) - failed
    print(
        f"\n{len(lines) - failed} figures in {duration(time.monotonic() - started)}, "
        f"{missed} missed, {failed} could not be measured"
    )
    return int(bool(missed or failed))


def write_json(path: Path, figures: dict[str, list[Line]]) -> None:
    """Write the figures of each part, with what they must be and whether they miss it."""
    lines = {
        part: [asdict(line) | {"missed": line.missed} for line in lines]
        for part, lines in figures.items()
    }
    failed = [part for part, lines in figures.items() if any(line.failed for line in lines)]
    path.write_text(json.dumps({**lines, "failed": failed}, indent=1))


def run_part(part: str, device: Device, small: bool, limit: float) -> list[Line]:
    """Run a part in a new process for at most `limit` seconds; return its lines.

    If the part as a whole fails, the last one says why.
    """
    if limit <= 0:
        return [Line(part, f"not run: {TOTAL_S} s were over", failed=True)]
    print(f"{part}: at most {limit} s", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path, errors = Path(folder) / "lines.json", Path(folder) / "errors.txt"
        arguments = ["--only", part, "--device", device, "--json", str(path)]
        command = [sys.executable, "-m", "benchmarks.gpu", *arguments, *(["--small"] * small)]
        reason = ""
        # A file: processes that a part leaves behind would keep a pipe open.
        with errors.open("wb") as stderr, process_group(command, stderr) as process:
            try:
                if status := process.wait(limit):
                    reason = f"exit status {status}"
            except subprocess.TimeoutExpired:
                reason = f"stopped after {limit} s"
        printed = errors.read_text(errors="replace")
        sys.stderr.write(printed)
        if reason.startswith("exit") and printed.strip():
            reason = printed.strip().splitlines()[-1]
        written = path.read_text().splitlines() if path.exists() else []
        lines = [Line(**json.loads(text)) for text in written]
        return [*lines, *([Line(part, reason, failed=True)] if reason else [])]


@contextmanager
def process_group(command: Sequence[str], stderr: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command that prints to `stderr`; when the block is left, end what it started."""
    process = subprocess.Popen(command, stdout=stderr, stderr=stderr, start_new_session=True)
    try:
        yield process
    finally:
        # torchrun and Ray end their processes, which have groups of their own, when asked to.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def write_part(part: str, device: Device, small: bool, path: Path) -> None:
    """Measure a part in this process, and append each line to the file at once."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module = import_module(f"benchmarks.gpu.{part}")
    with path.open("a") as file:
        for line in module.lines(device, small):
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()


if __name__ == "__main__":
    raise SystemExit(main())
