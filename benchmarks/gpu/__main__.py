"""Check and time everything that runs on a GPU, in less than ten minutes on one.

    python -m benchmarks.gpu [--json FILE] [--parts NAME ...]
    python -m benchmarks.gpu --small      on a CPU, in small, to see that everything runs

First each part checks that results are right, then it times. The table shows what each figure must
be; a line that misses is marked, and the command then exits with status 1. Each part runs in a new
process, so a part that crashes costs its own lines only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.line import Line
from manifests.wording import duration

PARTS = {
    "machine": 60,
    "losses": 120,
    "tracker": 240,
    "tapir": 180,
    "memory": 90,
    "step": 120,
    "training": 120,
    "loading": 60,
    "pictures": 60,
    "build": 150,
}
"""The parts, and after how many seconds each is stopped on a GPU."""
CPU_FACTOR = 5
"""How much longer a part may take on a CPU."""


def main() -> int:
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
    a = parser.parse_args()
    device = a.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and not a.small:
        parser.error("there is no GPU that torch can use: add --small to run it on the CPU")
    if a.only:
        write_part(a.only, device, a.small, a.json)
        return 0
    print("| part | figure | value | must be | |\n|---|---|---|---|---|", flush=True)
    figures: dict[str, list[Line]] = {}
    failed: list[str] = []
    started = time.monotonic()
    for part in a.parts:
        figures[part], reason = run_part(part, device, a.small)
        for line in figures[part]:
            mark = "**missed**" if line.missed else ("ok" if line.bounds else "")
            print(f"| {part} | {line.what} | {line.shown} | {line.bounds} | {mark} |")
        if reason:
            failed.append(part)
            print(f"| {part} | **failed** | {reason} | | **missed** |")
        sys.stdout.flush()
        if a.json:  # after every part, so that a run that is stopped keeps what it has
            write_json(a.json, figures, failed)
    missed = sum(line.missed for lines in figures.values() for line in lines)
    print(
        f"\n{sum(map(len, figures.values()))} figures in {duration(time.monotonic() - started)}, "
        f"{missed} missed, {len(failed)} parts failed"
    )
    return int(bool(missed or failed))


def write_json(path: Path, figures: dict[str, list[Line]], failed: list[str]) -> None:
    """Write the figures of each part, with what they must be and whether they miss it."""
    lines = {
        part: [asdict(line) | {"missed": line.missed} for line in lines]
        for part, lines in figures.items()
    }
    path.write_text(json.dumps({**lines, "failed": failed}, indent=1))


def run_part(part: str, device: str, small: bool) -> tuple[list[Line], str]:
    """Run a part in a new process; return its lines, and why it failed, if it did."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.json"
        arguments = ["--only", part, "--device", device, "--json", str(path)]
        command = [sys.executable, "-m", "benchmarks.gpu", *arguments, *(["--small"] * small)]
        limit = PARTS[part] * (CPU_FACTOR if device == "cpu" else 1)
        reason = ""
        try:
            done = subprocess.run(
                command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, timeout=limit,
                check=False,
            )  # fmt: skip
            if done.returncode:
                last = [text for text in done.stderr.splitlines() if text.strip()][-1:]
                reason = last[0] if last else f"exit status {done.returncode}"
                print(done.stderr, file=sys.stderr)
        except subprocess.TimeoutExpired:
            reason = f"stopped after {limit} s"
        written = path.read_text().splitlines() if path.exists() else []
        return [Line(**json.loads(text)) for text in written], reason


def write_part(part: str, device: str, small: bool, path: Path) -> None:
    """Measure a part in this process, and append each line to the file at once."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module = import_module(f"benchmarks.gpu.{part}")
    with path.open("a") as file:
        for line in module.lines(device, small):
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()


if __name__ == "__main__":
    raise SystemExit(main())
