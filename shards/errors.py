"""Define the errors that a user can act on.

The command line prints their sentence and exits with 1. All other errors keep their traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec

from shards.standard_streams import accept_any_text, quiet_if_closed


class PretrackError(Exception):
    """Base of our errors: one sentence that says what is wrong, where, and what to do."""


class FormatVersionError(PretrackError):
    """A file is undamaged, but in another format than this version of pretrack writes."""


class SettingsError(PretrackError):
    """A configuration cannot be used."""


class AccessError(PretrackError):
    """A file cannot be read, for a reason outside of it: permissions, network, disk or store.

    The file may be intact. Never treat it as missing or damaged, and never replace it.
    """


def access_error(file: object, error: OSError) -> AccessError:
    """Make the error for a file that cannot be read."""
    reason = error.strerror or first_line(error)
    advice = "; check who may read it" if reason == os.strerror(errno.EACCES) else ""
    return AccessError(f"{file} cannot be read: {reason}{advice}")


def describe_os_error(error: OSError) -> str:
    """Explain a failed file operation: which file, why, and what to do about the usual causes."""
    file = f"{error.filename}: " if error.filename else ""
    reason = error.strerror or str(error)
    # Only for the system's own messages: a store's message already ends in advice.
    advice = {
        os.strerror(errno.ENOSPC): "; free some space and run the same command again; "
        "finished work is kept",
        os.strerror(errno.EACCES): "; check who may write",
    }
    return f"{file}{reason}{advice.get(reason, '')}"


def first_line(error: BaseException) -> str:
    """Give the first line of an error's message that is not blank; the error's type if none is."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


class ShardError(PretrackError):
    """A shard or one of its members is missing or damaged."""


@contextmanager
def exit_on_errors(program: str, *, extra: str, interrupted: str) -> Iterator[None]:
    """Turn errors that a user can act on into one sentence on standard error and an exit status.

    A context manager and a decorator for the functions behind the command lines. The status is 1
    for PretrackError, OSError and a package that is not installed (the sentence names the `extra`
    of pretrack that brings it), and 130 for Ctrl-C, with the sentence `interrupted`. Any other
    exception keeps its traceback. Where the output is closed (`pretrack stats | head`), the program
    ends without a word.
    """
    accept_any_text()
    try:
        with quiet_if_closed():
            yield
    except PretrackError as error:
        sentence, status = str(error), 1
    except OSError as error:
        sentence, status = describe_os_error(error), 1
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not package or _is_installed(package):
            raise  # a mistake in the code, or a mix of versions: the traceback is needed
        sentence = f"the package '{package}' is not installed: pip install 'pretrack[{extra}]'"
        status = 1
    except KeyboardInterrupt:
        sentence, status = interrupted, 130
    else:
        return
    with suppress(BrokenPipeError):
        print(f"{program}: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def _is_installed(package: str) -> bool:
    """Tell whether a top-level package can be imported."""
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False
