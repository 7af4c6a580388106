"""Training data on a bucket or web server: the same samples, few extra bytes, and a cache."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from manifests.snapshot import open_snapshot
from shards.bucket import Url
from shards.errors import PretrackError, ShardError
from shards.files import atomic_write, parse_location
from tests.helpers.clips import make_tracks
from tests.helpers.object_store import BUCKET, Behaviour
from tests.helpers.web_server import Served, web_server
from tests.trainer.conftest import panning_clip, publish
from trainer.data.augment import choose_frames
from trainer.data.clip_table import open_snapshots
from trainer.data.dataset import ClipDataset
from trainer.data.encoded_clip import EncodedClip
from trainer.data.loader import Loader
from trainer.data.member_cache import MemberCache
from trainer.data.sampler import SampleIndex
from trainer.data.settings import DataSettings


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 clips of 24 frames."""
    out = tmp_path_factory.mktemp("local")
    publish(
        out, [panning_clip(f"made-{i:02d}", i, frames=24, anchors=(0, 8, 16)) for i in range(40)]
    )
    return out


@pytest.fixture(scope="module")
def s3(local: Path, store: Behaviour) -> tuple[str, Behaviour]:
    for path in local.rglob("*"):
        if path.is_file():
            atomic_write(
                parse_location(f"s3://{BUCKET}/build/{path.relative_to(local)}"), path.read_bytes()
            )
    return f"s3://{BUCKET}/build", store


@pytest.fixture(scope="module")
def web(local: Path) -> Iterator[tuple[str, Served]]:
    with web_server(local) as served:
        yield served.url, served


@pytest.fixture(params=["s3", "web"])
def remote(request: pytest.FixtureRequest) -> tuple[str, Behaviour | Served]:
    """The URL of the build, and the server that counts requests and bytes."""
    url_and_server: tuple[str, Behaviour | Served] = request.getfixturevalue(request.param)
    return url_and_server


def opened(out: object, **changes: object) -> ClipDataset:
    settings = DataSettings.model_validate({"out": out, "size": 64, "step": 6, **changes})
    return ClipDataset(open_snapshots(settings), settings, seed=1)


def needed(dataset: ClipDataset, item: SampleIndex) -> int:
    """Return the bytes of the frames that a sample shows."""
    clip = dataset.clips[item[1]]
    random = np.random.default_rng([dataset.seed, *item])
    _, numbers = choose_frames(clip.frames, clip.anchors.tolist(), dataset.settings, random)
    return int(clip.frame_sizes[numbers].sum())


def assert_alike(a: ClipDataset, b: ClipDataset, items: list[SampleIndex]) -> None:
    for item in items:
        assert torch.equal(a[item]["frames"], b[item]["frames"])
        assert torch.equal(a[item]["positions"], b[item]["positions"])


def test_remote_samples_equal_local_ones_and_fetch_little_more(
    local: Path, remote: tuple[str, Behaviour | Served]
) -> None:
    url, counter = remote
    dataset = opened(url)
    items = [(0, i) for i in range(20)]
    before = counter.bytes_read
    samples = dataset.__getitems__(items)
    fetched = counter.bytes_read - before
    for sample, item in zip(samples, items, strict=True):
        assert torch.equal(sample["frames"], opened(local)[item]["frames"])
    assert fetched <= 1.3 * sum(needed(dataset, item) for item in items)


def test_only_the_tracks_of_the_anchor_that_is_shown_are_fetched(tmp_path: Path) -> None:
    publish(
        tmp_path,
        [
            replace(
                panning_clip("made-00", 0, frames=24), tracks=make_tracks(0, (0, 8, 16), 24, 4000)
            )
        ],
    )
    with web_server(tmp_path) as served:
        dataset = opened(served.url, anchor="first", direction="forward")
        clip = dataset.clips[0]
        before = served.bytes_read
        dataset[0, 0]
        fetched = served.bytes_read - before
    assert (
        fetched
        <= 1.1 * (clip.anchor_sizes[0] + needed(dataset, (0, 0)))
        < 0.5 * clip.anchor_sizes.sum()
    )


