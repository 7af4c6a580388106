"""An experiment runs to its page, goes on after a kill, and does nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.ablation.experiment import load_experiment
from benchmarks.objectives import run_experiment
from shards.errors import PretrackError
from tests.trainer.conftest import panning_clip, publish


def experiment_file(folder: Path) -> Path:
    """Write an experiment of two arms and one seed on clips that pan."""
    clips = [
        panning_clip(f"made-{i:02d}", i, split="train" if i < 6 else "eval") for i in range(14)
    ]
    publish(folder / "build", clips)
    held_out = {"out": str(folder / "build"), "clips": 8, "frames": 3, "step": 2}
    values: dict[str, Any] = {
        "title": "Panning",
        "out": str(folder / "results"),
        "seeds": [1],
        "train": {
            "data": {"out": str(folder / "build"), "size": 48, "frames": 3, "step": 2},
            "model": {
                "backbone": "vit_tiny_patch16_224",
                "options": {"depth": 1, "patch_size": 8, "img_size": 48},
                "trainable_blocks": 1,
                "head": [16, 8],
            },
            "references": {"count": 1},
            "run": {"steps": 2, "batch_size": 2, "device": "cpu", "workers": 0, "pictures": 0}
            | {"export_every": 1, "checkpoint_every": 1},
        },
        "start": {"settings": {"loss": {"sorting": 0, "self_supervision": {"points": 9}}}},
        "objectives": {"info_nce": {"loss": {"sorting": 0, "info_nce": {}}}},
        "conditions": {"tracks": {}, "same": {"data": {"control": "same"}}},
        "arms": {
            "ours": {"objective": "info_nce", "condition": "tracks", "control": "theirs"},
            "theirs": {"objective": "info_nce", "condition": "same"},
        },
        "rates": {"tried": [1e-3, 1e9], "conditions": ["tracks"], "steps": 2},
        "validation": held_out,
        "evaluation": held_out,
        "metrics": {"found": {}, "told apart": {"measure": "track@1"}},
        "endpoint": "found",
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.slow
def test_a_killed_experiment_goes_on_and_its_page_says_what_was_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = experiment_file(tmp_path), tmp_path / "results"
    experiment = load_experiment(path, [])
    results = run_experiment(experiment, [*experiment.arms], jobs=2)
    assert capsys.readouterr().out.startswith("start: ")
    # At a rate of 1e9 either a step is not finite or features find nothing.
    assert results.rates == {"info_nce": 1e-3}
    [comparison] = results.comparisons("found")
    scores = {arm: results.arms[arm][1]["model"]["found"] for arm in ("ours", "theirs")}
    means = {arm: sum(values.values()) / 8 for arm, values in scores.items()}
    assert abs(comparison.difference.mean - (means["ours"] - means["theirs"])) < 1e-12
    page = (out / "results.md").read_text()
    assert f"| ours | {100 * means['ours']:.2f} |" in page
    assert "| ours | theirs | 8 | 1 |" in page
    assert (out / "results.html").read_text().count("<svg") == 2
    assert [point[0] for point in results.curve("ours", "found")] == [0, 1, 2]

    # As after a kill during the second step of an arm.
    (out / "arms" / "ours-1" / "result.json").unlink()
    (out / "arms" / "ours-1" / "checkpoints" / "step_00000002.pt").unlink()
    done = {result: result.stat().st_mtime_ns for result in out.rglob("result.json")}
    resumed = run_experiment(experiment, [*experiment.arms], jobs=1)
    assert resumed.arms["ours"][1]["model"] == results.arms["ours"][1]["model"]
    assert {result: result.stat().st_mtime_ns for result in done} == done
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("ours, seed 1: ")
    assert line.endswith("5 of 5 done, about 0 s left")

    other = load_experiment(path, ["train.run.steps=3"])
    with pytest.raises(PretrackError, match="start holds the result of other settings"):
        run_experiment(other, [*other.arms], jobs=1)


@pytest.mark.slow
def test_a_run_that_cannot_start_ends_the_experiment_with_its_reason(tmp_path: Path) -> None:
    experiment = load_experiment(experiment_file(tmp_path), [f"train.data.out={tmp_path / 'no'}"])
    with pytest.raises(PretrackError, match=r"^start failed: /.*no holds no finished build"):
        run_experiment(experiment, [], jobs=1)
