"""The clip table: a resumed run opens its own snapshots, and clips are numbered across shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shards.errors import PretrackError
from tests.trainer.conftest import panning_clip, publish
from trainer.config import TrainSettings
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.settings import DataSettings


def test_a_resumed_run_opens_its_own_snapshot(
    build: Path, settings: Callable[..., TrainSettings]
) -> None:
    assert [snapshot.name for snapshot in open_snapshots(settings().data, ["000001"])] == ["000001"]
    with pytest.raises(PretrackError, match="has no snapshot '000009'"):
        open_snapshots(settings().data, ["000009"])


def test_folders_and_names_that_differ_in_number_are_refused(
    build: Path, settings: Callable[..., TrainSettings]
) -> None:
    with pytest.raises(PretrackError, match=r"started with 2 folders in 'data.out', .* are 1"):
        open_snapshots(settings().data, ["000001", "000001"])


def test_shards_of_two_folders_with_one_name_are_two_shards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        publish(tmp_path / name, [panning_clip(f"{name}-{i}", i) for i in range(2)])
    settings = DataSettings.model_validate({"out": [tmp_path / "a", tmp_path / "b"], "size": 64})
    clips = ClipDataset(open_snapshots(settings), settings, seed=1).clips
    assert clips.shards.tolist() == [0, 0, 1, 1]
