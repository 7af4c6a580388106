"""How much an installation takes on disk, and how long it takes to start: `python -m benchmarks.installed`.

Sizes are those of the packages that each extra asks for, with all that these ask for, as they are installed here. Times are a new
process's, wall clock, the least of five, less that of Python itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

EXTRAS = ("", "pipeline", "pipeline,cotracker3", "train")
STARTS = {
    "pretrack --help": ["-m", "pipeline", "--help"],
    "import shards.reader": ["-c", "import shards.reader"],
    "import manifests.snapshot": ["-c", "import manifests.snapshot"],
    "import pipeline.execution.build": ["-c", "import pipeline.execution.build"],
    "import trainer.data.dataset": ["-c", "import trainer.data.dataset"],
    "import trainer.train": ["-c", "import trainer.train"],
}


def needed(requirement: str) -> dict[str, Distribution]:
    """The packages that a requirement leads to, by name, itself among them."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement(requirement)]
    while waiting:
        asked = waiting.pop()
        key = (asked.name.lower(), frozenset(asked.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            package = found[asked.name] = distribution(asked.name)
        except PackageNotFoundError:  # for another platform, or not installed here
            continue
        for text in package.requires or ():
            inner = Requirement(text)
            if inner.marker is None or any(
                inner.marker.evaluate({"extra": extra}) for extra in ("", *asked.extras)
            ):
                waiting.append(inner)
    return {package.metadata["Name"]: package for package in found.values()}


def megabytes(package: Distribution) -> float:
    """What a package's files take."""
    paths = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sum(path.stat().st_size for path in paths if path.exists()) / 1e6


def seconds(arguments: list[str]) -> float:
    """How long a new Python takes for it."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begun


def main() -> None:
    """Prints both tables."""
    print("| installed | packages | MB |\n|---|---|---|")
    for extras in EXTRAS:
        packages = needed(f"pretrack[{extras}]")
        print(
            f"| pretrack[{extras}] | {len(packages)} | {sum(map(megabytes, packages.values())):,.0f} |"
        )
    python = min(seconds(["-c", ""]) for _ in range(5))
    print("\n| started | s |\n|---|---|")
    for name, arguments in STARTS.items():
        print(f"| `{name}` | {min(seconds(arguments) for _ in range(5)) - python:.2f} |")


if __name__ == "__main__":
    main()
