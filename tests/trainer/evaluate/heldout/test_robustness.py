"""`evaluate robustness`: the same scenes and points under several conditions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manifests.tables import CLIPS, SHARDS, read_table, table_of, write_table
from shards import jpeg
from shards.errors import PretrackError
from shards.stored_clip import StoredClip
from tests.helpers.evaluation import evaluate
from tests.helpers.scenic_clips import colour_model, scenic_clip
from tests.trainer.conftest import HEIGHT, WIDTH, publish
from trainer.evaluate.heldout.label_free import HeldOutOptions
from trainer.evaluate.heldout.measures import NAMED
from trainer.evaluate.heldout.robustness import (
    from_base,
    from_reference,
    points_in_all,
    read_conditions,
    score_conditions,
)

SCENES = 8
HIDDEN, ON_OCCLUDER = slice(14, 18), slice(18, 20)
"""Points that are hidden from the fourth frame on, and points that are an occluder's."""


def under(source: str, number: int) -> StoredClip:
    """A clip of a scene under a condition: `dim` shows noise, `occluded` hides some points."""
    clip = scenic_clip(f"{source}-scene{number}-000000", number, turn=5.0)
    info = replace(clip.info, source=source, sequence=f"scenes/eval-scene{number}")
    frames, tracks = clip.jpegs, clip.tracks
    if source == "dim":
        rng = np.random.default_rng(number)
        noise = rng.integers(0, 256, (len(frames), HEIGHT, WIDTH, 3), np.uint8)
        frames = tuple(jpeg.encode(picture, 95) for picture in noise)
    if source == "occluded":
        positions, visibility = tracks.positions.copy(), tracks.visibility.copy()
        visibility[:, 3:, HIDDEN] = 0
        positions[:, :, ON_OCCLUDER] = positions[:, :1, ON_OCCLUDER]
        tracks = replace(tracks, positions=positions, visibility=visibility)
    return StoredClip(info, tracks, frames)


