"""Files that pretrack renders: each is whole or rendered again, whoever is killed or in the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.failures import DecodeError, Reason
from pipeline.sources.rendering import render_missing
from shards.files import TEMPORARY

VIDEO = "v1-seed3-scene0000-4f-64x48"
NAMES = tuple(f"{VIDEO}/{frame:05d}.png" for frame in range(4))


def render(root: Path) -> None:
    render_missing("synthetic", str(root), NAMES, on_progress=lambda: None)


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("rendered")
    render(root)
    assert sorted(contents(root)) == [*NAMES]
    return contents(root)


def copy_to(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:-12],  # without the last chunk
        lambda data: data[:40],
        lambda data: data + b"\0",
        lambda data: data[:100] + bytes([data[100] ^ 4]) + data[101:],
        lambda data: b"\0" + data[1:],
        lambda data: bytes(len(data)),  # as after a power cut
        lambda data: b"<html>no frame</html>",
    ],
)
def test_a_damaged_file_is_rendered_again_and_others_are_not(
    tmp_path: Path, rendered: dict[str, bytes], damage: object
) -> None:
    assert callable(damage)
    copy_to(tmp_path, {**rendered, NAMES[1]: damage(rendered[NAMES[1]])})
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in NAMES}
    render(tmp_path)
    assert contents(tmp_path) == rendered
    after = {name: (tmp_path / name).stat().st_mtime_ns for name in NAMES}
    assert [name for name in NAMES if after[name] != before[name]] == [NAMES[1]]


def test_looking_at_files_is_progress(tmp_path: Path, rendered: dict[str, bytes]) -> None:
    """So that thousands of large files on a slow disk are not taken for a decoder that hangs."""
    copy_to(tmp_path, rendered)
    calls: list[None] = []
    render_missing("synthetic", str(tmp_path), NAMES, on_progress=lambda: calls.append(None))
    assert len(calls) == 4


def test_what_a_killed_process_left_is_removed(tmp_path: Path, rendered: dict[str, bytes]) -> None:
    left = f"{VIDEO}/{TEMPORARY}0123456789ab"
    other = f"v1-seed3-scene0001-4f-64x48/{TEMPORARY}0123456789ab"
    for present in ({}, rendered):
        copy_to(tmp_path, {**present, left: rendered[NAMES[0]][:50], other: b"of another video"})
        render(tmp_path)
        assert contents(tmp_path) == {**rendered, other: b"of another video"}


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_nothing_that_stays(
    tmp_path: Path, rendered: dict[str, bytes]
) -> None:
    # A file system that keeps the process waiting in the middle of its second file.
    program = f"""
import os, time
from pathlib import Path
from tests.pipeline.sources.test_rendering import render
synced = []
def fsync(descriptor, fsync=os.fsync):
    fsync(descriptor)
    synced.append(descriptor)
    if len(synced) == 3:  # the first file, its folder, the second file
        print("writing", flush=True)
        time.sleep(600)
os.fsync = fsync
render(Path({str(tmp_path)!r}))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    left = contents(tmp_path)
    assert len(left) == 2
    assert left[NAMES[0]] == rendered[NAMES[0]]
    render(tmp_path)
    assert contents(tmp_path) == rendered


def test_processes_that_remove_each_others_files_write_them_again(
    tmp_path: Path, rendered: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten builds begin the same video at once: each takes the others' file for a leftover."""
    removed: list[str] = []
    replace = os.replace

    def remove_nine(source: Path, target: Path) -> None:
        if removed.count(target.name) < 9:
            removed.append(target.name)
            source.unlink()
        replace(source, target)

    monkeypatch.setattr(os, "replace", remove_nine)
    render(tmp_path)
    assert contents(tmp_path) == rendered
    assert len(removed) == 4 * 9


@pytest.mark.slow
def test_many_processes_that_begin_at_once_write_each_file_whole(
    tmp_path: Path, rendered: dict[str, bytes]
) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        try:
            for _ in range(5):
                render(tmp_path)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert contents(tmp_path) == rendered


def test_what_stands_in_a_files_place_is_named(tmp_path: Path) -> None:
    (tmp_path / NAMES[2]).mkdir(parents=True)
    with pytest.raises(DecodeError, match=r"00002.png cannot be read \(Is a directory\)") as said:
        render(tmp_path)
    assert said.value.reason is Reason.NOT_RENDERED
    (tmp_path / NAMES[2]).rmdir()
    (tmp_path / VIDEO).rmdir()
    (tmp_path / VIDEO).touch()
    with pytest.raises(DecodeError, match=r"cannot be written .*see that 'root' is on a disk"):
        render(tmp_path)
