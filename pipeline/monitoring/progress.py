"""Show progress: a bar with rate and time left on a terminal, a line per ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from manifests.wording import duration, pluralise

_LINE_EVERY_S = 10.0


@dataclass
class ProgressTask:
    """Count how much of one task is done, and show it on a bar or as lines.

    total: how many items there are, None if unknown
    bar:   the bar to show them on, None to print lines on standard error
    """

    name: str
    noun: str
    total: int | None
    bar: RichProgress | None
    done: int = 0
    started: float = field(default_factory=time.monotonic)
    _last_line: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._bar_task = (
            self.bar.add_task(self.name, total=self.total, rate="") if self.bar else None
        )

    def advance(self, count: int = 1) -> None:
        """Count `count` more items as done."""
        self.done += count
        if self.bar and self._bar_task is not None:
            self.bar.update(self._bar_task, advance=count, rate=self._rate())
        elif time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.line()

    def line(self) -> None:
        """Print the count, the rate and the time left on one line."""
        line = f"{self.name}: {self._count()}, {self._rate()}{self._time_left()}"
        print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Print the count and how long the task took on one line."""
        line = f"{self.name}: {self._count()} in {duration(self.seconds)}"
        print(line, file=sys.stderr, flush=True)

    @property
    def seconds(self) -> float:
        """Seconds since the task started."""
        return time.monotonic() - self.started

    def _count(self) -> str:
        if self.total is None:
            return pluralise(self.done, self.noun)
        return f"{self.done:,} of {pluralise(self.total, self.noun)}"

    def _per_second(self) -> float:
        return self.done / max(self.seconds, 1e-9)

    def _rate(self) -> str:
        """Return the items per second, or per minute for slow tasks: "3.0 clips/s"."""
        rate = self._per_second()
        if rate >= 1:
            return f"{rate:.1f} {self.noun}s/s"
        return f"{rate * 60:.1f} {self.noun}s/min"

    def _time_left(self) -> str:
        """Return the time left at the mean rate so far; "" if unknown."""
        if self.total is None or not self.done:
            return ""
        return f", {duration((self.total - self.done) / self._per_second())} left"


class Progress:
    """Show tasks and notable events on standard error.

    quiet:      show neither
    json_lines: print every event as a line of JSON, and no task
    """

    def __init__(self, quiet: bool = False, json_lines: bool = False) -> None:
        self._quiet = quiet
        self._json_lines = json_lines
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None

    def event(self, sentence: str, json_line: str, notable: bool) -> None:
        """Show an event, above the bar if there is one."""
        # Markup off: paths and errors may hold brackets, which rich would take for styles.
        if self._json_lines:
            print(json_line, file=sys.stderr, flush=True)
        elif notable and self._bar:
            self._bar.console.print(sentence, markup=False, highlight=False)
        elif notable and not self._quiet:
            print(sentence, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, noun: str, total: int | None = None) -> Iterator[ProgressTask]:
        """Show a task while the block runs.

        Without a terminal, print a line every ten seconds and one when the block ends.
        """
        if self._quiet or self._json_lines:
            yield _SilentTask(name, noun, total, None)
        elif self._console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(noun + "s  {task.fields[rate]}"),
                TimeRemainingColumn(),
            )
            with RichProgress(*columns, console=self._console) as bar:
                self._bar = bar
                try:
                    yield ProgressTask(name, noun, total, bar)
                finally:
                    self._bar = None
        else:
            task = ProgressTask(name, noun, total, None)
            yield task
            task.end()


class _SilentTask(ProgressTask):
    """A task that counts and shows nothing."""

    def advance(self, count: int = 1) -> None:
        self.done += count
