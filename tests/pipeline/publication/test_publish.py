"""`pretrack publish` against a stand-in for the hub: upload, interruption, and refusal."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from manifests.receipt import shard_name, shard_path
from manifests.snapshot import Snapshot, list_snapshots, open_snapshot, publish_snapshot
from manifests.tables import CLIPS, SHARDS
from pipeline.cli import app
from pipeline.inspection.contact_sheet import read_clip
from pipeline.publication import card_files, upload
from shards.bucket import Url
from shards.errors import PretrackError
from shards.files import sizes_in
from tests.helpers.environment import environment
from tests.helpers.hub_server import Hub, hub_server
from tests.helpers.web_server import web_server
from tests.pipeline.publication.conftest import publish_free

REPOSITORY = "ada/pans"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(card_files, "_CHARTS", ())  # they take a second to draw
    with hub_server(tmp_path / "home") as server:
        yield server


def publish(snapshot: Snapshot, repository: str = REPOSITORY) -> upload.Published:
    return upload.publish(snapshot, repository)


def test_a_published_build_is_read_from_the_hub_as_from_the_folder(
    snapshot: Snapshot, hub: Hub
) -> None:
    published = publish(snapshot)
    assert published.page == f"{hub.url}/datasets/ada/pans"
    assert (published.uploaded, published.kept) == (1, 0)
    there = open_snapshot("hf://datasets/ada/pans")
    assert there.clips.equals(snapshot.clips)
    assert list_snapshots(there.out) == ["000001"]
    row = there.clips.to_pylist()[2]
    assert read_clip(there, row).jpegs == read_clip(snapshot, row).jpegs
    at_revision = open_snapshot("hf://datasets/ada/pans@main")
    assert at_revision.shards.equals(snapshot.shards)
    assert set(hub.sent_tokens) == {""}, "the token goes to the hub alone"
    card = hub.repositories[REPOSITORY]["README.md"].decode()
    assert 'load_dataset("ada/pans", streaming=True)' in card


def test_a_build_on_a_web_server_is_published(snapshot: Snapshot, hub: Hub) -> None:
    assert isinstance(snapshot.out, Path)
    with web_server(snapshot.out) as served:
        assert publish(open_snapshot(served.url)).uploaded == 1
    (row,) = snapshot.shards.to_pylist()
    path = f"shards/{row['shard']}.tar"
    assert hub.repositories[REPOSITORY][path] == (snapshot.out / path).read_bytes()


def test_the_tables_the_card_and_the_pointer_come_last_and_together(
    snapshot: Snapshot, hub: Hub
) -> None:
    publish(snapshot)
    *shards, last = hub.commits
    assert [path.startswith("shards/") for paths in shards for path in paths] == [True]
    assert {"current.json", "README.md", "snapshots/000001/clips.parquet"} <= {*last}


def test_an_interrupted_upload_shows_nothing_and_goes_on_where_it_stopped(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = three_shards(tmp_path / "out")
    monkeypatch.setattr(upload, "_FILES_PER_COMMIT", 1)
    hub.fail_upload = 3
    with pytest.raises(PretrackError, match=r"\(507: Storage limit reached\); run the same"):
        publish(snapshot)
    assert hub.uploads == 3
    assert len(sizes_in(Url("hf://datasets/ada/pans/shards"))) == 2
    with pytest.raises(PretrackError, match="holds no finished build: check the name"):
        open_snapshot("hf://datasets/ada/pans")
    hub.fail_upload, hub.uploads = 0, 0
    again = publish(snapshot)
    assert (again.uploaded, again.kept) == (1, 2)
    assert hub.uploads == 1 + 4, "the third shard and four tables"
    assert open_snapshot("hf://datasets/ada/pans").shards.equals(snapshot.shards)


def test_a_shard_that_is_not_whole_is_named_before_anything_is_uploaded(
    tmp_path: Path, hub: Hub
) -> None:
    snapshot = three_shards(tmp_path / "out")
    last = Path(str(snapshot.shard_path(snapshot.shards["shard"][2].as_py())))
    whole = last.read_bytes()
    last.write_bytes(whole[:-1])
    with pytest.raises(
        PretrackError, match=rf"^nothing was uploaded, because {last} is cut short: "
    ):
        publish(snapshot)
    last.unlink()
    sentence = (
        f"because {last} is missing: 'pretrack verify {snapshot.out} --repair' makes it again"
    )
    with pytest.raises(PretrackError, match=sentence):
        publish(snapshot)
    assert hub.repositories == {}
    last.write_bytes(whole)
    assert publish(snapshot).uploaded == 3


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_what_is_being_uploaded(tmp_path: Path, hub: Hub) -> None:
    # The client stops at once where it uploads one file alone, and ends what it has begun of more.
    snapshot = three_shards(tmp_path / "out")
    hub.may_end.clear()
    command = [sys.executable, "-m", "pipeline", "publish", str(snapshot.out), REPOSITORY]
    output = tmp_path / "output"
    with (
        output.open("w") as opened,
        subprocess.Popen(command, stdout=opened, stderr=opened) as process,
    ):
        try:
            wait_for(hub.begun.is_set, process, output)
            process.send_signal(signal.SIGINT)
            told = "stopping after the files that are being uploaded; Ctrl-C again stops at once\n"
            wait_for(lambda: told in output.read_text(), process, output)
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130, output.read_text()
        finally:
            process.kill()  # the upload does not end by itself
    assert hub.commits == []


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait up to two minutes; fail with a process's output if it exits before."""
    end = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < end, output.read_text()
        time.sleep(0.02)


