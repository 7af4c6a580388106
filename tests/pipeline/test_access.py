"""What cannot be read is never called damaged, and never made again: access is not damage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from manifests.receipt import list_receipts, read_receipt
from manifests.snapshot import open_snapshot
from pipeline.cli import app
from pipeline.execution.repair import repair
from pipeline.inspection.verify import verify_snapshot
from pipeline.monitoring.progress import Progress
from pipeline.monitoring.status import status
from pipeline.planning.existing_shards import read_existing_shards
from pipeline.planning.ledger_store import read_ledger
from shards.bucket import Url
from shards.errors import AccessError, PretrackError
from shards.files import atomic_write, size_of
from shards.reader import iterate_shard
from tests.helpers.clips import make_clip
from tests.helpers.object_store import BUCKET, Behaviour, free_port
from tests.helpers.pictures import write_images
from tests.helpers.published import publish_clips

QUIET = Progress(quiet=True)
FORBIDDEN = (403, "AccessDenied", "Access Denied")
EXPIRED = (400, "ExpiredToken", "The provided token has expired.")
UNREADABLE = Path("/proc/self/mem")
"""A file that opens and whose reading fails with EIO, like one on a failing disk or mount."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish two clips on this disk."""
    out = tmp_path_factory.mktemp("access") / "out"
    publish_clips(out, [make_clip(f"made-{seed}", seed) for seed in range(2)])
    (out / "build.json").write_text("{}")
    return out


@pytest.fixture
def out(local: Path, store: Behaviour) -> Iterator[Url]:
    """Publish the same on the store."""
    folder = Url(f"s3://{BUCKET}/out")
    for path in local.rglob("*"):
        if path.is_file():
            atomic_write(folder / str(path.relative_to(local)), path.read_bytes())
    yield folder
    store.refuse, store.refuse_only = None, ""


@pytest.mark.parametrize(
    ("refuse", "sentence"),
    [
        (FORBIDDEN, "access is denied (403 Forbidden, AccessDenied: Access Denied); check the"),
        (
            EXPIRED,
            "the credentials have expired (400 Bad Request, ExpiredToken: The provided token has "
            "expired); log in again, or set new ones",
        ),
        (
            (301, "PermanentRedirect", "Use the endpoint of the bucket."),
            "the bucket is in another region than 'us-east-1' (",
        ),
        (
            (400, "AuthorizationHeaderMalformed", "the region 'x' is wrong; expecting 'eu-west-1'"),
            "the bucket is in another region than 'us-east-1' (400 Bad Request, "
            "AuthorizationHeaderMalformed: the region 'x' is wrong; expecting 'eu-west-1'); set",
        ),
        (
            (404, "NoSuchBucket", "The specified bucket does not exist"),
            f"there is no bucket s3://{BUCKET} (404 Not Found, NoSuchBucket: ",
        ),
        (
            (403, "InvalidAccessKeyId", "No such key."),
            "the store does not know these credentials (403 Forbidden, InvalidAccessKeyId: No such",
        ),
        ((403, "RequestTimeTooSkewed", "Too large."), "this machine's clock is wrong ("),
    ],
)
def test_a_refusal_is_passed_on_as_the_store_said_it(
    refuse: tuple[int, str, str], sentence: str, out: Url, store: Behaviour
) -> None:
    store.refuse = refuse
    with pytest.raises(AccessError) as caught:
        status(out)
    assert str(caught.value).startswith(f"{out}/build.json cannot be read: {sentence}")
    assert "\n" not in str(caught.value)
    if refuse[0] == 404:
        return
    with pytest.raises(AccessError) as caught:  # an answer to HEAD has no body
        size_of(out / "x")
    assert str(caught.value).startswith(f"{out}/x cannot be read: {sentence}")


READERS: list[tuple[str, Callable[[Url], Any]]] = [
    ("out/build.json", status),
    ("out/current.json", open_snapshot),
    ("settings.json", lambda out: open_snapshot(out, "000001")),
    ("videos.parquet", lambda out: open_snapshot(out).videos),
    ("clips.parquet", read_existing_shards),
    ("shards.parquet", read_existing_shards),
    (".receipts/", lambda out: read_receipt(out, "made-train-000000-0")),
    ("receipts", list_receipts),
    ("ledgers", lambda out: read_ledger(out, "0" * 32)),
    ("receipts", read_existing_shards),
    ("shards.txt", lambda out: verify_snapshot(open_snapshot(out), QUIET)),
    (".tar", lambda out: verify_snapshot(open_snapshot(out), QUIET)),
    (".tar", lambda out: list(iterate_shard(first_shard(out)))),
]


