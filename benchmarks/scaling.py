"""Measure how training scales with processes.

    python -m benchmarks.scaling OUT [--processes 1 2] [--rounds 3] [key=value ...]

Trains a small transformer on the clips of a build, with the same number of clips per process and
one thread each. Process counts take turns. A rate is that of a run's second half, as the trainer
reports it; its share of the ideal is rate / (processes x rate per process of the first count).
Processes share this machine's memory and caches, so losses to those are not the trainer's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from manifests.wording import pluralise

CONFIG = """
data: {out: OUT, size: 112, step: 4}
model: {backbone: vit_small_patch16_224, weights: random, options: {patch_size: 14}}
run: {out: unset, steps: 1, device: cpu, workers: 0, pictures: 0}
"""


def clips_per_second(
    processes: int, config: Path, folder: Path, *, steps: int, clips: int, changes: list[str]
) -> float:
    """Train once, and return the clips per second of all processes together."""
    run = [
        "-m",
        "trainer",
        str(config),
        f"run.out={folder}",
        f"run.steps={steps}",
        f"run.log_every={steps // 2}",
    ]
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    command = [*launch, *run, f"run.batch_size={clips * processes}", *changes]
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or ["without a message"])[-1]
        sys.exit(f"the training failed: {last_line}")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return float(events.Scalars("clips_per_second")[-1].value)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("out", help="the output folder of a finished build")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--clips", type=int, default=4, help="clips per step and process")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("changes", nargs="*", metavar="key=value")
    a = parser.parse_intermixed_args()
    rates: dict[int, list[float]] = {processes: [] for processes in a.processes}
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "config.yaml"
        config.write_text(CONFIG.replace("OUT", str(Path(a.out).resolve())))
        for number in range(a.rounds):
            for processes, measured in rates.items():
                folder = Path(scratch) / f"{processes}-{number}"
                rate = clips_per_second(
                    processes, config, folder, steps=a.steps, clips=a.clips, changes=a.changes
                )
                measured.append(rate)
    print("| processes | clips per second | share of the ideal |\n|---|---|---|")
    first = a.processes[0]
    for processes, measured in rates.items():
        share = median(
            rate / base * first / processes
            for rate, base in zip(measured, rates[first], strict=True)
        )
        print(f"| {processes} | {median(measured):.1f} | {share:.0%} |")
    print(f"\n{pluralise(a.clips, 'clip')} per step and process; medians of {a.rounds} rounds")


if __name__ == "__main__":
    main()
