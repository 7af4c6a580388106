"""`python -m benchmarks.NAME --help` prints help and does not start to measure."""

from __future__ import annotations

import runpy
import signal
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(
    f"benchmarks.{path.parent.name if path.name == '__main__.py' else path.stem}"
    for path in FOLDER.rglob("*.py")
    if path != FOLDER / "__main__.py" and '\nif __name__ == "__main__":' in path.read_text()
)
CPU_SECONDS = 60


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_help_of_every_benchmark_prints_its_usage_and_starts_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All run in this process, because most import torch. One that starts would take hours."""
    assert {"benchmarks.geometry_tracker", "benchmarks.track_scores", "benchmarks.gpu"} < {*NAMES}
    previous = signal.signal(signal.SIGPROF, signal.default_int_handler)
    try:
        for name in ("benchmarks.__main__", *NAMES):
            monkeypatch.setattr(sys, "argv", [name, "--help"])
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            with pytest.raises(SystemExit) as ended:
                runpy.run_module(name, run_name="__main__", alter_sys=True)
            assert ended.value.code in (0, None), name
            assert capsys.readouterr().out.startswith("usage: "), name
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)
