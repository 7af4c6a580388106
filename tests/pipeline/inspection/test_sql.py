"""`pretrack stats`: its output, wrong queries, and that queries reach nothing but the tables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from manifests.snapshot import open_snapshot
from pipeline.cli import app
from pipeline.inspection.sql import SnapshotQueries
from shards.errors import PretrackError
from tests.helpers.clips import make_clip
from tests.helpers.published import publish_clips
from tests.helpers.web_server import web_server

LOST = {
    "source": "made",
    "video_id": "x",
    "clip": "",
    "stage": "scan",
    "reason": "unreadable video",
    "detail": "",
    "shard": "",
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two snapshots: of three clips, and then of one."""
    folder = tmp_path_factory.mktemp("stats")
    clips = [
        make_clip(f"made-{split}-00000000-{n:06d}", n, 6 + n, split)
        for n, split in enumerate(("train", "train", "eval"))
    ]
    publish_clips(folder, clips, motion=(0.0, 0.01, 0.02), failures=[LOST])
    publish_clips(folder, [make_clip("other-00000000-000000", 9)], failures=[LOST])
    return folder


def stats(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["stats", *map(str, arguments)])


def test_a_query_is_answered_as_a_table_as_json_and_as_csv(out: Path) -> None:
    sql = "select split, count(*) as n, max(frames) as longest from clips group by 1 order by 1"
    arguments = (out, "--snapshot", "000001", "--sql", sql)
    assert json.loads(stats(*arguments, "--json").stdout) == [
        {"split": "eval", "n": 1, "longest": 8},
        {"split": "train", "n": 2, "longest": 7},
    ]
    assert list(csv.reader(stats(*arguments, "--csv").stdout.splitlines())) == [
        ["split", "n", "longest"],
        ["eval", "1", "8"],
        ["train", "2", "7"],
    ]
    table = stats(*arguments).stdout
    assert [cell.strip() for cell in table.splitlines()[3].split("│")[1:-1]] == ["eval", "1", "8"]


def test_every_table_is_there_and_the_current_snapshot_is_asked_by_default(out: Path) -> None:
    sql = (
        "select (select count(*) from videos), (select count(*) from clips), "
        "(select sum(bytes) from shards), reason from failures"
    )
    (row,) = json.loads(stats(out, "--json", "--sql", sql).stdout)
    (tar,) = [
        (out / "shards" / f"{name}.tar").stat().st_size
        for name in open_snapshot(out).shards["shard"].to_pylist()
    ]
    assert list(row.values()) == [1, 1, tar, "unreadable video"]


def test_figures_without_a_query(out: Path) -> None:
    shown = stats(out, "--snapshot", "000001")
    assert shown.exit_code == 0, shown.stderr
    for title in ("Clips", "What moves and what is seen", "Shapes", "Shards", "Left out"):
        assert title in shown.stdout
    figures = json.loads(stats(out, "--snapshot", "000001", "--json").stdout)
    clips = figures["Clips"]
    assert [(row["split"], row["clips"], row["frames"], row["tracks"]) for row in clips] == [
        ("train", 2, 13, 36),
        ("eval", 1, 8, 18),
    ]
    assert figures["Left out"] == [
        {"source": "made", "stage": "scan", "reason": "unreadable video", "count": 1}
    ]
    assert figures["What moves and what is seen"][0]["motion_50"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        (
            "select datset from clips",
            'Referenced column "datset" not found in FROM clause! Candidate bindings: "dataset"',
        ),
        ("select * from clip", 'Table with name clip does not exist! Did you mean "clips"?'),
        ("selec", 'syntax error at or near "selec"'),
        ("", "the query is empty"),
    ],
)
def test_a_wrong_query_is_one_clear_sentence(out: Path, sql: str, says: str) -> None:
    said = stats(out, "--sql", sql)
    assert said.exit_code == 1
    assert says in said.stderr
    assert said.stderr.startswith("pretrack: ")
    assert len(said.stderr.splitlines()) == 1


def test_a_query_reaches_no_file(out: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    questions = SnapshotQueries(open_snapshot(out))
    for sql in (
        f"select * from '{secret}'",
        f"select * from read_csv('{secret}')",
        f"copy clips to '{tmp_path / 'copied.csv'}'",
        f"attach '{tmp_path / 'made.db'}'",
        "set enable_external_access = true",
    ):
        with pytest.raises(PretrackError, match="the query cannot be answered: "):
            questions.ask(sql)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_what_else_is_wrong_is_said(out: Path, tmp_path: Path) -> None:
    assert "--csv needs --sql" in stats(out, "--csv").stderr
    assert (
        "has no snapshot '000009' (there are: 000001, 000002)"
        in stats(out, "--snapshot", "000009").stderr
    )
    assert "holds no finished build" in stats(tmp_path).stderr


def test_tables_of_a_web_server_are_asked_too(out: Path) -> None:
    with web_server(out) as served:
        said = stats(served.url, "--json", "--sql", "select key from clips")
    assert json.loads(said.stdout) == [{"key": "other-00000000-000000"}], said.stderr


def test_brackets_are_shown_as_they_are(out: Path) -> None:
    assert "[bold]" in stats(out, "--sql", "select '[bold]' as word").stdout
