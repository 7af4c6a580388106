"""Progress as people see it: a bar with rate and time left on a terminal, one line now and then elsewhere."""

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
    """One thing under way: how much of it is done."""

    name: str
    noun: str
    total: int | None
    bar: RichProgress | None
    done: int = 0
    _started: float = field(default_factory=time.monotonic)
    _last_line: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._task = self.bar.add_task(self.name, total=self.total, rate="") if self.bar else None

    def advance(self, count: int = 1) -> None:
        """Counts `count` more as done."""
        self.done += count
        if self.bar and self._task is not None:
            self.bar.update(self._task, advance=count, rate=self._rate())
        elif time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.line()

    def line(self) -> None:
        """Prints where it stands, for logs."""
        print(f"{self.name}: {self._reached()}, {self._rate()}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Prints how long it took, for logs."""
        print(
            f"{self.name}: {self._reached()} in {duration(self.seconds)}",
            file=sys.stderr,
            flush=True,
        )

    def _reached(self) -> str:
        if self.total is None:
            return pluralise(self.done, self.noun)
        return f"{self.done:,} of {pluralise(self.total, self.noun)}"

    @property
    def seconds(self) -> float:
        """Time since the stage began."""
        return time.monotonic() - self._started

    def _rate(self) -> str:
        rate = self.done / max(self.seconds, 1e-9)
        left = (
            f", {duration((self.total - self.done) / rate)} left"
            if self.total is not None and rate > 0 and not self.bar
            else ""
        )
        return (
            f"{rate:.1f} {self.noun}s/s{left}"
            if rate >= 1
            else f"{rate * 60:.1f} {self.noun}s/min{left}"
        )


class Progress:
    """Shows stages and notable events on standard error. `quiet` shows none, `json_lines` every event as JSON and no stage."""

    def __init__(self, quiet: bool = False, json_lines: bool = False) -> None:
        self._quiet = quiet
        self._json_lines = json_lines
        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None

    def event(self, sentence: str, json_line: str, notable: bool) -> None:
        """Shows an event, above the bar if there is one."""
        if self._json_lines:
            print(json_line, file=sys.stderr, flush=True)
        elif notable and self._bar:
            self._bar.console.print(sentence, markup=False, highlight=False)
        elif notable and not self._quiet:
            print(sentence, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, noun: str, total: int | None = None) -> Iterator[ProgressTask]:
        """A stage that is under way while the block runs. Off a terminal it prints a line every ten seconds and one at its end."""
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
            stage = ProgressTask(name, noun, total, None)
            yield stage
            stage.end()


class _SilentTask(ProgressTask):
    def advance(self, count: int = 1) -> None:
        self.done += count
