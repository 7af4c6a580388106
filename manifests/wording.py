"""Put numbers into words, for people."""

from __future__ import annotations


def pluralise(number: int, noun: str) -> str:
    """Join a number and a noun: "1 clip", "2,000 clips"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: int | None) -> str:
    """Show a number of bytes, in powers of 1000 and two or three digits: "1.2 GB", "57 MB".

    None, for an unknown size, gives "?".
    """
    if number is None:
        return "?"
    scaled = float(number)
    # 999.5 and more would round to a fourth digit, 9.95 and more to a third one.
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if scaled < 999.5 or unit == "TB":
            break
        scaled /= 1000
    return f"{scaled:,.1f} {unit}" if scaled < 9.95 and unit != "B" else f"{scaled:,.0f} {unit}"


def duration(seconds: float | None) -> str:
    """Show a time in at most two units: "2.3 s", "42 s", "10 min", "2 h 5 min", "2 d 7 h".

    None, for an unknown time, gives "?".
    """
    if seconds is None:
        return "?"
    if seconds < 59.5:  # from there on it rounds to a minute
        return f"{seconds:.0f} s" if seconds >= 9.5 or not seconds else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
