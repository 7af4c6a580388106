"""Selection: clips that fit the settings are used, others are counted in the log."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest

from shards.errors import PretrackError
from tests.trainer.conftest import panning_clip, publish
from trainer.data.clip_selection import frames_available, frames_needed
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.settings import DataSettings


def data(*out: Path, **changes: object) -> DataSettings:
    return DataSettings.model_validate({"out": out, "size": 64, "step": 2, **changes})


def dataset(settings: DataSettings, seed: int = 1) -> ClipDataset:
    return ClipDataset(open_snapshots(settings), settings, seed)


def test_clips_left_out_are_counted_in_the_log(
    build: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "trainer.data.clip_selection"):
        assert len(dataset(data(build))) == 10
    assert "4 clips left out: split other than 'train'" in caplog.text
    assert len(dataset(data(build, split="eval"))) == 4
    with pytest.raises(
        PretrackError, match=r"no clip in .* fits: split 'train', 13 frames or more"
    ):
        dataset(data(build, frames=13))
    with pytest.raises(PretrackError, match="no clip"):
        dataset(data(build, where="dataset == 'co3d'"))


def test_several_folders_are_one_list(build: Path, tmp_path: Path) -> None:
    publish(tmp_path, [panning_clip("other-0", 50, frames=20)])
    clips = dataset(data(build, tmp_path))
    assert len(clips) == 11
    assert clips[0, 10]["key"] == "other-0"
    publish(tmp_path, [panning_clip("other-0", 50, grid=5)])
    with pytest.raises(PretrackError, match=r"differ in their points \(\[25, 36\]\)"):
        dataset(data(build, tmp_path))


def test_a_filter_selects_clips_and_counts_the_others(
    build: Path, caplog: pytest.LogCaptureFixture
) -> None:
    s = DataSettings.model_validate(
        {"out": build, "size": 64, "where": "key in ('made-01', 'made-04', 'made-12')"}
    )
    with caplog.at_level("INFO", "trainer.data.clip_selection"):
        dataset = ClipDataset(open_snapshots(s), s, seed=0)
    assert [dataset.clips[i].key for i in range(len(dataset))] == ["made-01", "made-04"]
    assert "8 clips left out: not key in" in caplog.text


@pytest.mark.parametrize(
    ("anchor", "direction", "available"),
    [
        # of anchors 3 and 8 of 10 frames: 6 after frame 3, 8 before frame 8
        ("random", "both", [8, 11, -1]),
        ("random", "forward", [6, 11, -1]),
        ("first", "both", [6, 11, -1]),
        ("first", "forward", [6, 11, -1]),
    ],
)
def test_frames_available_are_those_worked_out_by_hand(
    anchor: str, direction: str, available: list[int]
) -> None:
    clips = pa.table({"anchors": [[3, 8], [0], []], "frames": [10, 12, 5]})
    settings = data(Path("x"), anchor=anchor, direction=direction)
    assert frames_available(clips, settings).tolist() == available


def test_a_clip_needs_one_frame_per_step_unless_one_moment_is_shown() -> None:
    assert frames_needed(data(Path("x"), frames=4, step=10)) == 3
    assert frames_needed(data(Path("x"), frames=4, step=1)) == 3
    assert frames_needed(data(Path("x"), frames=4, step=0)) == 0


def test_a_clip_of_just_enough_frames_is_used(tmp_path: Path) -> None:
    publish(tmp_path, [panning_clip(f"made-{n}", n, frames=n, anchors=(0,)) for n in (3, 4, 5)])
    clips = dataset(data(tmp_path, step=10))
    assert [clips.clips[i].key for i in range(len(clips))] == ["made-4", "made-5"]


def mixed(tmp_path: Path, **weights: float) -> ClipDataset:
    a, b = tmp_path / "a", tmp_path / "b"
    if not a.exists():
        publish(a, [panning_clip(f"a-{i}", i) for i in range(6)])
        publish(b, [panning_clip(f"b-{i}", i) for i in range(2)])
    named = {
        str(tmp_path / name) if name in ("a", "b") else name: weight
        for name, weight in weights.items()
    }
    s = DataSettings.model_validate(
        {"out": [str(a), str(b)], "size": 64, "step": 2, "weights": named}
    )
    return ClipDataset(open_snapshots(s), s, seed=1)


def test_folders_are_mixed_by_their_weights(tmp_path: Path) -> None:
    dataset = mixed(tmp_path, a=1, b=3)
    items = [item for batch in islice(dataset.sampler(4), 20) for item in batch]
    assert len(items) == 80
    keys = Counter(dataset[item]["key"][0] for item in items)
    assert keys == {"a": 20, "b": 60}
    again = [dataset[item]["positions"] for item in items if dataset.clips[item[1]].key == "b-0"]
    # Of 30 samples: a repeated clip shows other frames or another crop.
    assert len({positions.numpy().tobytes() for positions in again}) > 25


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        PretrackError, match=r"names 'co3d', and no clip is of such a dataset .*video_folder"
    ):
        mixed(tmp_path, co3d=1)
    with pytest.raises(PretrackError, match="b-0 is in none"):
        mixed(tmp_path, a=1)
    with pytest.raises(PretrackError, match="a-0 is in two"):
        mixed(tmp_path, a=1, video_folder=2)
