"""The loader: killed runs resume exactly, in other processes too; damage is named or left out."""

from __future__ import annotations

import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader, default_collate
from torchdata.stateful_dataloader import StatefulDataLoader

from shards.errors import PretrackError, ShardError
from tests.trainer.conftest import panning_clip, publish
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader, explain_killed_workers
from trainer.data.sampler import ClipSampler
from trainer.data.settings import DataSettings

REPOSITORY = Path(__file__).parents[3]
STEPS, BATCH = 60, 6


def reader(path: Path, data: dict[str, Any], **arguments: Any) -> subprocess.Popen[bytes]:
    """Start a rank in a process of its own, in a process group that can be killed with it."""
    given = {
        "steps": STEPS,
        "batch": BATCH,
        "rank": 0,
        "world": 1,
        "workers": 0,
        "state": None,
    } | arguments
    command = [
        sys.executable,
        "-m",
        "tests.helpers.reading",
        json.dumps({"path": str(path), "data": data} | given),
    ]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
    )


def lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines that a rank has written."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.fixture(scope="module")
def two_folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("folders")
    publish(out / "a", [panning_clip(f"a-{i:02d}", i) for i in range(31)])
    publish(out / "b", [panning_clip(f"b-{i:02d}", 50 + i) for i in range(8)])
    return [str(out / "a"), str(out / "b")]


@pytest.fixture
def left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give killed processes a temporary folder for what they leave behind.

    Paths in pytest's own folders are too long for sockets.
    """
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("left_behind")
@pytest.mark.parametrize("mixed", [False, True], ids=["list", "mixed"])
def test_another_number_of_ranks_and_workers_resumes_killed_ranks(
    two_folders: list[str], mixed: bool, tmp_path: Path
) -> None:
    data: dict[str, Any] = {"out": two_folders, "size": 32, "step": 2}
    if mixed:
        data |= {"weights": {two_folders[0]: 1, two_folders[1]: 1.5}, "shuffle_shards": 1}
    assert reader(tmp_path / "whole", data).wait() == 0
    whole = lines(tmp_path / "whole")
    assert len(whole) == STEPS

    stop = random.Random(int(mixed)).randrange(5, 40)
    endless = 1_000_000  # or the rank that starts first might end before the other has begun
    ranks = [
        reader(tmp_path / f"rank{r}", data, steps=endless, rank=r, world=2, workers=2)
        for r in (0, 1)
    ]
    while min(len(lines(tmp_path / f"rank{r}")) for r in (0, 1)) < stop:
        assert all(rank.poll() is None for rank in ranks)
        time.sleep(0.01)
    for rank in ranks:
        os.killpg(rank.pid, signal.SIGKILL)
        rank.wait()
    read = [lines(tmp_path / f"rank{r}") for r in (0, 1)]
    done = min(STEPS - 1, *(len(part) for part in read))
    for step in range(done):
        assert sorted(read[0][step]["clips"] + read[1][step]["clips"]) == sorted(
            whole[step]["clips"]
        )

    state = read[0][done - 1]["state"]
    assert (
        reader(tmp_path / "resumed", data, workers=3, state=state, steps=STEPS - done).wait() == 0
    )
    assert [line["clips"] for line in lines(tmp_path / "resumed")] == [
        line["clips"] for line in whole[done:]
    ]


def opened(out: Path, **changes: object) -> ClipDataset:
    settings = DataSettings.model_validate({"out": out, "size": 64, "step": 2, **changes})
    return ClipDataset(open_snapshots(settings), settings, seed=1)


def test_a_loader_resumes_at_a_saved_position(build: Path) -> None:
    dataset = opened(build)
    loader = Loader(dataset, dataset.sampler(4))
    keys = [batch["key"] for batch in islice(loader, 5)]
    other = Loader(dataset, dataset.sampler(4))
    stream = iter(other)
    assert [next(stream)["key"] for _ in range(2)] == keys[:2]
    state = json.loads(json.dumps(other.state_dict()))
    fresh = Loader(dataset, dataset.sampler(4))
    fresh.load_state_dict(state)
    assert [batch["key"] for batch in islice(fresh, 3)] == keys[2:]
    with pytest.raises(PretrackError, match=r"counts other batches \(batch_size differ\)"):
        Loader(dataset, dataset.sampler(5)).load_state_dict(state)
    with pytest.raises(PretrackError, match=r"counts other batches \(clips differ\)"):
        Loader(opened(build, split="eval"), dataset.sampler(4)).load_state_dict(state)


def test_iterating_again_continues_with_the_same_workers(build: Path) -> None:
    dataset = opened(build)
    unbroken = [batch["key"] for batch in islice(Loader(dataset, dataset.sampler(2)), 12)]
    loader = Loader(dataset, dataset.sampler(2), workers=2)
    first = [batch["key"] for batch in islice(loader, 7)]
    workers = {child.pid for child in psutil.Process().children()}
    second = [batch["key"] for batch in islice(loader, 5)]
    assert first + second == unbroken
    assert workers <= {child.pid for child in psutil.Process().children()}


def test_a_loader_in_a_reference_cycle_shuts_its_workers_down(build: Path) -> None:
    """An error's traceback can hold a loader in a cycle.

    If the garbage collector cleared the loader piece by piece, torch would wait for each worker,
    20 s in all.
    """
    dataset = opened(build)
    before = set(psutil.Process().children())
    loader = Loader(dataset, dataset.sampler(2), workers=2)
    held: list[Any] = [loader, iter(loader)]
    next(held[1])
    workers = set(psutil.Process().children()) - before
    assert len(workers) == 2
    held.append(held)
    del loader, held
    begun = time.monotonic()
    gc.collect()
    assert time.monotonic() - begun < 9
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_resumes_at_a_saved_position(build: Path, workers: int) -> None:
    dataset = opened(build)

    def stateful() -> Any:
        return StatefulDataLoader(dataset, batch_sampler=dataset.sampler(2), num_workers=workers)

    keys = [batch["key"] for batch in islice(Loader(dataset, dataset.sampler(2)), 9)]
    loader = stateful()
    assert [batch["key"] for batch in islice(loader, 4)] == keys[:4]
    resumed = stateful()
    resumed.load_state_dict(loader.state_dict())
    assert [batch["key"] for batch in islice(resumed, 5)] == keys[4:]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_equals_its_stacked_items(build: Path, workers: int) -> None:
    dataset = opened(build, colour={"jitter": 1, "student_only": True})
    items = next(iter(dataset.sampler(4)))
    stacked = default_collate([dataset[item] for item in items])
    batch = next(iter(Loader(dataset, dataset.sampler(4), workers)))
    assert batch.keys() == stacked.keys()
    assert batch["key"] == stacked.pop("key")
    for name, value in stacked.items():
        assert torch.equal(batch[name], value), name  # type: ignore[literal-required]


def damaged(
    tmp_path: Path, bad: set[int], clips: int = 12, what: str = "tracks"
) -> tuple[Path, ClipDataset]:
    """Publish a build in which some clips' tracks or frames are overwritten by zeros."""
    snapshot = publish(tmp_path, [panning_clip(f"made-{i:02d}", i) for i in range(clips)])
    rows = snapshot.clips.to_pylist()
    shard = snapshot.shard_path(rows[0]["shard"])
    with open(str(shard), "r+b") as file:
        for row in (rows[number] for number in bad):
            first, last = row["frame_offsets"][0], row["frame_offsets"][-1] + row["frame_sizes"][-1]
            file.seek(row["tracks_offset"] if what == "tracks" else first)
            file.write(bytes(row["tracks_size"] if what == "tracks" else last - first))
    return Path(str(shard)), opened(tmp_path, on_error="skip")


