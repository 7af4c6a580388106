"""Measure the disk space and start-up time of an installation: `python -m benchmarks.installed`.

Sizes are those of the packages that each extra requires, directly and indirectly, as installed
here. Times are wall-clock seconds of a new process, the smallest of five, minus those of Python
itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

from benchmarks.command_line import make_parser

EXTRAS = ("", "pipeline", "pipeline,scenes", "pipeline,uco3d", "pipeline,cotracker3", "train")
START_COMMANDS = {
    "pretrack --help": ["-m", "pipeline", "--help"],
    "import shards.reader": ["-c", "import shards.reader"],
    "import manifests.snapshot": ["-c", "import manifests.snapshot"],
    "import pipeline.execution.build": ["-c", "import pipeline.execution.build"],
    "import trainer.data.dataset": ["-c", "import trainer.data.dataset"],
    "import trainer.train": ["-c", "import trainer.train"],
}


def required_packages(requirement: str) -> dict[str, Distribution]:
    """Return the packages that a requirement installs, itself included, by name."""
    packages: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [Requirement(requirement)]
    while queue:
        current = queue.pop()
        key = (current.name.lower(), frozenset(current.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            package = packages[current.name] = distribution(current.name)
        except PackageNotFoundError:  # for another platform, or not installed here
            continue
        for text in package.requires or ():
            dependency = Requirement(text)
            if dependency.marker is None or any(
                dependency.marker.evaluate({"extra": extra}) for extra in ("", *current.extras)
            ):
                queue.append(dependency)
    return {package.metadata["Name"]: package for package in packages.values()}


def megabytes(package: Distribution) -> float:
    """Return the size of a package's files."""
    paths = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sum(path.stat().st_size for path in paths if path.exists()) / 1e6


def seconds(arguments: list[str]) -> float:
    """Time a new Python process with these arguments."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Print both tables."""
    print("| installed | packages | MB |\n|---|---|---|")
    for extras in EXTRAS:
        packages = required_packages(f"pretrack[{extras}]")
        size = sum(map(megabytes, packages.values()))
        print(f"| pretrack[{extras}] | {len(packages)} | {size:,.0f} |")
    python = min(seconds(["-c", ""]) for _ in range(5))
    print("\n| started | seconds beyond Python's own |\n|---|---|")
    for name, arguments in START_COMMANDS.items():
        print(f"| `{name}` | {min(seconds(arguments) for _ in range(5)) - python:.2f} |")


if __name__ == "__main__":
    make_parser("installed", __doc__).parse_args()
    main()