def test_threads_have_stopped_writing_to_a_batch_that_failed(local: Path, tmp_path: Path) -> None:
    """A worker reuses the batch's memory for another batch."""
    shutil.copytree(local, tmp_path / "build")
    row = open_snapshot(local).clips.to_pylist()[0]
    with open(tmp_path / "build" / "shards" / f"{row['shard']}.tar", "r+b") as file:
        file.seek(row["tracks_offset"])
        file.write(bytes(row["tracks_size"]))
    with web_server(tmp_path / "build") as served:
        dataset = opened(served.url)
        memory = torch.zeros(dataset.batch_shape(12).num_bytes, dtype=torch.uint8)
        with pytest.raises(ShardError, match="made-00"):
            dataset.load([(0, i) for i in range(12)], memory)
        left = memory.clone()
        dataset._threads.shutdown()  # waits for them
        assert torch.equal(memory, left)


def test_clips_of_a_batch_are_read_at_the_same_time(
    web: tuple[str, Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(web[0])
    read = ClipDataset.read
    barrier = threading.Barrier(8, timeout=20)

    def read_when_all_have_started(self: ClipDataset, index: SampleIndex) -> EncodedClip:
        barrier.wait()
        return read(self, index)

    monkeypatch.setattr(ClipDataset, "read", read_when_all_have_started)
    batch = dataset.batch([(0, i) for i in range(8)])
    assert batch["key"] == [f"made-{i:02d}" for i in range(8)]


def test_neighbouring_frames_are_one_request(web: tuple[str, Served]) -> None:
    url, served = web
    dataset = opened(url, step=1, anchor="first", direction="forward")
    before = served.requests
    dataset[0, 0]
    # The tracks lie near frame 0, and nearby members are fetched together.
    assert served.requests - before == 1


@pytest.mark.slow
def test_workers_read_from_a_store(local: Path, remote: tuple[str, Behaviour | Served]) -> None:
    url, _ = remote
    dataset = opened(url)
    dataset[0, 0]  # the store's threads run in this process already
    keys = [batch["key"] for batch in islice(Loader(opened(local), dataset.sampler(4)), 6)]
    assert [
        batch["key"] for batch in islice(Loader(dataset, dataset.sampler(4), workers=2), 6)
    ] == keys


@pytest.mark.slow
def test_workers_that_read_a_store_defer_sigterm(web: tuple[str, Served]) -> None:
    dataset = opened(web[0])
    batches = iter(Loader(dataset, dataset.sampler(4), workers=1))
    next(batches)
    origins = [
        child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())
    ]
    readers = [reader for origin in origins for reader in origin.children()]
    assert readers
    for process in [*origins, *readers]:
        process.terminate()
    ended, _ = psutil.wait_procs([*origins, *readers], timeout=0.5)
    assert not ended


def test_local_and_remote_folders_are_mixed(
    local: Path, s3: tuple[str, Behaviour], web: tuple[str, Served]
) -> None:
    urls = [str(local), s3[0], web[0]]
    dataset = opened(urls, weights={url: i + 1 for i, url in enumerate(urls)})
    drawn = [
        dataset.clips[index].folder
        for batch in islice(dataset.sampler(12), 10)
        for _, index in batch
    ]
    assert [drawn.count(folder) for folder in range(3)] == [20, 40, 60]
    # The same clip from three folders, with its own crop each time.
    assert len({dataset[0, i * 40]["frames"].numpy().tobytes() for i in range(3)}) == 3
    assert [dataset[0, i * 40]["key"] for i in range(3)] == ["made-00"] * 3


def test_members_that_were_read_are_cached(
    local: Path, remote: tuple[str, Behaviour | Served], tmp_path: Path
) -> None:
    url, counter = remote
    dataset = opened(url, cache={"folder": tmp_path, "gb": 1})
    items = [(0, i) for i in range(6)]
    assert_alike(dataset, opened(local), items)
    again = opened(url, cache={"folder": tmp_path, "gb": 1})
    before = counter.bytes_read
    assert_alike(again, opened(local), items)
    assert counter.bytes_read == before


def test_a_corrupt_cached_file_is_fetched_again(
    local: Path, web: tuple[str, Served], tmp_path: Path
) -> None:
    dataset = opened(web[0], cache={"folder": tmp_path, "gb": 1})
    dataset[0, 0]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]
    assert len(files) == 5
    for path in files:
        path.write_bytes(bytes(path.stat().st_size))
    assert_alike(dataset, opened(local), [(0, 0)])


