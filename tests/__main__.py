"""`python -m tests [pytest options]`: run all tests, in two processes of about the same duration.

The first process runs the tests of the pipeline. Most of them build something with Ray, and a build
leaves much of two cores idle.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

LONG = ("test_ray_cluster", "test_cotracker3", "test_survival")
"""Tests of the pipeline that the second process runs, to balance the two."""


def main(options: list[str]) -> int:
    """Run both processes and return the larger exit status.

    The first one's output is shown as it comes, the other's at the end.
    """
    of_pipeline = [
        str(path)
        for path in sorted(Path("tests/pipeline").rglob("test_*.py"))
        if path.stem not in LONG
    ]
    first_paths = [*of_pipeline, "tests/test_examples.py"]
    command = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile() as output:
        others = [
            *command,
            "tests",
            *(f"--ignore={path}" for path in first_paths),
            "-p",
            "no:cacheprovider",
        ]
        with subprocess.Popen(others, stdout=output, stderr=subprocess.STDOUT) as beside:
            first = subprocess.run([*command, *first_paths], check=False).returncode
            second = beside.wait()
        output.seek(0)
        print(output.read().decode(errors="replace"), flush=True)
    return max(first, second)


if __name__ == "__main__":
    if not Path("tests").is_dir():
        sys.exit("run this in the folder that holds tests/")
    sys.exit(main(sys.argv[1:]))
