"""Exported weights say what they are made from: terms of every video, data, settings."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.errors import SettingsError
from tests.helpers.published import publish_clips
from tests.trainer.conftest import panning_clip
from trainer.config import TrainSettings
from trainer.export import export_weights, exported_weights, read_description
from trainer.model.backbone import make_backbone

Make = Callable[..., TrainSettings]


def with_terms(key: str, terms: str) -> Any:
    clip = panning_clip(key, 0)
    return replace(clip, info=replace(clip.info, video_id=key, terms=terms))


def test_an_export_lists_the_terms_of_all_snapshots_once(settings: Make, tmp_path: Path) -> None:
    clips = [with_terms("a", "Research only."), with_terms("b", "CC BY 4.0"), with_terms("c", "")]
    snapshots = [
        publish_clips(tmp_path / "first", clips),
        publish_clips(tmp_path / "second", [with_terms("d", "MIT"), with_terms("e", "CC BY 4.0")]),
    ]
    s = settings()
    backbone = make_backbone(s.model.backbone, "random", s.model.options)
    weights = export_weights(backbone, s, snapshots, step=3)
    description = read_description(weights)
    assert description["terms"] == ["CC BY 4.0", "MIT", "Research only."]
    assert [licences.split(", ")[0] for licences in description["licences"]] == [
        "frames CC-BY-4.0 and MIT",
        "frames CC-BY-4.0 and NOASSERTION",
    ]
    assert description["step"] == 3
    assert [used["snapshot"] for used in description["snapshots"]] == ["000001", "000001"]
    card = weights.with_name("README.md").read_text()
    assert "- CC BY 4.0\n- MIT\n- Research only.\n" in card
    assert "\nThe data: frames CC-BY-4.0 and MIT, tracks" in card
    assert exported_weights(s.run.out) == [weights]


def test_weights_without_a_description_are_named(tmp_path: Path) -> None:
    weights = tmp_path / "step_00000001.safetensors"
    with pytest.raises(SettingsError, match=r"no readable description step_00000001\.json"):
        read_description(weights)
    weights.with_suffix(".json").write_text("{")
    with pytest.raises(SettingsError, match="name its backbone yourself"):
        read_description(weights)
    weights.with_suffix(".json").write_text(json.dumps({"step": 1}))
    assert read_description(weights) == {"step": 1}
