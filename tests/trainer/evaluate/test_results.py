"""Results as numbers and files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from trainer.evaluate.results import finite_mean, plain, versions, write_results


def test_means_leave_out_what_is_unknown() -> None:
    assert finite_mean([1.0, math.nan, 4.0, math.inf]) == 2.5
    assert math.isnan(finite_mean([math.nan]))
    assert math.isnan(finite_mean([]))


def test_everything_becomes_json() -> None:
    values = {1: (np.float32(0.5), np.arange(2)), "x": [math.nan, None, "text", True]}
    assert plain(values) == {"1": [0.5, [0, 1]], "x": [None, None, "text", True]}


def test_pictures_of_an_earlier_evaluation_go_and_others_stay(tmp_path: Path) -> None:
    write_results(tmp_path, "one", {"a": 1}, {"first": b"1", "second": b"2"})
    write_results(tmp_path, "two", {}, {"first": b"3"})
    written = write_results(tmp_path, "one", {"a": math.nan}, {"second": b"4"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one-second.png",
        "one.json",
        "two-first.png",
        "two.json",
    ]
    assert (tmp_path / "one-second.png").read_bytes() == b"4"
    assert json.loads(written.read_text()) == {"evaluation": "one", "a": None}


def test_versions_name_what_results_depend_on() -> None:
    assert {"python", "torch", "timm", "numpy"} <= versions().keys()
