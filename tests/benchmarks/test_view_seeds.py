"""Results of several seeds are averaged over views, clips and seeds, in this order."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import view_seeds
from benchmarks.view_seeds import difference


def row(*views: tuple[int, float, float]) -> dict[str, Any]:
    return {"views": [{"clip": c, "angle": angle, "error": error} for c, angle, error in views]}


def test_errors_are_averaged_by_angle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, mv in (("a", 0.2), ("b", 0.4)):
        rows = {
            # Clip 0 has two views below 45 degrees, clip 1 one; 45 belongs to the next bin.
            "mv": row((0, 10, mv), (0, 30, mv), (1, 44.9, mv + 0.3), (1, 45, 0.9)),
            "never moves": row((0, 10, 0.1), (0, 30, 0.5), (1, 44.9, 1.0), (1, 45, 0.5)),
        }
        (tmp_path / name).write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "a"), str(tmp_path / "b")])
    monkeypatch.setattr(view_seeds, "BINS", {"below 45": (0.0, 45.0), "45-60": (45.0, 60.0)})
    view_seeds.main()
    lines = capsys.readouterr().out.splitlines()
    # Clips (0.2, 0.5) and (0.4, 0.7): means 0.35 and 0.55, and their deviation is 0.2 / sqrt(2).
    assert lines[2] == "| mv | 0.450 ± 0.141 | 0.900 ± 0.000 |"
    assert lines[3] == "| never moves | 0.650 ± 0.000 | 0.500 ± 0.000 |"
    # Clip 0: 0.3 less 0.3; clip 1: 0.6 less 1.0. Only clip 1 has a view from 45 degrees up.
    assert lines[-1] == "| never moves | -0.200 | +0.400 |"


def test_an_interval_is_that_of_the_evaluation() -> None:
    differences = [-0.4, -0.3, -0.2, -0.2, -0.1, -0.1, 0.0, 0.1]
    seed = {
        "mv": row(*((clip, 10, 0.5 + less) for clip, less in enumerate(differences))),
        "base": row(*((clip, 10, 0.5) for clip in range(8))),
    }
    mean, low, high = re.findall(r"[-+][0-9.]+", difference([seed], "mv", "base", (0, 45)))
    assert mean == "-0.150"
    # Student's interval is 0.134 to both sides of the mean; this one is somewhat wider.
    assert 0.134 <= float(high) + 0.15 <= 0.22
    assert 0.134 <= -0.15 - float(low) <= 0.22
