"""Run tasks in processes of their own, a few at once, and print how long the rest will take."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from benchmarks.ablation import task as task_module
from benchmarks.ablation.plan import Task
from benchmarks.ablation.task import PROGRAM, work
from manifests.wording import duration
from shards.errors import PretrackError


class TaskQueue:
    """Runs tasks, `jobs` at once; a task that is done is not run again.

    total: number of tasks of the whole experiment, for the time left
    """

    def __init__(self, jobs: int, total: int) -> None:
        self.jobs, self.total, self.done = jobs, total, 0
        self.seconds: list[float] = []
        self._lock = threading.Lock()
        self._running: set[ForkServerProcess] = set()
        self._stopped = False
        # Importing torch and timm takes seconds of CPU time: it is done once, and tasks are forked
        # from the process that did it. Its threads per task leave no core to two of them.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([task_module.__name__])

    def run(self, tasks: Sequence[Task], after_each: Callable[[], None] = lambda: None) -> None:
        """Run all tasks to their end. Raises PretrackError, after the others stopped, if one fails.

        after_each: called after every task that was run, one at a time
        """
        waiting = []
        for task in tasks:
            if task.result() is None:
                waiting.append(task)
            else:
                self.done += 1
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._run, task, after_each) for task in waiting]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                self._stop()
                raise

    def _run(self, task: Task, after_each: Callable[[], None]) -> None:
        if self._stopped:
            return
        task.write()
        started = time.monotonic()
        process = self._context.Process(target=work, args=(task.folder,))
        with self._lock:
            process.start()
            self._running.add(process)
        process.join()
        with self._lock:
            self._running.discard(process)
            if self._stopped:
                return
            if process.exitcode or task.result() is None:
                log = task.folder / "log.txt"
                raise PretrackError(
                    f"{task.name} failed: {_last_line(log)} (the whole log is {log})"
                )
            self.done += 1
            self.seconds.append(time.monotonic() - started)
            print(f"{task.name}: {duration(self.seconds[-1])}; {self._left()}", flush=True)
            after_each()

    def _left(self) -> str:
        """Return how many tasks are left, and for how long at the mean speed so far."""
        left = self.total - self.done
        mean = sum(self.seconds) / len(self.seconds)
        return f"{self.done} of {self.total} done, about {duration(mean * left / self.jobs)} left"

    def _stop(self) -> None:
        """Stop all tasks; each resumes from its checkpoint when it is run again."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _last_line(log: Path) -> str:
    """Return the last line that a task printed."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].removeprefix(f"{PROGRAM}: ") if lines else "it printed nothing"