def test_workers_that_need_more_shared_memory_than_there_is_are_refused(build: Path) -> None:
    dataset = opened(build)
    with pytest.raises(
        PretrackError,
        match=r"no room for 1517760 MB: 1000000 workers with 5 batches of 0.3 MB each\. "
        r".* or take fewer workers",
    ):
        Loader(dataset, dataset.sampler(BATCH), workers=1_000_000)


@pytest.mark.parametrize("slow", [0.0, 0.05], ids=["at once", "late"])
def test_a_batch_keeps_its_content_while_workers_read_ahead(build: Path, slow: float) -> None:
    dataset = opened(build)
    expected = list(islice(Loader(dataset, dataset.sampler(2)), 24))
    kept = []
    for batch in islice(Loader(dataset, dataset.sampler(2), workers=2), 24):
        kept.append(batch)
        time.sleep(slow)  # until workers have filled all slots
    for batch, other in zip(kept, expected, strict=True):
        assert batch["key"] == other["key"]
        assert torch.equal(batch["frames"], other["frames"])
        assert torch.equal(batch["positions"], other["positions"])


def test_slots_are_not_mixed_up_after_an_error_or_iterating_again(tmp_path: Path) -> None:
    _, dataset = damaged(tmp_path, {3})
    loader = Loader(opened(tmp_path), dataset.sampler(2), workers=2)
    failures = read = 0
    while failures < 3 or read < 24:
        step = loader.step
        try:
            for batch in islice(loader, 4):  # then again, while workers have read further
                expected = opened(tmp_path).batch(
                    next(iter(dataset.sampler(2, start=loader.step - 1)))
                )
                assert batch["key"] == expected["key"]
                assert torch.equal(batch["frames"], expected["frames"])
                read += 1
        except ShardError:  # of made-03
            failures += 1
            loader.load_state_dict({**loader.state_dict(), "step": max(step, loader.step) + 1})


