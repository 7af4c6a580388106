"""How numbers are said."""

from __future__ import annotations


def pluralise(number: int, noun: str) -> str:
    """ "1 clip", "2,000 clips"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: int | None) -> str:
    """Bytes: "1.2 GB", or "?" where they are not known."""
    if number is None:
        return "?"
    scaled = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if scaled < 999.5 or unit == "TB":
            break
        scaled /= 1000
    return f"{scaled:,.1f} {unit}" if 0 < scaled < 9.95 and unit != "B" else f"{scaled:,.0f} {unit}"


def duration(seconds: float | None) -> str:
    """Time in two units at most: "2 h 5 min", or "?" where it is not known."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 9.5 or not seconds else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
