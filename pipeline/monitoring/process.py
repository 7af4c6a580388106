"""Which process wrote something, and whether it is still there. Process numbers alone say neither: they are used again."""

from __future__ import annotations

import os
from pathlib import Path


def is_gone(process: int, machine: str, since: str) -> bool:
    """Whether a process was one of this very machine and is there no more, from its number, `this_machine()` and `began(number)`.

    False where that cannot be known.
    """
    if not machine or machine != this_machine():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's process
        pass
    return began(process) not in ("", since)


def this_machine() -> str:
    """What the number of a process means something in: containers share host names, and a number is used anew after a restart."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def began(process: int) -> str:
    """When a process began, in ticks since the machine did; "" if that cannot be known."""
    try:
        return (
            Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
        )  # a name in () may hold anything
    except (OSError, IndexError):
        return ""
