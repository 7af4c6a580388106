"""Errors a user can act on: the command line prints their sentence and exits with 1. Anything else keeps its traceback."""

from __future__ import annotations

import errno


class PretrackError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


class FormatVersionError(PretrackError):
    """A file that is whole, and not as this version of pretrack writes it."""


class SettingsError(PretrackError):
    """A configuration that cannot be used."""


def describe_os_error(error: OSError) -> str:
    """What a failed file operation means to a user: which file, why, and what to do about the two usual reasons."""
    what = f"{error.filename}: " if error.filename else ""
    advice = {
        errno.ENOSPC: "; make room and run the same command again, what is done is kept",
        errno.EACCES: "; check who may write",
    }
    return f"{what}{error.strerror or error}{advice.get(error.errno or 0, '')}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not blank, or the error's type if there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


class ShardError(PretrackError):
    """A shard, or a member of one, that is missing or damaged."""
