"""The commands for public benchmarks, from datasets on disk to tables and results."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.evaluation import evaluate
from tests.helpers.navi_files import write_navi
from tests.helpers.spair_files import colour_features, noisy_features, write_spair
from tests.helpers.voc_files import write_voc
from trainer.evaluate.benchmarks.run import differences
from trainer.evaluate.benchmarks.settings import SpairSettings
from trainer.evaluate.benchmarks.spair import PASSES, evaluate_spair
from trainer.model.backbone import make_backbone

OPTIONS = {"depth": 4, "embed_dim": 48, "num_heads": 3, "patch_size": 8}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options for two models in files: random weights, and those with a changed last block."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    backbone = make_backbone("vit_tiny_patch16_224", None, OPTIONS)
    named = []
    for name in ("base", "trained"):
        save_file(backbone.model.state_dict(), folder / f"{name}.safetensors")
        described = {
            "timm_id": backbone.timm_id,
            "options": OPTIONS,
            "img_size": 64,
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
        }
        (folder / f"{name}.json").write_text(json.dumps(described))
        named += ["--model", f"{name}={folder / name}.safetensors"]
        with torch.no_grad():
            for weights in backbone.model.blocks[-1].parameters():
                weights.add_(0.3 * torch.randn_like(weights))
    return [*named, "--device", "cpu"]


def run(name: str, root: Path, models: list[str], out: Path, *more: str) -> dict[str, Any]:
    assert evaluate([name, str(root), *models, "--out", str(out), *more]) == 0
    stored: dict[str, Any] = json.loads((out / f"{name}.json").read_text())
    return stored


def test_spair(
    tmp_path: Path,
    models: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = write_spair(tmp_path / "spair")
    stored = run(
        "spair",
        root,
        models,
        tmp_path / "out",
        "--size",
        "64",
        "--pairs",
        "4",
        "--readout",
        "centre",
    )
    assert stored["settings"]["readout"] == "centre"
    assert stored["settings"]["pairs"] == 4
    assert stored["features"] == "patch tokens before the final norm"
    first, second = (stored["results"][name] for name in ("base", "trained"))
    assert first["digest"] == second["digest"]
    assert first["recall"] != second["recall"]
    for which in PASSES:
        found = stored["differences"]["trained"][f"recall, {which}"]
        assert found["gain"] == pytest.approx(second["recall"][which] - first["recall"][which])
    assert found["count"] == 8
    text = capsys.readouterr().out
    assert "cat: 4 images, 24 of 24 pairs done" in caplog.messages
    assert "SPair-71k test: recall@0.1 in % at 64 px, patches of 8, readout centre" in text
    assert "trained less base" in text
    assert "trained (this evaluation)" in text
    assert "DINOv2R" in text
    normed = run(
        "spair",
        root,
        models,
        tmp_path / "out",
        "--size",
        "64",
        "--pairs",
        "4",
        "--readout",
        "centre",
        "--final-norm",
    )
    assert normed["features"] == "patch tokens after the final norm"
    assert normed["results"]["base"]["pairs"] != first["pairs"]
    run("spair", root, models[2:], tmp_path / "out", "--size", "64", "--occluded", "both")
    assert "both views occluded, %" in capsys.readouterr().out


def test_navi(tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root = write_navi(tmp_path / "navi")
    stored = run(
        "navi", root, models, tmp_path / "out", "--size", "64", "--every", "1", "--matches", "40"
    )
    assert stored["results"]["base"]["by_angle"]["3DPoV"]["edges"] == [0, 15, 30, 60, 120]
    bins = [f"best, {low}-{high}°" for low, high in ((0, 15), (15, 30), (30, 60), (60, 120))]
    assert [stored["differences"]["trained"][name]["count"] for name in bins] == stored["results"][
        "base"
    ]["by_angle"]["3DPoV"]["pairs"]
    text = capsys.readouterr().out
    assert "less difference in lighting" in text
    assert "base (this evaluation)" in text


@pytest.mark.parametrize(
    ("name", "figure"), [("navi-depth", "scale-aware, rmse"), ("navi-normals", "normals, 30°")]
)
def test_navi_probes(tmp_path: Path, models: list[str], name: str, figure: str) -> None:
    root = write_navi(tmp_path / "navi", ("ball",))
    quick = [
        "--size",
        "32",
        "--every",
        "2",
        "--steps",
        "2",
        "--batch",
        "2",
        "--hidden",
        "8",
        "--workers",
        "0",
    ]
    stored = run(name, root, models, tmp_path / "out", *quick)
    assert stored["differences"]["trained"][figure]["count"] == 4
    assert len(stored["results"]["trained"]["losses"]) == 2


@pytest.mark.parametrize(
    "name", [pytest.param("voc-clusters", marks=pytest.mark.slow), "voc-retrieval"]
)
def test_voc(
    tmp_path: Path, models: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--clusters", "5,21"] if name == "voc-clusters" else ["--memory-split", "train"]
    stored = run(name, write_voc(tmp_path / "voc"), models, tmp_path / "out", "--size", "64", *more)
    assert len(stored["results"]["trained"]["miou"]) == len(more[1].split(","))
    assert stored["differences"] == {"trained": {}}
    text = capsys.readouterr().out
    assert "mIoU (%)" in text
    assert "less" not in text


def test_options_that_do_not_fit(
    tmp_path: Path, models: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_spair(tmp_path / "spair")

    def refused(*arguments: str) -> str:
        assert evaluate([*arguments, *models, "--out", str(tmp_path / "out")]) == 1
        return capsys.readouterr().err

    assert "options: 'pairs': input should be greater than or equal to 1 (got '0')" in refused(
        "spair", str(root), "--pairs", "0"
    )
    assert "'readout': input should be 'probe3d' or 'centre'" in refused(
        "spair", str(root), "--readout", "corner"
    )
    assert "'clusters.1': input should be" in refused(
        "voc-clusters", str(root), "--clusters", "21,many"
    )
    assert "is not NAVI as it unpacks" in refused("navi", str(root))
    assert not (tmp_path / "out").exists()


def test_a_real_difference_is_told(tmp_path: Path) -> None:
    root = write_spair(tmp_path / "spair")
    blurred, sharp = (
        evaluate_spair(features, 4, root, SpairSettings(size=100))
        for features in (
            partial(noisy_features, patch=4, noise=0.3),
            partial(colour_features, patch=4),
        )
    )
    assert {d.verdict for d in differences(blurred, sharp).values()} == {"better"}
    assert {d.verdict for d in differences(sharp, sharp).values()} == {"not distinguishable from 0"}
