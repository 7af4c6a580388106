"""Keys for `s3://` are found where AWS's own tools look, or their absence is said in seconds."""

from __future__ import annotations

import http.server
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shards import bucket
from shards.bucket import Url
from shards.errors import AccessError, PretrackError
from tests.helpers.object_store import BUCKET, Behaviour


@pytest.fixture(autouse=True)
def home(store: Behaviour, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Give a home folder without keys, on a machine without a metadata service."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (tmp_path / ".aws").mkdir()
    # A store that is open already has found its keys.
    bucket._store.cache_clear()
    return tmp_path


def signed_by(store: Behaviour) -> list[str]:
    """Write an object, and return the key and the region that the request was signed with."""
    bucket.write(Url(f"s3://{BUCKET}/signed"), b"1")
    key, _, region, *_ = store.scope.split("/")
    return [key, region]


def test_keys_of_the_default_profile_are_used(store: Behaviour, home: Path) -> None:
    (home / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = FILEKEY\naws_secret_access_key = secret\n"
    )
    assert signed_by(store) == ["FILEKEY", "us-east-1"]


def test_a_named_profile_gives_keys_and_region(
    store: Behaviour, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / ".aws/credentials").write_text(
        "[default]\naws_access_key_id = A\naws_secret_access_key = a\n"
        "[work]\naws_access_key_id = WORKKEY\naws_secret_access_key = w\n"
        "aws_session_token = t%20\n"
    )
    (home / ".aws/config").write_text(
        "[default]\nregion = us-west-2\n[profile work]\nregion = eu-west-3\ns3 =\n  max = 1\n"
    )
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert signed_by(store) == ["WORKKEY", "eu-west-3"]
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    assert signed_by(store) == ["WORKKEY", "ap-south-1"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "e")
    assert signed_by(store) == ["ENVKEY", "ap-south-1"]


def test_the_endpoint_of_a_profile_is_used(
    store: Behaviour, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    (home / ".aws/config").write_text(
        f"[default]\naws_access_key_id = B\naws_secret_access_key = b\nendpoint_url = {endpoint}\n"
    )
    assert signed_by(store) == ["B", "us-east-1"]


def test_a_profile_whose_keys_come_from_a_program_is_used(store: Behaviour, home: Path) -> None:
    """So do profiles of single sign-on and of assumed roles: by the package boto3."""
    pytest.importorskip("boto3", reason="needs boto3: pip install 'pretrack[aws]'")
    program = home / "keys.py"
    keys = {"Version": 1, "AccessKeyId": "PROGRAMKEY", "SecretAccessKey": "p"}
    program.write_text(f"print({json.dumps(keys)!r})")
    (home / ".aws/config").write_text(
        f"[default]\ncredential_process = {sys.executable} {program}\n"
    )
    assert signed_by(store) == ["PROGRAMKEY", "us-east-1"]
    bucket._store.cache_clear()
    program.write_text("import sys; sys.exit('please log in again')")
    with pytest.raises(AccessError, match=r"please log in again"):
        bucket.read(Url(f"s3://{BUCKET}/signed"))


@pytest.mark.parametrize(
    ("environment", "credentials", "message"),
    [
        ({}, None, r"there are no credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are "),
        ({}, "[default]\nregion = x\n", r"credentials has no keys for the profile 'default'"),
        ({"AWS_PROFILE": "wrok"}, "[work]\nx = 1\n", r"no profile 'wrok'.*there are: work\)"),
        ({"AWS_ACCESS_KEY_ID": "A"}, None, "AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY"),
        ({}, "no section\n", r"file of AWS credentials .*/\.aws/credentials cannot be read: File"),
    ],
)
def test_what_is_missing_is_named(
    environment: dict[str, str],
    credentials: str | None,
    message: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if credentials is not None:
        (home / ".aws/credentials").write_text(credentials)
    with pytest.raises(AccessError, match=rf"^s3://{BUCKET}/x cannot be reached: .*{message}") as e:
        bucket.read(Url(f"s3://{BUCKET}/x"))
    assert "\n" not in str(e.value)


@pytest.mark.slow
def test_a_machine_without_a_metadata_service_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A firewall that drops packets answers as little as this socket, whose queue is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://{address}")
        started = time.monotonic()
        with pytest.raises(AccessError, match=f"and no metadata service answers at {address}; set"):
            bucket.read(Url(f"s3://{BUCKET}/x"))
    assert time.monotonic() - started < 8


@pytest.mark.slow
def test_google_without_credentials_does_not_wait_for_a_metadata_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GOOGLE_SERVICE_ACCOUNT_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("GCE_METADATA_HOST", address)
        monkeypatch.setenv("GCE_METADATA_IP", address)
        started = time.monotonic()
        with pytest.raises(
            AccessError,
            match=r"^gs://b/x cannot be reached: there are no credentials: GOOGLE_APPLICATION_"
            rf"CREDENTIALS is not set, .* no metadata service answers at {address}; set the ",
        ):
            bucket.read(Url("gs://b/x"))
    assert time.monotonic() - started < 10


@contextmanager
def metadata_service(paths: dict[str, str]) -> Iterator[str]:
    """Run a metadata service that answers these paths, and 404 to all others."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            body = paths.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write((body or "").encode())

        do_GET = do_PUT = _answer

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_role_of_a_machine_is_used_and_a_missing_one_is_named(
    store: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    roles = "/latest/meta-data/iam/security-credentials/"
    keys = {"AccessKeyId": "ROLEKEY", "SecretAccessKey": "r", "Token": "t"}
    answers = {
        "/latest/api/token": "token",
        roles: "builder",
        f"{roles}builder": json.dumps({**keys, "Expiration": "2100-01-01T00:00:00Z"}),
    }
    with metadata_service(answers) as endpoint:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", endpoint)
        assert signed_by(store) == ["ROLEKEY", "us-east-1"]
    bucket._store.cache_clear()
    with metadata_service({"/latest/api/token": "token"}) as endpoint:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", endpoint)
        with pytest.raises(PretrackError, match=r"this machine has no role \(its service answers "):
            bucket.read(Url(f"s3://{BUCKET}/x"))


def test_azure_without_an_account_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(AccessError, match=r"^az://box/x cannot be reached: .*Account must be"):
        bucket.read(Url("az://box/x"))
