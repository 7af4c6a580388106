"""Errors that end a command: one sentence and an exit status, or a traceback for a mistake."""

from __future__ import annotations

import errno

import pytest

from shards.errors import PretrackError, exit_on_errors, first_line


@exit_on_errors("pretrack", extra="train", interrupted="stopped, and all is kept.")
def fail(error: BaseException) -> None:
    """A command that raises an error."""
    raise error


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (PretrackError("the folder is empty"), 1, "the folder is empty"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.tar"),
            1,
            "a.tar: No space left on device"
            "; free some space and run the same command again; finished work is kept",
        ),
        (
            ModuleNotFoundError("No module named 'nowhere.part'", name="nowhere.part"),
            1,
            "the package 'nowhere' is not installed: pip install 'pretrack[train]'",
        ),
        (KeyboardInterrupt(), 130, "stopped, and all is kept."),
    ],
)
def test_an_error_that_a_user_can_act_on_is_one_sentence(
    error: BaseException, status: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        fail(error)
    assert ended.value.code == status
    assert capsys.readouterr().err == f"pretrack: {sentence}\n"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a mistake"),
        ModuleNotFoundError("No module named 'shards.gone'", name="shards.gone"),
    ],
)
def test_a_mistake_in_the_code_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        fail(error)
    assert raised.value is error


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("", "RuntimeError"),
        (" \n\t\n", "RuntimeError"),
        ("no such file", "no such file"),
        ("\n  first  \nsecond", "first"),
    ],
)
def test_a_long_or_empty_message_becomes_one_line(message: str, shown: str) -> None:
    assert first_line(RuntimeError(message)) == shown
