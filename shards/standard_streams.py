"""Write to standard output and error in any encoding, and end quietly if the reader is gone."""

from __future__ import annotations

import codecs
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_HANDLER = "pretrack"
_PLAIN = {"…": "...", "→": "->", "\N{MULTIPLICATION SIGN}": "x", "·": "|", "≤": "<=", "°": " deg"}
CLOSED_STATUS = 128 + signal.SIGPIPE
"""The exit status of programs whose output is closed, as the shell shows it."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks: our signs by ASCII, others by their number.

    Surrogates too, which stand for bytes of file names that are not text.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    replaced = (
        _PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in lacking
    )
    return "".join(replaced), error.end


codecs.register_error(_HANDLER, _plain)


def accept_any_text() -> None:
    """Let standard output and error take any text, although their encoding is not UTF-8."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


@contextmanager
def quiet_if_closed() -> Iterator[None]:
    """End the program with CLOSED_STATUS, without a word, if standard output or error is closed.

    `pretrack stats | head` closes it. An error of the block keeps its own exit status.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not _discard_closed():  # another pipe, such as one to a worker
            raise
        raise SystemExit(CLOSED_STATUS) from None
    except BaseException:
        with suppress(BrokenPipeError):
            sys.stdout.flush()
        _discard_closed()
        raise


def _discard_closed() -> bool:
    """Send what is left for a closed output to /dev/null; tell whether any is closed.

    Python would otherwise fail once more, with a traceback, when it exits.
    """
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError, AttributeError):  # not a file, as in tests
            continue
        if _has_no_reader(descriptor):
            closed = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)
    return closed


def _has_no_reader(descriptor: int) -> bool:
    """Tell whether a descriptor is a pipe or socket whose other end is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