def three_shards(out: Path) -> Snapshot:
    """Publish three shards of a clip each: the same clip, and more zeros after it."""
    first = publish_free(out, (4,))
    (row,) = first.shards.to_pylist()
    (clip,) = first.clips.to_pylist()
    tar = Path(str(first.shard_path(row["shard"]))).read_bytes()
    rows = []
    for number in range(3):
        name = shard_name(f"made-train-{number:06d}", row["checksum"])
        data = tar + bytes(512 * number)
        Path(str(shard_path(out, name))).write_bytes(data)
        rows.append({**row, "shard": name, "bytes": len(data)})
    tables = {
        "videos": first.videos,
        "clips": first.clips.from_pylist(
            [{**clip, "shard": it["shard"]} for it in rows], schema=CLIPS
        ),
        "shards": first.shards.from_pylist(rows, schema=SHARDS),
        "failures": first.failures,
    }
    return publish_snapshot(out, tables, first.settings)


def test_a_private_repository_is_hidden_from_others(snapshot: Snapshot, hub: Hub) -> None:
    upload.publish(snapshot, REPOSITORY, private=True)
    assert open_snapshot("hf://datasets/ada/pans").clips.num_rows == 4
    with (
        environment({"HF_TOKEN": ""}),
        pytest.raises(PretrackError, match="no such repository, or it is private or gated; log in"),
    ):
        open_snapshot("hf://datasets/ada/pans")


def test_nothing_goes_into_a_public_repository_that_should_be_private(
    snapshot: Snapshot, hub: Hub
) -> None:
    hub.repositories[REPOSITORY] = {}
    with pytest.raises(PretrackError, match="ada/pans exists and is public: make it private on"):
        upload.publish(snapshot, REPOSITORY, private=True)
    assert hub.uploads == 0


def test_another_builds_snapshot_is_not_overwritten(
    snapshot: Snapshot, hub: Hub, tmp_path: Path
) -> None:
    publish(snapshot)
    before = dict(hub.repositories[REPOSITORY])
    with pytest.raises(PretrackError, match="ada/pans has a snapshot 000001 of another build"):
        publish(publish_free(tmp_path / "other", (5,)))
    assert hub.repositories[REPOSITORY] == before


@pytest.mark.parametrize(
    ("token", "repository", "sentence"),
    [
        ("", "ada/pans", "there is no token for http.*: run 'hf auth login', or set HF_TOKEN"),
        ("wrong", "ada/pans", r"refuses to write to ada/pans \(401: .*: log in with 'hf auth"),
        ("hf_token", "pans", "pans: name a dataset repository, as in hf://datasets/OWNER/NAME"),
    ],
)
def test_bad_input_is_one_sentence(
    token: str, repository: str, sentence: str, snapshot: Snapshot, hub: Hub
) -> None:
    with environment({"HF_TOKEN": token}), pytest.raises(PretrackError, match=sentence):
        publish(snapshot, repository)
    assert hub.repositories == {}


def test_the_commands_print_where_the_card_and_the_dataset_are(
    snapshot: Snapshot, hub: Hub
) -> None:
    made = CliRunner().invoke(app, ["card", str(snapshot.out), "--name", "Pans"])
    assert made.output.splitlines()[-1] == f"{snapshot.out}/README.md"
    done = CliRunner().invoke(app, ["publish", str(snapshot.out), REPOSITORY])
    assert done.stdout == f"1 shard uploaded, 0 there already: {hub.url}/datasets/ada/pans\n"
    written = CliRunner().invoke(app, ["card", "hf://datasets/ada/pans"])
    assert written.exit_code == 1
    assert "a hub can only be read; 'pretrack publish' writes to one" in written.output
