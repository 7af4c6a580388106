"""`python -m tests [pytest options]`: all tests, in two processes at a time, which take about as long as each other.

The first has the pipeline's, of which most build something with Ray: a build leaves much of two cores idle.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

LONG = ("test_ray_cluster", "test_cotracker3", "test_survival")
"""The pipeline's that go with the others, or it would take longer than these."""


def main(options: list[str]) -> int:
    """Runs both, shows the output of the first as it comes and that of the other at the end; the larger exit status."""
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
