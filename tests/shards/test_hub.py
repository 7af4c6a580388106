"""`hf://` leads to the right address, with the right token, and errors say what to do."""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shards.errors import AccessError, PretrackError
from shards.files import (
    atomic_write,
    parse_location,
    read_file,
    read_ranges,
    size_of,
    sizes_in,
    written_at,
)
from shards.hub import HubPath, parse_hub_url, token
from tests.helpers.environment import environment
from tests.helpers.hub_server import hub_server


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("hf://datasets/ada/pans", HubPath("ada/pans", "main", "")),
        ("hf://datasets/ada/pans/a/b.tar", HubPath("ada/pans", "main", "a/b.tar")),
        ("hf://datasets/ada/p.a-n_s@v1/a", HubPath("ada/p.a-n_s", "v1", "a")),
        ("hf://datasets/ada/pans@refs/pr/3/a", HubPath("ada/pans", "refs/pr/3", "a")),
    ],
)
def test_urls_name_a_repository_a_revision_and_a_path(url: str, place: HubPath) -> None:
    assert parse_hub_url(url) == place


def test_a_revision_is_one_part_of_the_address() -> None:
    with environment({"HF_ENDPOINT": "https://hub.example/"}):
        root = parse_hub_url("hf://datasets/ada/pans@refs/pr/3/a").root
    assert root == "https://hub.example/datasets/ada/pans/resolve/refs%2Fpr%2F3"


@pytest.mark.parametrize("url", ["hf://ada/pans", "hf://datasets/ada", "hf://datasets/a/b#c"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(
        PretrackError, match=r"name a dataset repository, as in hf://datasets/OWNER"
    ):
        parse_location(url)


def test_the_token_is_that_of_the_environment_or_of_a_login(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("stored\n")
    with environment({"HF_HOME": str(tmp_path), "HF_TOKEN": ""}):
        assert token() == "stored"
        with environment({"HF_TOKEN": "given"}):
            assert token() == "given"
    with environment({"HF_HOME": str(tmp_path / "none"), "HF_TOKEN": ""}):
        assert token() == ""


def test_files_of_a_repository_are_read_listed_and_not_written(tmp_path: Path) -> None:
    with hub_server(tmp_path) as hub:
        files = {"a.txt": b"0123456789", "b.tar": b"ABCDEFGHIJ", "c.txt": b"", "d/e.txt": b"e"}
        hub.repositories["ada/pans"] = files
        root = parse_location("hf://datasets/ada/pans")
        assert read_file(root / "a.txt") == b"0123456789"
        assert read_ranges(root / "b.tar", [8, 1], [9, 2]) == [b"IJ", b"BC"]
        assert sizes_in(root) == {"a.txt": 10, "b.tar": 10, "c.txt": 0}, "over two pages"
        assert sizes_in(root / "absent") == {}
        assert written_at(root / "a.txt") == datetime(2026, 11, 21, 10, tzinfo=UTC)
        for read in (read_file, size_of, written_at):
            with pytest.raises(FileNotFoundError):
                read(root / "absent")
        with pytest.raises(PretrackError, match="a hub can only be read; 'pretrack publish'"):
            atomic_write(root / "a.txt", b"")
        hub.private.add("ada/pans")
        with environment({"HF_TOKEN": ""}):
            for access in (read_file, sizes_in, written_at):
                with pytest.raises(AccessError, match="no such repository, or it is private or ga"):
                    access(root / "a.txt")


def test_an_overloaded_hub_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("shards.hub.time.sleep", waited.append)
    with hub_server(tmp_path) as hub:
        hub.repositories["ada/pans"] = {"a.txt": b"0123456789"}
        root = parse_location("hf://datasets/ada/pans")
        limit = {"RateLimit": '"api";r=0;t=55'}
        # The last one's limit is far from reached, and of no interest.
        free = {"RateLimit": '"api";r=499;t=299'}
        hub.busy = [(429, {"Retry-After": "7"}), (429, limit), (503, {}), (500, free)]
        assert sizes_in(root) == {"a.txt": 10}
        assert waited[:2] == [7, 55], "as the hub says"
        assert 1 <= waited[2] <= 2, "backoff: 0.5, 1, 2 s, less up to a half"
        assert 2 <= waited[3] <= 4
        hub.busy = [(503, {"Retry-After": "0"})]
        assert written_at(root / "a.txt").day == 21
        hub.busy = [(429, {"Retry-After": "0"})]
        assert read_file(root / "a.txt") == b"0123456789", "by the store's client"


def test_a_listing_that_breaks_off_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.hub.time.sleep", lambda _: None)
    broken = (200, {"Content-Length": "100", "Connection": "close"})
    with hub_server(tmp_path) as hub:
        hub.repositories["ada/pans"] = {"a.txt": b"0123456789"}
        hub.busy = [broken] * 8
        assert sizes_in(parse_location("hf://datasets/ada/pans")) == {"a.txt": 10}
        hub.busy = [broken] * 9
        with pytest.raises(AccessError, match=r"the hub does not answer \(IncompleteRead"):
            sizes_in(parse_location("hf://datasets/ada/pans"))


@pytest.mark.parametrize("silent", [False, True])
def test_a_hub_that_refuses_connections_or_is_silent_is_asked_again(
    silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = b'[{"type": "file", "path": "a.txt", "size": 10}]'

    class Listing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked has given up
                self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + listed)

    waited: list[float] = []
    monkeypatch.setattr("shards.hub._TIMEOUT_S", 0.1 if silent else 60)
    with ThreadingHTTPServer(("127.0.0.1", 0), Listing, bind_and_activate=False) as server:
        server.server_bind()
        if silent:
            server.server_activate()  # connections are accepted, and nobody answers
        root = parse_location("hf://datasets/ada/pans")
        with environment({"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}"}):
            monkeypatch.setattr("shards.hub.time.sleep", waited.append)
            cause = "timed out" if silent else r"\[Errno 111\] Connection refused"
            with pytest.raises(
                AccessError,
                match=rf"does not answer \({cause}\); check the network and HF_ENDPOINT$",
            ):
                sizes_in(root)
            assert len(waited) == 8
            assert 0.05 <= waited[0] <= 0.1
            assert 6.4 <= waited[7] <= 12.8, "it doubles"

            def begin_to_answer(_: float) -> None:
                server.server_activate()
                threading.Thread(target=server.serve_forever, args=[0.01]).start()
                monkeypatch.setattr("shards.hub._TIMEOUT_S", 60)

            monkeypatch.setattr("shards.hub.time.sleep", begin_to_answer)
            assert sizes_in(root) == {"a.txt": 10}
        server.shutdown()


def test_a_hub_that_stays_overloaded_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.hub.time.sleep", lambda _: None)
    with hub_server(tmp_path) as hub:
        hub.repositories["ada/pans"] = {"a.txt": b""}
        root = parse_location("hf://datasets/ada/pans")
        hub.busy = [(429, {"Retry-After": "181"}), (429, {})]
        with pytest.raises(
            AccessError, match=r"\(429\): run the command again in five minutes, and log"
        ):
            sizes_in(root)
        assert len(hub.busy) == 1, "nobody waits longer than three minutes"
        hub.busy = [(503, {})] * 10
        with pytest.raises(AccessError, match=r"the hub failed: HTTP Error 503"):
            sizes_in(root)
        assert len(hub.busy) == 1, "once, and eight times more"
