"""Serve a stand-in for the Hugging Face hub: what its client needs to upload datasets, and files.

Small files are committed inline, tars and tables by the LFS protocol; files of the LFS are served
from another host name than the hub's, as the hub's own are. Whoever has the token may do anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

from tests.helpers.environment import environment

TOKEN = "hf_token"
_LARGE = (".tar", ".parquet")


@dataclass
class Hub:
    """The state of the stand-in.

    repositories: "OWNER/NAME" → path → content, on the only branch
    private:      the repositories that only the token's owner may read
    blobs:        uploaded contents by SHA-256, committed or not
    commits:      the paths of each commit, in their order
    uploads:      number of contents that were uploaded
    begun:        is set when an upload begins
    may_end:      uploads end only while it is set
    fail_upload:  the number of the upload that is refused, counted from 1; 0: none
    sent_tokens:  the tokens that came with requests for files of the LFS
    gated:        model repositories whose licence has to be accepted first; there are no others
    busy:         statuses and headers with which the next requests are refused
    """

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    uploads: int = 0
    begun: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    fail_upload: int = 0
    sent_tokens: list[str] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    busy: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str, code: str = "") -> None:
        self.status, self.sentence, self.code = status, sentence, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # headers and body in one packet, without waiting for acknowledgement
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if self.command == "PUT":
            self.hub.begun.set()
            self.hub.may_end.wait()
        try:
            with self.hub.lock:
                if self.hub.busy:
                    status, headers = self.hub.busy.pop(0)
                    self._send(b"", status, headers)
                    return
                self._route(path.strip("/").split("/"), body)
        except _Refused as error:
            self._send(
                json.dumps({"error": error.sentence}).encode(),
                error.status,
                {"X-Error-Message": error.sentence, "X-Error-Code": error.code},
            )

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _route(self, parts: list[str], body: bytes) -> None:
        match self.command, *parts:
            case "POST", "api", "repos", "create":
                self._create(json.loads(body))
            case "POST", "api", "validate-yaml":
                self._send_json({"errors": [], "warnings": []})
            case "POST", "api", "datasets", owner, name, "preupload", _:
                self._files(f"{owner}/{name}", writing=True)
                listed = json.loads(body)["files"]
                modes = {it["path"]: it["path"].endswith(_LARGE) for it in listed}
                described = [
                    {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": 0}
                    for path, large in modes.items()
                ]
                self._send_json({"files": described})
            case "POST", "datasets", _, _, "info", "lfs", "objects", "batch":
                self._send_json({"objects": list(map(self._batch, json.loads(body)["objects"]))})
            case "PUT", "lfs", digest:
                self._put(digest, body)
            case "POST", "api", "datasets", owner, name, "commit", _:
                self._commit(f"{owner}/{name}", [json.loads(line) for line in body.splitlines()])
            case "POST", "api", "datasets", owner, name, "paths-info", _:
                files = self._files(f"{owner}/{name}")
                commit = {"lastCommit": {"date": "2026-11-21T10:00:00.000Z"}}
                paths = json.loads(body)["paths"]
                self._send_json([{"path": path, **commit} for path in paths if path in files])
            case "GET", "api", "datasets", owner, name:
                repository = f"{owner}/{name}"
                self._files(repository)
                self._send_json({"id": repository, "private": repository in self.hub.private})
            case "GET", "api", "datasets", owner, name, "tree", _, *folder:
                self._list(self._files(f"{owner}/{name}"), "/".join(folder))
            case (("GET" | "HEAD"), "datasets", owner, name, "resolve", _, *path):
                self._resolve(self._files(f"{owner}/{name}"), "/".join(path))
            case (("GET" | "HEAD"), owner, name, "resolve", *_):
                if f"{owner}/{name}" in self.hub.gated:
                    raise _Refused(403, "Access to this model is restricted.", "GatedRepo")
                raise _Refused(404, "Repository not found", "RepoNotFound")
            case (("GET" | "HEAD"), "lfs", digest):
                self.hub.sent_tokens.append(self.headers.get("Authorization", ""))
                self._send_file(self.hub.blobs[digest])
            case _:
                raise _Refused(404, f"no such page: {self.command} {self.path}")

    def _files(self, repository: str, writing: bool = False) -> dict[str, bytes]:
        """Return a repository's files, if the request may see it."""
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        hidden = repository in self.hub.private or repository not in self.hub.repositories
        if not allowed and (writing or hidden):
            raise _Refused(401, "Invalid username or password.")
        if repository not in self.hub.repositories:
            raise _Refused(404, "Repository not found", "RepoNotFound")
        return self.hub.repositories[repository]

    def _create(self, asked: dict[str, Any]) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Invalid username or password.")
        repository = f"{asked['organization']}/{asked['name']}"
        page = json.dumps({"url": f"{self.hub.url}/datasets/{repository}"}).encode()
        if repository in self.hub.repositories:
            self._send(page, 409)
            return
        self.hub.repositories[repository] = {}
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(repository)
        self._send(page)

    def _batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Say where a content is to be uploaded; nowhere if it is there."""
        if wanted["oid"] in self.hub.blobs:
            return wanted
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}

    def _put(self, digest: str, body: bytes) -> None:
        self.hub.uploads += 1
        if self.hub.uploads == self.hub.fail_upload:
            raise _Refused(507, "Storage limit reached")
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.blobs[digest] = body
        self._send(b"")

    def _commit(self, repository: str, lines: list[dict[str, Any]]) -> None:
        files, paths = self._files(repository, writing=True), []
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            if line["key"] != "header":
                paths.append(value["path"])
        self.hub.commits.append(paths)
        oid = f"{len(self.hub.commits):040x}"
        page = f"{self.hub.url}/datasets/{repository}/commit/{oid}"
        self._send_json({"commitUrl": page, "commitOid": oid})

    def _list(self, files: dict[str, bytes], folder: str) -> None:
        """List what is directly in a folder, two entries per page."""
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, data in sorted(files.items()):
            if path.startswith(prefix):
                name, *below = path[len(prefix) :].split("/")
                kind = "directory" if below else "file"
                size = 0 if below else len(data)
                entries[name] = {"type": kind, "path": prefix + name, "size": size, "oid": ""}
        if not entries:
            raise _Refused(404, f"{folder} does not exist", "EntryNotFound")
        query = urlsplit(self.path).query
        first = int(query.removeprefix("first=") or 0)
        more = {}
        if first + 2 < len(entries):
            page = f"{self.hub.url}{urlsplit(self.path).path}?first={first + 2}"
            more = {"Link": f'<{page}>; rel="next"'}
        self._send(json.dumps(list(entries.values())[first : first + 2]).encode(), 200, more)

    def _resolve(self, files: dict[str, bytes], path: str) -> None:
        if path not in files:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        digest = hashlib.sha256(files[path]).hexdigest()
        if path.endswith(_LARGE):
            self.hub.blobs[digest] = files[path]
            place = self.hub.url.replace("127.0.0.1", "localhost")
            self._send(b"", 302, {"Location": f"{place}/lfs/{digest}"})
        else:
            self._send_file(files[path])

    def _send_file(self, data: bytes) -> None:
        wanted, size = self.headers.get("Range"), len(data)
        if not wanted:
            self._send(data)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        part = data[int(first) : int(last or size) + 1]
        span = f"bytes {first}-{int(first) + len(part) - 1}/{size}"
        self._send(part, 206, {"Content-Range": span})

    def _send_json(self, value: Any) -> None:
        self._send(json.dumps(value).encode())

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_server(home: Path) -> Iterator[Hub]:
    """Run the stand-in until the block ends; HF_ENDPOINT and HF_TOKEN lead to it.

    home: an empty folder, so that no token of this machine is found
    """
    hub = Hub()
    hub.may_end.set()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
    }
    # This process reads variables when it first imports the client, perhaps in an earlier test.
    with_xet, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
    models, template = (
        constants.HUGGINGFACE_CO_URL_TEMPLATE,
        "{repo_id}/resolve/{revision}/{filename}",
    )
    constants.HUGGINGFACE_CO_URL_TEMPLATE = f"{hub.url}/{template}"
    try:
        with environment(variables):
            yield hub
    finally:
        hub.may_end.set()
        constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE = with_xet, offline
        constants.HUGGINGFACE_CO_URL_TEMPLATE = models
        server.shutdown()
        server.server_close()
