"""Output goes through pipes that close and encodings that lack signs, without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from manifests.snapshot import open_snapshot
from tests.helpers.clips import make_clip
from tests.helpers.published import publish_clips

PIPE_CLOSED = 141
"""The exit status that a shell shows for a program ended by SIGPIPE."""
ASCII = {"PYTHONIOENCODING": "ascii"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
LOCALE_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("output") / "out"
    publish_clips(folder, [make_clip(f"made-{seed}", seed) for seed in range(2)])
    return folder


def start(
    *arguments: object,
    stderr: int = subprocess.PIPE,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[bytes]:
    """Start a program whose output is buffered, as it is by default."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "PYTHONUNBUFFERED": "", **environment},
    )


def closed_after(lines: int, *arguments: object) -> tuple[int, bytes]:
    """Read some lines of a command's output, close it; return its exit status and errors."""
    process = start("-m", "pipeline", *arguments)
    assert process.stdout
    assert process.stderr
    for _ in range(lines):
        assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    return process.wait(timeout=60), errors


@pytest.mark.slow
def test_a_pipe_that_closes_ends_a_command_without_a_word(out: Path) -> None:
    many = ("stats", out, "--sql", "select range from range(300000)", "--csv")
    assert closed_after(1, *many) == (PIPE_CLOSED, b"")
    table = ("stats", out, "--sql", "select range, repeat('x', 90) from range(199)")
    assert closed_after(0, *table) == (PIPE_CLOSED, b"")
    assert closed_after(0, "snapshots", out) == (PIPE_CLOSED, b"")


@pytest.mark.slow
def test_an_error_keeps_its_status_and_sentence_if_the_output_is_closed(
    out: Path, tmp_path: Path
) -> None:
    assert closed_after(0, "status", tmp_path) == (
        1,
        f"pretrack: {tmp_path} holds no build: run 'pretrack build' with 'out: {tmp_path}' "
        "first\n".encode(),
    )
    damaged = tmp_path / "out"
    publish_clips(damaged, [make_clip("made-0", 0)])
    (shard,) = open_snapshot(damaged).shards["shard"].to_pylist()
    (damaged / "shards" / f"{shard}.tar").write_bytes(b"")
    status, errors = closed_after(0, "verify", damaged)
    assert status == 1
    assert errors.startswith(b"verifying: ")
    assert errors.count(b"\n") == 1


@pytest.mark.slow
def test_both_outputs_of_a_command_may_be_closed(tmp_path: Path) -> None:
    process = start("-m", "pipeline", "status", tmp_path, stderr=subprocess.STDOUT)
    assert process.stdout
    process.stdout.close()
    assert process.wait(timeout=60) == 1


def printed(environment: Mapping[str, str], *arguments: object) -> bytes:
    """Run a command that succeeds, without anything on standard error; return its output."""
    process = start(*arguments, environment=environment)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    return output


@pytest.mark.slow
@pytest.mark.parametrize("environment", [ASCII, LATIN, LOCALE_C])
def test_signs_that_an_encoding_lacks_are_spelt_out(environment: dict[str, str], out: Path) -> None:
    question = ("stats", out, "--sql", "select chr(8594) || 'caf' || chr(20013) from range(201)")
    output = printed(environment, "-m", "pipeline", *question)
    assert output.endswith(b"... and 1 more rows: --csv or --json prints them all\n")
    assert b"->caf\\u4e2d" in output


@pytest.mark.slow
@pytest.mark.parametrize("program", ["pipeline", "trainer", "trainer.evaluate"])
def test_help_is_printed_in_any_encoding(program: str) -> None:
    assert b"Usage" in printed(ASCII, "-m", program, "--help")


@pytest.mark.slow
def test_names_that_are_not_text_are_printed() -> None:
    """Bytes of a file name that are not UTF-8 become surrogates, which UTF-8 lacks."""
    process = start("-m", "pipeline", "status", b"nowhere-\xff".decode(errors="surrogateescape"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith(b"pretrack: there is no config file nowhere-\\udcff")


@pytest.mark.slow
def test_a_config_is_utf_8_in_every_locale(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("out: Größe\nsources: Größe\n", encoding="utf-8")
    process = start("-m", "pipeline", "status", config, environment=LOCALE_C)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert b"Gr\\xf6\\xdfe" in errors
