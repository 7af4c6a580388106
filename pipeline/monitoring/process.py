"""Identify the process that wrote a file, and tell whether it still runs.

A process id alone does neither: the system reuses ids.
"""

from __future__ import annotations

import os
from pathlib import Path


def has_exited(pid: int, machine: str, started: str) -> bool:
    """Tell whether a process of this machine has exited; False if that cannot be known.

    `machine` and `started` are what `machine_id()` and `start_time(pid)` returned in that process.
    """
    if not machine or machine != machine_id():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as another user
        pass
    # The id is in use. A different start time means that the system gave it to another process.
    return start_time(pid) not in ("", started)


def machine_id() -> str:
    """Identify the scope of process ids: boot id and process namespace; "" if unknown.

    A host name is not enough: containers share host names, and ids are reused after a reboot.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """Read when a process started, in clock ticks since boot; "" if unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # Field 22 of proc(5), counted after the command name: that may hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""
