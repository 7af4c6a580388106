"""`python -m tests [pytest options]`: run all tests, in three processes.

The first process runs the tests of the pipeline. Most of them build something with Ray, and a build
leaves much of two cores idle. The second runs all others. Both take about the same time. The third
runs tests that only compute, in the time of the cores that the other two leave: no test there waits
for another process or measures time.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

COMPUTING = (
    "tests/pipeline/cotracker3",
    "tests/pipeline/tapir",
    "tests/pipeline/trackers",
    "tests/trainer/losses/sorting",
)
"""Folders of the third process."""
LONG = ("test_build_on_s3", "test_ray_cluster", "test_survival")
"""Tests of the pipeline that the second process runs, to balance the first two."""


def main(options: list[str]) -> int:
    """Run the processes and return the largest exit status.

    The first one's output is shown as it comes, that of the others at the end.
    """
    first = [
        str(path)
        for path in sorted(Path("tests/pipeline").rglob("test_*.py"))
        if path.stem not in LONG and not str(path).startswith(COMPUTING)
    ]
    others = ["tests", *(f"--ignore={path}" for path in (*first, *COMPUTING))]
    command = [sys.executable, "-m", "pytest", *options]
    aside = [*command, "-p", "no:cacheprovider"]
    with ExitStack() as stack:
        beside = []
        for start in ([*aside, *others], ["nice", *aside, *COMPUTING]):
            output = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(start, stdout=output, stderr=subprocess.STDOUT)
            beside.append((stack.enter_context(process), output))
        statuses = [subprocess.run([*command, *first], check=False).returncode]
        for process, output in beside:
            statuses.append(process.wait())
            output.seek(0)
            print(output.read().decode(errors="replace"), flush=True)
    return max(statuses)


if __name__ == "__main__":
    if not Path("tests").is_dir():
        sys.exit("run this in the folder that holds tests/")
    sys.exit(main(sys.argv[1:]))