def test_reading_continues_without_a_cache_that_cannot_be_written(
    local: Path, web: tuple[str, Served], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    dataset = opened(web[0], cache={"folder": tmp_path / "file" / "cache", "gb": 1})
    assert_alike(dataset, opened(local), [(0, 0), (0, 1)])
    assert caplog.text.count("cannot be written") == 1


def fill(url: str, folder: Path, seed: int) -> None:
    """Read 300 random 1 kB parts of a file through a shared cache of 200 kB."""
    cache = MemberCache(folder, 2e-4)
    random = np.random.default_rng(seed)
    for start in (random.integers(300, size=300) * 1000).tolist():
        (part,) = cache.read(Url(f"{url}/data"), [start], [1000])
        if part != bytes((start + i) % 251 for i in range(1000)):
            os._exit(1)


@pytest.mark.slow
def test_processes_share_a_cache_and_keep_its_limit(tmp_path: Path) -> None:
    served_folder, folder = tmp_path / "served", tmp_path / "cache"
    served_folder.mkdir()
    (served_folder / "data").write_bytes(bytes(i % 251 for i in range(401_000)))
    with web_server(served_folder) as served:
        spawn = multiprocessing.get_context("spawn")
        readers = [spawn.Process(target=fill, args=(served.url, folder, i)) for i in range(3)]
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers):
            readers[0].join(0.2)
            for reader in readers:
                reader.join(0.05)
            assert size_in(folder) <= 200_000
        assert [reader.exitcode for reader in readers] == [0, 0, 0]
        assert size_in(folder) > 140_000
        assert served.requests < 700  # of 900


def size_in(folder: Path) -> int:
    """Sum the bytes of a folder to which others write."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def test_the_least_recently_used_member_is_evicted(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "data").write_bytes(bytes(10_000_000))
    with web_server(tmp_path / "served") as served:
        url = Url(f"{served.url}/data")
        cache = MemberCache(tmp_path / "cache", 1e-3)
        for number in range(300):
            cache.read(url, [number * 10_000], [10_000])
            cache.read(url, [0], [10_000])  # used all the time
        before = served.requests
        cache.read(url, [0, 299 * 10_000], [10_000, 10_000])
        assert served.requests == before
        cache.read(url, [10_000], [10_000])
        assert served.requests == before + 1


@pytest.mark.slow
def test_missing_builds_snapshots_and_shards_are_named(
    web: tuple[str, Served], tmp_path: Path
) -> None:
    with pytest.raises(PretrackError, match="holds no finished build"):
        open_snapshot(f"{web[0]}/elsewhere")
    with pytest.raises(PretrackError, match="has no snapshot '000009'"):
        open_snapshot(web[0], "000009")
    publish(tmp_path, [panning_clip("made-0", 0, frames=24)])
    with web_server(tmp_path) as served:
        dataset = opened(served.url)
        next((tmp_path / "shards").iterdir()).unlink()
        with pytest.raises(
            ShardError, match=r"clip made-0 in http://.*made-000000.tar.*run 'pretrack verify'"
        ):
            dataset[0, 0]