def published(out: Path, clips: list[StoredClip], tracker: str = "truth") -> Path:
    snapshot = publish(out, clips)
    row = dict.fromkeys(SHARDS.names) | {
        "shard": "made-000000",
        "tracks_settings": json.dumps({"tracker": tracker}),
    }
    write_table(snapshot.folder / "shards.parquet", table_of([row], SHARDS))
    # Occluders have parts that the same scene without them does not have.
    rows = read_table(snapshot.folder / "clips.parquet").to_pylist()
    parts = {"occluded": ["shape:cup", "shape:pole"]}
    rows = [row | {"parts": parts.get(row["source"], ["shape:cup"])} for row in rows]
    write_table(snapshot.folder / "clips.parquet", table_of(rows, CLIPS))
    return out


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes under three conditions, each in another order; and two that are under one alone."""
    clips = [under("normal", number) for number in reversed(range(SCENES + 1))]
    clips += [under("dim", number) for number in range(SCENES)]
    clips += [under("occluded", number) for number in range(SCENES)]
    clips.append(under("another", SCENES + 1))
    return published(tmp_path_factory.mktemp("conditions"), clips)


def options(build: Path, **changes: int) -> HeldOutOptions:
    return HeldOutOptions(build=str(build), step=2, grid=8, **changes)  # type: ignore[arg-type]


def test_conditions_are_compared_on_the_points_that_all_of_them_show(scenes: Path) -> None:
    models = [colour_model("noise", False), colour_model("knows", True)]
    conditions = read_conditions(options(scenes), "normal", models)
    assert list(conditions) == ["normal", "dim", "occluded"]
    for name, held_out in conditions.items():
        keys = [clip.info.key for clip in held_out.clips]
        assert keys == [f"{name}-scene{number}-000000" for number in range(SCENES)]
    common = points_in_all(conditions)
    assert common.shape == (SCENES, 4, 36)
    expected = [conditions["normal"].clips[0].valid(frame) for frame in range(4)]
    for frame in range(4):  # the stored frames 0, 2, 4, 6
        expected[frame][ON_OCCLUDER] = False
        if frame >= 2:
            assert expected[frame][HIDDEN].all()
            expected[frame][HIDDEN] = False
        assert (common[:, frame] == expected[frame]).all()

    scores = score_conditions(conditions, models, 8)
    videos, metric = conditions["normal"].videos, NAMED["moving_pck@0.1"]
    for found in scores.values():
        assert sum(len(pair.moving) for pair in found["knows"].pairs) == common[:, 1:].sum()
    gains = from_reference(metric, scores, "knows", videos)
    # Occluders change no picture here, so on the same points they change no answer.
    assert (gains["occluded"].base, gains["occluded"].gain) == (gains["dim"].base, 0)
    assert gains["occluded"].base > 0.8
    assert gains["dim"].model < 0.3
    assert (gains["dim"].verdict, gains["dim"].groups) == ("worse", SCENES)
    assert gains["dim"].p_holm == 2 * (gains["dim"].p or 0)
    better = from_base(metric, scores, "noise", "knows", videos)
    assert [better[name].verdict == "better" for name in scores] == [True, False, True]
    assert better["normal"].gain == better["occluded"].gain > 0.5


@pytest.mark.slow
def test_a_table_per_metric_and_results(
    scenes: Path, a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", f"first={a_run}:first", "--model", f"last={a_run}"]
    where = [str(scenes), "--out", str(tmp_path), "--device", "cpu", "--step", "2", "--grid", "8"]
    assert evaluate(["robustness", *where, *models, "--clips", "6"]) == 0
    text = capsys.readouterr().out
    assert "3 conditions: normal, dim, occluded" in text
    assert "6 clips of 6 videos" in text
    assert "last, less itself under 'normal'" in text
    assert "last less first" in text
    found = json.loads((tmp_path / "robustness.json").read_text())
    assert found["reference"] == "normal"
    figures = found["figures"]["occluded"]["last"]["pck@0.1"]
    assert figures["mean"] == pytest.approx(np.mean(figures["by_clip"]))
    gain = figures["mean"] - found["figures"]["normal"]["last"]["pck@0.1"]["mean"]
    stated = found["differences_from_reference"]["last"]["pck@0.1"]["occluded"]
    assert stated["gain"] == pytest.approx(gain)
    assert found["differences_from_base"]["last"]["pck@0.1"].keys() == found["figures"].keys()
    keys = found["data"]["conditions"]["dim"]["keys"]
    assert [keys[0], keys[-1]] == ["dim-scene0-000000", "dim-scene7-000000"]
    # The weights' training is compared with what any condition shows.
    assert found["training_overlap"]["last"]["of_sequences"] == 6
    assert found["training_overlap"]["last"]["of_parts"] == 2
    # Never moving is the same answer in any picture.
    static = [of_models["never moves"]["pck@0.1"] for of_models in found["figures"].values()]
    assert static[0] == static[1] == static[2]


def test_what_cannot_be_compared_is_said_in_a_sentence(scenes: Path, tmp_path: Path) -> None:
    models = [colour_model("noise", False)]
    with pytest.raises(PretrackError, match=r"no clips of a source 'bright' that fit: .*, dim"):
        read_conditions(options(scenes), "bright", models)
    with pytest.raises(PretrackError, match=r"no other source in .* has the scenes of 'another'"):
        read_conditions(options(scenes), "another", models)
    clips = [under(source, number) for source in ("normal", "dim") for number in range(2)]
    out = published(tmp_path / "tracked", clips, "lucas_kanade")
    with pytest.raises(PretrackError, match=r"tracks of source 'normal' in .* are not exact"):
        read_conditions(options(out), "normal", models)
    info = replace(clips[2].info, frame_numbers=tuple(range(5, 17)))
    out = published(tmp_path / "other", [*clips[:2], replace(clips[2], info=info)])
    with pytest.raises(PretrackError, match=r"'normal' and 'dim' in .* differ in their frames"):
        read_conditions(options(out), "normal", models)
