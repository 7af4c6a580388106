"""`python -m tests [pytest options]`: all tests, in two processes at a time, which take about as long as each other.

The first has all modules that share one Ray, one after the other, and some more. A build leaves much of two cores idle.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SHARE_RAY = ("build", "gc", "plan", "real_samples", "recovery", "synthetic")
MORE = ("build_on_s3", "cli", "decode", "gallery", "snapshot_report", "status")
FIRST = (*(f"tests/pipeline/test_{name}.py" for name in SHARE_RAY + MORE), "tests/test_examples.py")


def main(options: list[str]) -> int:
    """Runs both, shows the output of the first as it comes and that of the other at the end; the larger exit status."""
    command = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile() as output:
        others = [*command, "tests", *(f"--ignore={path}" for path in FIRST), "-p", "no:cacheprovider"]
        with subprocess.Popen(others, stdout=output, stderr=subprocess.STDOUT) as beside:
            first = subprocess.run([*command, *FIRST], check=False).returncode
            second = beside.wait()
        output.seek(0)
        print(output.read().decode(errors="replace"), flush=True)
    return max(first, second)


if __name__ == "__main__":
    if not Path("tests").is_dir():
        sys.exit("run this in the folder that holds tests/")
    sys.exit(main(sys.argv[1:]))
