"""`evaluate probe`: depth and normals that features tell, on clips with depth maps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d

from manifests.snapshot import open_snapshot
from shards import jpeg
from shards.clip import Camera
from shards.frame_maps import FrameMaps, encode_depth
from shards.stored_clip import StoredClip
from tests.helpers.evaluation import evaluate
from tests.helpers.scenic_clips import held_out
from tests.trainer.conftest import HEIGHT, WIDTH, panning_clip, publish
from trainer.evaluate.heldout.probe import probe_features, with_depth

SCALE = 1e-4


def plane_clip(number: int) -> StoredClip:
    """A clip of planes: red tells the depth, green and blue which way the normal points.

    Every frame has its own world unit.
    """
    random = np.random.default_rng(number)
    clip = panning_clip(f"plane-{number}", number, split="eval")
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    across, down = (x - 47.5) / 80, (y - 31.5) / 80
    frames, depths = [], []
    for _ in range(clip.info.frames):
        right, lower = random.uniform(-0.6, 0.6, 2)
        nearness = 1 + right * across + lower * down
        red = 128 - 160 * np.log(nearness)
        green, blue = (np.full(x.shape, 128 + 160 * slope) for slope in (right, lower))
        frames.append(np.stack([red, green, blue], axis=-1))
        depths.append(encode_depth((random.uniform(1, 3) / nearness).astype(np.float32), SCALE))
    camera = Camera(80.0, 80.0, 47.5, 31.5, (1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0))
    info = replace(clip.info, cameras=(camera,) * clip.info.frames, depth_scale=SCALE)
    jpegs = tuple(jpeg.encode(f.clip(0, 255).astype(np.uint8), 95) for f in frames)
    return StoredClip(info, clip.tracks, jpegs, FrameMaps(depths=tuple(depths)))


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build of six clips of planes, and one without depth maps."""
    out = tmp_path_factory.mktemp("planes")
    publish(out, [*(plane_clip(i) for i in range(6)), panning_clip("flat", 9, split="eval")])
    return out


def test_features_that_tell_the_surface_are_read_and_noise_is_not(planes: Path) -> None:
    held, surfaces = with_depth(held_out(open_snapshot(planes), 64), 8)
    assert len(held.clips) == 6
    colours = torch.stack([avg_pool2d(clip.images[64].float(), 8) for clip in held.clips])
    noise = np.random.default_rng(0).normal(size=(6, 4, 8, 8, 20))

    def means(features: NDArray[np.float64]) -> dict[str, float]:
        values = probe_features(features, surfaces, held.videos)
        return {metric: float(by_clip.mean()) for metric, by_clip in values.items()}

    seen, unseen = means(colours.movedim(2, -1).double().numpy()), means(noise)
    assert seen["depth_error"] < 0.05 < 0.1 < unseen["depth_error"]
    assert seen["depth_near"] > 0.99 > unseen["depth_near"]
    assert seen["normal_error"] < 5 < 20 < unseen["normal_error"]
    assert seen["normal_near"] == 1 > unseen["normal_near"]
    # Depth less the mean of its frame: what is right on average tells nothing here.
    true = surfaces.depths.reshape(6, 4, -1)
    assert true.mean(axis=-1) == pytest.approx(0, abs=1e-9)
    assert unseen["depth_error"] == pytest.approx(float(true.std(axis=-1).mean()), rel=0.1)


def test_the_command_compares_models_by_sequence(
    planes: Path, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path), "--device", "cpu", "--grid", "8", "--step", "2"]
    models = ["--model", f"base={a_run}:first", "--model", f"trained={a_run}"]
    assert evaluate(["probe", str(planes), *options, *models]) == 0
    text = capsys.readouterr().out
    assert "6 clips of 6 videos" in text
    assert "position alone" in text
    assert "trained less base" in text
    found = json.loads((tmp_path / "probe.json").read_text())
    assert list(found["figures"]) == ["base", "trained", "raw pixels", "position alone"]
    base, trained = (found["figures"][name]["depth_error"] for name in ("base", "trained"))
    assert len(base["by_clip"]) == 6
    difference = found["differences"]["trained"]["depth_error"]
    assert difference["gain"] == pytest.approx(trained["mean"] - base["mean"])
    assert (difference["groups"], len(difference["interval"])) == (6, 2)


def test_clips_without_depth_are_refused_in_a_sentence(
    build: Path, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["probe", str(build), "--out", str(tmp_path), "--device", "cpu", "--step", "2"]
    assert evaluate([*arguments, "--model", f"base={a_run}:first", "--grid", "4"]) == 1
    error = capsys.readouterr().err
    assert "depth maps of at least 3 sequences, and the 4 clips in" in error
    assert "have them of 0: build with 'frames.depth: true'" in error
    assert error.count("\n") == 1
