"""Normals in the anchor's axes, and probes of clips whose views are encoded together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.snapshot import open_snapshot
from tests.helpers.evaluation import evaluate
from tests.helpers.multiview_run import export_multiview_run
from tests.trainer.conftest import publish
from tests.trainer.evaluate.heldout.test_probe import plane_clip
from tests.trainer.multiview.conftest import scene
from trainer.data.settings import DataSettings, TrackFilterSettings
from trainer.evaluate.evaluated_model import load_evaluated_model
from trainer.evaluate.heldout.clips import HeldOutClip, evaluation_settings, read_held_out
from trainer.evaluate.sets.encoding import encode_clip
from trainer.evaluate.sets.normals import TOGETHER, features_together, in_anchor_axes


def held_out_clips(out: Path, side: int) -> list[HeldOutClip]:
    snapshot = open_snapshot(out)
    values = evaluation_settings(snapshot, split="eval", where="", frames=3, step=3)
    settings = DataSettings.model_validate(values)
    return list(read_held_out(snapshot, settings, TrackFilterSettings(), [side]).clips)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[HeldOutClip]:
    """A clip whose camera turns by 50 degrees, and one without cameras."""
    out = tmp_path_factory.mktemp("turning")
    publish(out, [scene(0, "eval"), scene(1, "eval", posed=False)])
    return held_out_clips(out, 32)


def test_a_normal_of_the_world_is_the_same_in_all_views_of_a_clip(clips: list[HeldOutClip]) -> None:
    normal = np.array([0.6, 0.0, 0.8])
    stored = clips[0].info.cameras
    assert stored
    cameras = [stored[number] for number in clips[0].frame_numbers]
    poses = [np.reshape(c.world_to_camera, (3, 4))[:, :3] for c in cameras if c]
    in_cameras = np.zeros((2, 3, 2, 2, 3))
    in_cameras[0] = np.stack([pose @ normal for pose in poses])[:, None, None]
    turned = in_anchor_axes(clips, in_cameras)
    assert np.abs(in_cameras[0, 2] - in_cameras[0, 0]).max() > 0.3
    np.testing.assert_allclose(turned[0], np.broadcast_to(poses[0] @ normal, (3, 2, 2, 3)))
    assert np.isnan(turned[1]).all()


@pytest.mark.slow
def test_the_probe_has_rows_for_views_that_are_encoded_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = tmp_path / "build"
    publish(build, [plane_clip(i) for i in range(4)])
    run = export_multiview_run(tmp_path / "run", build)
    models = ["--model", f"first={run}:first", "--model", f"mv={run}"]
    options = ["--out", str(tmp_path), "--device", "cpu", "--grid", "4", "--step", "2"]
    assert evaluate(["probe", str(build), *options, *models]) == 0
    found = json.loads((tmp_path / "probe.json").read_text())
    rows = ["mv", *(f"mv, {encoding.title}" for encoding in TOGETHER)]
    assert list(found["figures"]) == ["first", *rows, "raw pixels", "position alone"]
    assert list(found["differences"]) == rows
    # All frames have one pose, so the anchor's axes are every camera's.
    for row in found["figures"].values():
        assert row["anchor_normal_error"] == row["normal_error"]
    assert "in the anchor frame's axes" in capsys.readouterr().out
    clip, model = held_out_clips(build, 32)[0], load_evaluated_model("mv", str(run))
    (together,) = features_together([clip], model, TOGETHER[0], 4)
    anchor, view = encode_clip(model, TOGETHER[0], clip, 32)[1]
    for ours, expected in ((together[0], anchor), (together[2], view)):
        torch.testing.assert_close(ours, torch.nn.functional.normalize(expected, dim=-1))
