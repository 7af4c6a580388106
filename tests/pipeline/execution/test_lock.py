"""The lock of an output folder: one build holds it, and only a killed build loses it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import pipeline.execution.lock
from pipeline.execution.lock import _Holder, build_lock
from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import atomic_write, read_file, sizes_in
from tests.helpers.google_store import google_store
from tests.helpers.object_store import BUCKET, Behaviour

HOLDS = """
import sys, time
from pipeline.execution.lock import build_lock
from shards.files import parse_location
with build_lock(parse_location(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def out(request: pytest.FixtureRequest, store: Behaviour) -> Iterator[Url]:
    yield Url(f"s3://{BUCKET}/{request.node.name}")
    store.lose_answers, store.clock_s = 0, 0.0


def test_a_lease_is_held_by_one_build_and_released(out: Url) -> None:
    with build_lock(out) as lock:
        lock.check()
        with (
            pytest.raises(
                PretrackError,
                match=rf"another build is at work on {out} \(process {os.getpid()} on ",
            ),
            build_lock(out),
        ):
            pass
        lock.check()
        assert list(sizes_in(out)) == ["build.lock"]
    assert sizes_in(out) == {}


@pytest.mark.parametrize("answers", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_lease_is_held_though_answers_are_lost(out: Url, store: Behaviour, answers: int) -> None:
    store.lose_answers = answers
    with build_lock(out) as lock:
        store.lose_answers = answers
        lock.check()
        store.lose_answers = answers
        lock.check()
    assert sizes_in(out) == {}


def test_a_lease_is_renewed_though_answers_are_lost(
    out: Url, store: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline.execution.lock, "RENEW_EVERY_S", 0.05)
    with build_lock(out):
        store.lose_answers = 2
        for _ in range(3):
            lease, deadline = read_file(out / "build.lock"), time.monotonic() + 20
            while read_file(out / "build.lock") == lease:
                assert time.monotonic() < deadline, "it is not renewed any more"
                time.sleep(0.02)


def test_a_build_that_lost_its_lease_is_told_and_does_not_delete_it(out: Url) -> None:
    with build_lock(out) as lock:
        atomic_write(out / "build.lock", _Holder.this_process().to_json())
        with pytest.raises(
            PretrackError, match=rf"the lock {out}/build.lock was taken by another build"
        ):
            lock.check()
        assert lock.lost
    assert list(sizes_in(out)) == ["build.lock"]


def test_a_process_of_another_container_is_not_taken_for_dead(out: Url) -> None:
    no_process = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    atomic_write(
        out / "build.lock",
        json.dumps({"host": socket.gethostname(), "process": no_process}).encode(),
    )
    with pytest.raises(PretrackError, match="another build is at work"), build_lock(out):
        pass
    elsewhere = replace(_Holder.this_process(), process=no_process, machine="another boot pid:[1]")
    atomic_write(out / "build.lock", elsewhere.to_json())
    with pytest.raises(PretrackError, match="another build is at work"), build_lock(out):
        pass


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_over_at_once(out: Url) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(PretrackError, match=rf"process {holder.pid} on {socket.gethostname()}"),
            build_lock(out),
        ):
            pass
        holder.kill()
    with build_lock(out) as lock:
        lock.check()


def test_a_later_process_with_the_same_id_holds_no_lease(out: Url) -> None:
    atomic_write(out / "build.lock", replace(_Holder.this_process(), started="1").to_json())
    with build_lock(out) as lock:
        lock.check()


@pytest.mark.slow
@pytest.mark.parametrize("clock_s", [-3600.0, 3600.0])
def test_a_lease_is_as_old_as_the_store_says(
    out: Url, store: Behaviour, clock_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.clock_s = clock_s
    atomic_write(out / "build.lock", replace(_Holder.this_process(), machine="elsewhere").to_json())
    with pytest.raises(PretrackError, match=r"last heard of [0-9] s ago"), build_lock(out):
        pass
    monkeypatch.setattr(pipeline.execution.lock, "EXPIRES_AFTER_S", 0.5)
    time.sleep(1.6)
    with build_lock(out) as lock:
        lock.check()
    assert sizes_in(out) == {}


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"{", b"[1]", b'{"what": 1}'])
def test_a_damaged_lease_is_held_until_it_expires(
    out: Url, garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    atomic_write(out / "build.lock", garbage)
    with (
        pytest.raises(PretrackError, match=r"another build is at work .*an unknown process"),
        build_lock(out),
    ):
        pass
    monkeypatch.setattr(pipeline.execution.lock, "EXPIRES_AFTER_S", -1.0)
    with build_lock(out) as lock:
        lock.check()
    assert sizes_in(out) == {}


def test_a_lease_on_googles_store_is_renewed_and_taken_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = Url(f"gs://{BUCKET}/out")
    with google_store():
        with build_lock(out) as lock:
            lock.check()
            with pytest.raises(PretrackError, match="another build is at work"), build_lock(out):
                pass
            lock.check()
            atomic_write(out / "build.lock", _Holder.this_process().to_json())
            with pytest.raises(PretrackError, match="was taken by another build"):
                lock.check()
        monkeypatch.setattr(pipeline.execution.lock, "EXPIRES_AFTER_S", -1.0)
        with build_lock(out) as lock:
            lock.check()
        with pytest.raises(FileNotFoundError):
            read_file(out / "build.lock")


def test_a_blocking_error_of_the_build_itself_is_not_taken_for_another_build(
    tmp_path: Path,
) -> None:
    with pytest.raises(BlockingIOError), build_lock(tmp_path):
        raise BlockingIOError