@pytest.mark.parametrize(("workers", "what"), [(0, "tracks"), (2, "tracks"), (2, "frames")])
def test_damaged_clips_are_left_out_and_counted(
    tmp_path: Path, workers: int, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, dataset = damaged(tmp_path, {2, 5}, what=what)
    batches = list(islice(Loader(dataset, dataset.sampler(4), 0), 3))
    loader = Loader(dataset, dataset.sampler(4), workers)
    caplog.clear()
    again = list(islice(loader, 3))
    assert [batch["key"] for batch in again] == [batch["key"] for batch in batches]
    assert all(len(batch["key"]) == 4 for batch in again)
    assert not {"made-02", "made-05"} & {key for batch in again for key in batch["key"]}
    assert loader.skipped == 2 == caplog.text.count("left out (")
    assert "clip made-02 in" in caplog.text
    assert ("cannot be unpacked" if what == "tracks" else "not a JPEG") in caplog.text
    assert "run 'pretrack verify'" in caplog.text


def test_an_unreadable_clip_is_replaced_from_its_group(
    two_folders: list[str], tmp_path: Path
) -> None:
    b = tmp_path / "b"
    shutil.copytree(two_folders[1], b)
    weights = {two_folders[0]: 1.0, str(b): 1.0}
    settings = DataSettings.model_validate(
        {"out": [two_folders[0], b], "size": 32, "step": 2, "weights": weights, "on_error": "skip"}
    )
    snapshots = open_snapshots(settings)
    row = snapshots[1].clips.to_pylist()[3]
    with open(str(snapshots[1].shard_path(row["shard"])), "r+b") as file:
        file.seek(row["tracks_offset"])
        file.write(bytes(row["tracks_size"]))
    dataset = ClipDataset(snapshots, settings, seed=1)
    keys = [
        key for batch in islice(Loader(dataset, dataset.sampler(6)), 12) for key in batch["key"]
    ]
    assert sum(key.startswith("b") for key in keys) == 36
    assert "b-03" not in keys


def test_a_run_ends_if_no_clip_can_be_read(tmp_path: Path) -> None:
    shard, dataset = damaged(tmp_path, set())
    shard.unlink()
    with pytest.raises(
        ShardError,
        match=r"11 clips in a row could not be read, the last: clip made-.* cannot be read",
    ):
        dataset[0, 0]
    with pytest.raises(
        ShardError, match=r"clip made-00 in .*made-000000.tar: .*run 'pretrack verify'$"
    ):
        opened(tmp_path)[0, 0]


@pytest.mark.slow
def test_spawned_workers_memory_map_the_clip_table(build: Path) -> None:
    dataset = opened(build)
    assert len(ForkingPickler.dumps(dataset)) < 10_000
    ours = {child.pid for child in psutil.Process().children()}
    stream = iter(
        DataLoader(
            dataset, None, sampler=[(1, 2), (1, 3)], num_workers=1, multiprocessing_context="spawn"
        )
    )  # type: ignore[arg-type]
    copied = next(stream)
    np.testing.assert_array_equal(copied["frames"], dataset[1, 2]["frames"])
    spawned = [child for child in psutil.Process().children() if child.pid not in ours]
    assert any(
        Path(file.path).name == "clips.arrow" for child in spawned for file in child.memory_maps()
    )


@pytest.mark.slow
def test_a_workers_memory_does_not_grow(build: Path) -> None:
    dataset = opened(build, size=224)
    others = {child.pid for child in psutil.Process().children()}
    stream = iter(Loader(dataset, ClipSampler(len(dataset), 8, seed=1), workers=1))
    next(stream)
    (worker,) = [child for child in psutil.Process().children() if child.pid not in others]

    def worker_memory(batches: int) -> int:
        for _ in range(batches):
            next(stream)
        return int(worker.memory_full_info().uss)

    worker_memory(100)
    before = worker_memory(1)
    assert worker_memory(600) - before < 20e6
    assert before < 300e6


STILL_READING = """
import sys
from trainer.data.clip_table import open_snapshots
from trainer.data.settings import DataSettings
from trainer.data.dataset import ClipDataset
from trainer.data.loader import Loader
from trainer.data.streaming import StreamedClips

settings = DataSettings(out=[sys.argv[1]], size=64, step=2)
dataset = ClipDataset(open_snapshots(settings), settings, seed=1)
streams = [
    iter(Loader(dataset, dataset.sampler(2), workers=1)),
    StreamedClips(sys.argv[1], settings, seed=1).batches(2, workers=1),
]
print([len(next(stream)["key"]) for stream in streams], flush=True)
"""


@pytest.mark.slow
def test_a_process_exits_while_its_workers_still_read(build: Path) -> None:
    command = [sys.executable, "-c", STILL_READING, str(build)]
    run = subprocess.run(
        command,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "[2, 2]\n"


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_sentence(build: Path) -> None:
    """As the kernel kills one for lack of memory. torch's error may come at any point here."""
    dataset = opened(build)
    loader = Loader(dataset, dataset.sampler(2), workers=2)
    batches = iter(loader)
    next(batches)
    pid = loader._loader._iterator._workers[0].pid  # type: ignore[union-attr]

    def kill_and_read_on() -> None:
        os.kill(pid, signal.SIGKILL)
        for _ in batches:
            pass

    with pytest.raises(PretrackError) as caught, explain_killed_workers():
        kill_and_read_on()
    assert re.fullmatch(
        rf"a worker of the data loader \(process {pid}\) was lost "
        r"\((killed by signal: Killed|exited unexpectedly)\), most often for lack of memory: take "
        r"fewer workers or smaller batches, and run the same command again",
        str(caught.value),
    )
