"""Progress lines show the right count, rate and time left, and events reach who should see them."""

from __future__ import annotations

import time

import pytest

from pipeline.monitoring.progress import Progress, ProgressTask


@pytest.mark.parametrize(
    ("done", "total", "seconds", "line"),
    [
        (30, 90, 10.0, "30 of 90 clips, 3.0 clips/s, 20 s left"),
        (1500, 6000, 100.0, "1,500 of 6,000 clips, 15.0 clips/s, 5 min left"),
        (10, 40, 100.0, "10 of 40 clips, 6.0 clips/min, 5 min left"),
        (10, 10, 10.0, "10 of 10 clips, 1.0 clips/s, 0 s left"),
        (0, 40, 100.0, "0 of 40 clips, 0.0 clips/min"),
        (1, None, 0.25, "1 clip, 4.0 clips/s"),
    ],
)
def test_a_line_shows_count_rate_and_time_left(
    done: int,
    total: int | None,
    seconds: float,
    line: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0 + seconds)
    ProgressTask("making shards", "clip", total, None, done=done, started=1000.0).line()
    assert capsys.readouterr().err == f"making shards: {line}\n"


def test_lines_come_every_ten_seconds_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress().task("scanning", "video", total=4) as shown:
        shown.advance()
        assert capsys.readouterr().err == ""
        shown._last_line -= 11
        shown.advance(2)
        assert capsys.readouterr().err.startswith("scanning: 3 of 4 videos, ")
        shown.advance()
        assert capsys.readouterr().err == ""
        shown.started -= 120
    assert capsys.readouterr().err == "scanning: 4 of 4 videos in 2 min\n"


def test_quiet_progress_counts_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    with progress.task("scanning", "video", total=4) as silent:
        silent._last_line -= 11
        silent.advance(3)
    progress.event("a tracker was lost", "{}", notable=True)
    assert silent.done == 3
    assert capsys.readouterr().err == ""


def test_people_see_notable_events_and_programs_all(capsys: pytest.CaptureFixture[str]) -> None:
    for notable in (False, True):
        Progress().event("a sentence", '{"event": 1}', notable)
    assert capsys.readouterr().err == "a sentence\n"
    for notable in (False, True):
        Progress(json_lines=True).event("a sentence", '{"event": 1}', notable)
    assert capsys.readouterr().err == '{"event": 1}\n{"event": 1}\n'