def first_shard(out: Url) -> Any:
    snapshot = open_snapshot(out)
    return snapshot.shard_path(snapshot.shards["shard"][0].as_py())


@pytest.mark.parametrize(("refused", "read"), READERS)
def test_no_reader_takes_a_refused_file_for_a_missing_or_damaged_one(
    refused: str, read: Callable[[Url], Any], out: Url, store: Behaviour
) -> None:
    store.refuse, store.refuse_only = EXPIRED, refused
    with pytest.raises(AccessError, match="the credentials have expired") as caught:
        read(out)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    [
        "status OUT",
        "verify OUT",
        "stats OUT",
        "show OUT",
        "report OUT",
        "snapshots OUT",
        "gc OUT",
        "plan CONFIG",
        "build CONFIG",
    ],
)
@pytest.mark.slow
def test_every_command_says_why_a_bucket_cannot_be_read(
    command: str, out: Url, store: Behaviour, tmp_path: Path
) -> None:
    write_images(tmp_path / "videos" / "a", 0, 12)
    source = {"dataset": "video_folder", "name": "a", "root": str(tmp_path / "videos")}
    config = {"sources": [source], "out": str(out), "tracks": {"tracker": "lucas_kanade"}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    store.refuse = EXPIRED
    words = {"OUT": str(out), "CONFIG": str(tmp_path / "config.yaml")}
    started = time.monotonic()
    done = CliRunner().invoke(app, [words.get(word, word) for word in command.split()])
    assert time.monotonic() - started < 60
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit), "nothing else got out"
    assert_says_why(done.stderr, out)


def assert_says_why(errors: str, out: Url) -> None:
    *_, last = errors.splitlines()
    assert last.startswith("pretrack: ")
    assert str(out) in last
    assert "the credentials have expired (400 Bad Request, ExpiredToken: The" in last


@pytest.mark.slow
def test_training_says_why_a_bucket_cannot_be_read(out: Url, store: Behaviour) -> None:
    store.refuse = EXPIRED
    words = ("pipeline", "train", "configs/train/demo.yaml", f"data.out={out}")
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert_says_why(done.stderr, out)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(AccessError, match=r"^s3://b/build\.json .*the store does not answer \(.*"):
        status(Url("s3://b"))


def test_a_receipt_that_cannot_be_read_stops_a_build_instead_of_making_its_shard_again(
    local: Path, tmp_path: Path
) -> None:
    snapshot = open_snapshot(local)
    (row,) = snapshot.shards.to_pylist()
    (tmp_path / ".receipts").mkdir()
    (tmp_path / ".receipts" / f"{row['shard']}.json").symlink_to(UNREADABLE)
    with pytest.raises(AccessError, match=r"receipts/.*\.json cannot be read: Input/output error"):
        read_existing_shards(tmp_path)


def test_a_damaged_receipt_is_still_treated_as_missing(tmp_path: Path) -> None:
    (tmp_path / ".receipts").mkdir()
    (tmp_path / ".receipts" / "made-train-000000-0.json").write_text("{")
    (tmp_path / ".receipts" / "made-train-000001-0.json").mkdir()
    assert read_existing_shards(tmp_path).shards == ()


def test_a_repair_replaces_no_shard_that_cannot_be_read(local: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_clips(out, [make_clip("made-0", 0)])
    snapshot = open_snapshot(out)
    tar = snapshot.shard_path(snapshot.shards["shard"][0].as_py())
    assert isinstance(tar, Path)
    tar.unlink()
    tar.symlink_to(UNREADABLE)
    problems = verify_snapshot(snapshot, QUIET)
    (problem,) = problems
    assert str(problem) == (
        f"{tar} cannot be read: Input/output error; if its disk is failing, delete the file and "
        "repair"
    )
    with pytest.raises(PretrackError, match=r"cannot be read: Input/output error"):
        repair(snapshot, problems, QUIET)
    assert tar.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_of_another_user_is_not_damaged(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "build.json").write_text("{}")
    (tmp_path / "build.json").chmod(0o600)
    code = (
        "import os, sys; from pathlib import Path; from pipeline.monitoring.status import status\n"
        "from shards.errors import AccessError\n"
        "os.setuid(65534)\n"
        "try: status(Path(sys.argv[1]))\n"
        "except AccessError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    file = tmp_path / "build.json"
    assert said == f"{file} cannot be read: Permission denied; check who may read it\n"
