"""Print which part of small changes to the code the tests notice, one line per module.

    pip install 'mutmut==3.8.1'
    python scripts/mutation_scores.py                       # every module that computes figures
    python scripts/mutation_scores.py shards/geometry.py    # one, with its surviving mutants

mutmut changes one operator, constant or argument at a time and runs the module's tests on it. The
score is killed mutants over all mutants; mutants that no test reaches count as survivors. The
modules here are those whose figures people act on. Some minutes per module; not part of CI.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TESTS = {
    "manifests/diff.py": "tests/manifests/test_diff.py",
    "manifests/wording.py": "tests/manifests/test_wording.py",
    "pipeline/execution/track_summary.py": "tests/pipeline/execution/test_track_summary.py",
    "pipeline/inspection/report_figures.py": "tests/pipeline/inspection/test_report_figures.py",
    "pipeline/monitoring/status.py": "tests/pipeline/monitoring/test_status.py",
    "pipeline/planning/cost.py": "tests/pipeline/planning/test_cost.py",
    "shards/codec.py": "tests/shards/test_codec.py",
    "shards/geometry.py": "tests/shards/test_geometry.py",
    "trainer/data/sampler.py": "tests/trainer/data/test_sampler.py",
    "trainer/evaluate/intervals.py": "tests/trainer/evaluate/test_intervals.py",
    "trainer/evaluate/heldout/breakdown.py": "tests/trainer/evaluate/heldout/test_breakdown.py",
    "trainer/evaluate/heldout/surfaces.py": "tests/trainer/evaluate/heldout/test_surfaces.py",
    "trainer/evaluate/heldout/measures.py": "tests/trainer/evaluate/heldout/test_measures.py",
    "trainer/losses/sorting/objective.py": "tests/trainer/losses/sorting/test_objective.py",
    "trainer/metric_logging.py": "tests/trainer/test_metric_logging.py",
    "trainer/model/feature_sampling.py": "tests/trainer/model/test_feature_sampling.py",
    "trainer/model_card.py": "tests/trainer/test_model_card.py",
    "trainer/schedule.py": "tests/trainer/test_schedule.py",
}
"""Each module, and the test file that states its figures."""

COPIED = ("shards", "manifests", "pipeline", "trainer", "tests", "configs", "benchmarks")


def main(modules: list[str]) -> int:
    """Score the named modules, or all of them; return 2 for an unknown one or missing tests."""
    if unknown := [module for module in modules if module not in TESTS]:
        print(f"no tests are named for {unknown[0]}; known: {', '.join(TESTS)}", file=sys.stderr)
        return 2
    if moved := [tests for tests in TESTS.values() if not (ROOT / tests).is_file()]:
        print(f"there is no {moved[0]}: correct TESTS in this script", file=sys.stderr)
        return 2
    for module in modules or TESTS:
        counts, survivors = run_mutmut(module)
        killed, total = counts["killed"] + counts["timeout"], counts["total"]
        print(f"{module:42} {killed:4} of {total:4} killed  {killed / total:6.1%}", flush=True)
        if modules:
            print("".join(survivors))
    return 0


def run_mutmut(module: str) -> tuple[dict[str, int], list[str]]:
    """Run mutmut on one module in a copy of the checkout; its counts, and the surviving diffs."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in COPIED:
            shutil.copytree(ROOT / name, Path(folder) / name)
        config = (
            "[mutmut]\n"
            f"source_paths={module}\n"
            f"pytest_add_cli_args_test_selection={TESTS[module]}\n"
            "also_copy=" + "".join(f"\n    {name}" for name in COPIED) + "\n"
        )
        (Path(folder) / "setup.cfg").write_text(config)
        # A forked child must not inherit OpenMP threads: they do not survive the fork.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": folder}
        environment.pop("PYTEST_ADDOPTS", None)

        def mutmut(*arguments: str) -> str:
            command = [sys.executable, "-m", "mutmut", *arguments]
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            return done.stdout + done.stderr

        output = mutmut("run")
        mutmut("export-cicd-stats")
        stats = Path(folder) / "mutants" / "mutmut-cicd-stats.json"
        counts = json.loads(stats.read_text()) if stats.exists() else {}
        # It kills no mutant at all if the tests fail without a mutant, or cannot be collected.
        if not counts.get("killed"):
            raise SystemExit(f"mutmut failed on {module}:\n{output[-3000:]}")
        alive = [
            line.split(":")[0].strip()
            for line in mutmut("results").splitlines()
            if line.strip().endswith(("survived", "no tests"))
        ]
        return counts, [changed_lines(mutmut("show", name)) for name in alive]


def changed_lines(diff: str) -> str:
    """Return the line of mutmut's report that names the mutant, and the lines that it changed."""
    first, *rest = diff.splitlines(keepends=True)
    return first + "".join(
        line for line in rest if line[:1] in "+-" and line[:3] not in ("---", "+++")
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
