"""Tars that are read front to back: the same samples, from where ranges cannot be requested."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from manifests.receipt import shard_path
from shards.errors import PretrackError, SettingsError, ShardError
from tests.helpers.clips import write_clips
from tests.helpers.web_server import web_server
from tests.trainer.conftest import panning_clip, publish
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.data.settings import DataSettings
from trainer.data.streaming import StreamedClips, listed_tars

PLAIN: dict[str, Any] = {"anchor": "first", "direction": "forward", "crop": "centre", "flip": 0.0}
"""Settings that leave nothing to chance."""
WHOLE_FILES = r"^http://.*sends only whole files .*'trainer.data.streaming'$"


def settings_for(out: object, **changes: object) -> DataSettings:
    return DataSettings.model_validate({"out": out, "size": 64, "step": 2, **changes})


def streamed(tars: str | list[str], buffer: int = 256, **changes: object) -> StreamedClips:
    return StreamedClips(tars, settings_for("not-looked-at", **changes), seed=1, buffer=buffer)


def keys(clips: StreamedClips, count: int) -> list[str]:
    return [str(sample["key"]) for sample in islice(clips, count)]


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tars of three clips each, and nothing else."""
    out = tmp_path_factory.mktemp("tars")
    for tar in range(4):
        write_clips(
            out / f"{tar}.tar", [panning_clip(f"clip-{tar}-{i}", 3 * tar + i) for i in range(3)]
        )
    return out


def from_a_folder(build: Path) -> str:
    return str(build)


def from_its_list(build: Path) -> str:
    return str(build / "snapshots" / "000001" / "shards.txt")


def from_a_pattern(build: Path) -> str:
    return str(build / "shards" / "*.tar")


def from_a_command(build: Path) -> str:
    return f"pipe:cat {shard_path(build, 'made-000000')}"


@pytest.mark.parametrize("where", [from_a_folder, from_its_list, from_a_pattern, from_a_command])
def test_streamed_samples_equal_indexed_ones(build: Path, where: Callable[[Path], str]) -> None:
    settings = settings_for(build, **PLAIN)
    indexed = ClipDataset(open_snapshots(settings), settings, seed=1)
    expected = {sample["key"]: sample for sample in (indexed[0, i] for i in range(len(indexed)))}
    samples = list(islice(streamed(where(build), **PLAIN), len(indexed)))
    assert sorted(sample["key"] for sample in samples) == sorted(expected)
    for sample in samples:
        assert sample.keys() == expected[sample["key"]].keys()
        for name in ("frames", "positions", "visibility", "confidence", "inside"):
            assert torch.equal(sample[name], expected[sample["key"]][name]), name  # type: ignore[literal-required]


def test_augmentation_follows_from_seed_pass_and_key(build: Path) -> None:
    changes: dict[str, Any] = {
        "crop": "random",
        "flip": 0.5,
        "colour": {"jitter": 1.0, "student_only": True},
    }
    once, again = (list(islice(streamed(str(build), buffer, **changes), 20)) for buffer in (256, 1))
    assert [sample["key"] for sample in once] != [sample["key"] for sample in again], (
        "the buffer shuffles"
    )
    for first, last in ((0, 10), (10, 20)):  # a pass
        other = {sample["key"]: sample for sample in again[first:last]}
        for sample in once[first:last]:
            assert torch.equal(sample["frames"], other[sample["key"]]["frames"])
            assert not torch.equal(sample["frames"][0], sample["teacher_frame"])
    shown = {sample["key"]: sample["frames"] for sample in once[:10]}
    assert not any(torch.equal(sample["frames"], shown[sample["key"]]) for sample in once[10:]), (
        "each pass draws again"
    )


def test_a_server_that_sends_whole_files_only(build: Path) -> None:
    with web_server(build, ranges=False) as served:
        settings = settings_for(served.url)
        dataset = ClipDataset(open_snapshots(settings), settings, seed=1)
        with pytest.raises(PretrackError, match=WHOLE_FILES) as caught:
            dataset[0, 0]
        assert not isinstance(caught.value, ShardError), "no clip is damaged"
    with web_server(build, ranges=False) as served:
        assert sorted(keys(streamed(served.url), 10)) == sorted(keys(streamed(str(build)), 10))
        assert served.requests == 3  # the current snapshot, its list of tars, and its one tar


@pytest.mark.slow
def test_workers_and_a_server_that_sends_whole_files_only(build: Path) -> None:
    with web_server(build, ranges=False) as served:
        settings = settings_for(served.url, on_error="skip")
        dataset = ClipDataset(open_snapshots(settings), settings, seed=1)
        with pytest.raises(PretrackError, match=WHOLE_FILES):
            next(iter(Loader(dataset, dataset.sampler(2), workers=1)))
        (batch,) = islice(streamed(served.url).batches(10, workers=1), 1)
        assert sorted(batch["key"]) == sorted(keys(streamed(str(build)), 10))


def test_a_named_pipe_is_read_as_it_is_written(build: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    data = shard_path(build, "made-000000")
    assert isinstance(data, Path)
    writer = threading.Thread(target=(tmp_path / "pipe.tar").write_bytes, args=(data.read_bytes(),))
    writer.start()
    assert sorted(keys(streamed(str(tmp_path / "pipe.tar")), 10)) == sorted(
        keys(streamed(str(data)), 10)
    )
    writer.join()


def test_ranks_and_workers_share_the_tars(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = streamed(str(tars / "*.tar"))
    alone = [set(keys(clips, 12))]
    monkeypatch.setenv("WORLD_SIZE", "2")
    read = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        batches = list(
            islice(clips.batches(3, workers=2), 4)
        )  # two passes, each worker's in pass_number
        seen = [[set(batch["key"]) for batch in batches[worker::2]] for worker in (0, 1)]
        assert all(
            len({key.rsplit("-", 1)[0] for key in batch}) == 1 for part in seen for batch in part
        ), "a tar is one worker's"
        read.append([seen[0][pass_number] | seen[1][pass_number] for pass_number in (0, 1)])
    for pass_number in (0, 1):
        assert len(read[0][pass_number]) == len(read[1][pass_number]) == 6
        assert read[0][pass_number] | read[1][pass_number] == alone[0]


def test_more_workers_than_tars_are_refused(tars: Path) -> None:
    with pytest.raises(
        PretrackError,
        match=r"^4 tars cannot be shared by 1 ranks with 5 workers each.*take fewer workers$",
    ):
        next(streamed(str(tars / "*.tar")).batches(2, workers=5))


def test_damaged_tars_and_clips_are_named_or_left_out(
    tars: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (tars / "0.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "whole.tar").write_bytes((tars / "1.tar").read_bytes())
    spoilt = (tars / "2.tar").read_bytes()
    place = spoilt.index(b"\xff\xd8", spoilt.index(b"clip-2-1.tracks"))
    (tmp_path / "spoilt.tar").write_bytes(spoilt[:place] + bytes(64) + spoilt[place + 64 :])
    pattern = str(tmp_path / "*.tar")
    with pytest.raises(ShardError, match=r"^the tar .*cut.tar cannot be read to its end \(.*\)$"):
        keys(streamed(str(tmp_path / "cut.tar")), 3)
    with pytest.raises(ShardError, match=r"^clip clip-2-1 in .*spoilt.tar: not a JPEG"):
        keys(streamed(str(tmp_path / "spoilt.tar"), **PLAIN), 3)
    read = keys(streamed(pattern, on_error="skip", **PLAIN), 12)
    assert {"clip-1-0", "clip-1-1", "clip-1-2", "clip-2-0", "clip-2-2"} <= set(read)
    assert "clip-2-1" not in read
    assert "left out: clip clip-2-1" in caplog.text
    assert "cut.tar cannot be read to its end" in caplog.text


def test_a_command_that_fails_is_named(tars: Path) -> None:
    with pytest.raises(
        ShardError, match=r"^the tar pipe:head -c 20000 .* cannot be read to its end"
    ):
        keys(streamed(f"pipe:head -c 20000 {tars / '0.tar'}; exit 3"), 3)


def test_a_stream_without_fitting_clips_ends(tars: Path) -> None:
    with pytest.raises(
        PretrackError, match=r"^no clip in .* fits: split 'eval', 4 frames or more from an anchor$"
    ):
        next(iter(streamed(str(tars / "*.tar"), split="eval")))
    with pytest.raises(PretrackError, match=r"fits: split 'train', 13 frames"):
        next(iter(streamed(str(tars / "*.tar"), frames=13)))


def test_sources_and_settings_that_cannot_be_streamed_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^'data.where' needs a build's tables"):
        streamed(str(tmp_path / "0.tar"), where="motion > 0.1")
    with pytest.raises(PretrackError, match=r"^no file matches .*none-\*.tar$"):
        listed_tars(str(tmp_path / "none-*.tar"))
    with pytest.raises(PretrackError, match="holds no finished build"):
        listed_tars(str(tmp_path))
    publish(tmp_path, [panning_clip("made-0", 0)])
    (tmp_path / "snapshots" / "000001" / "shards.txt").unlink()
    with pytest.raises(
        PretrackError, match=r"shards.txt cannot be read .*it should list a snapshot's tars$"
    ):
        listed_tars(str(tmp_path))
