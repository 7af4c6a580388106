"""Run an S3 server (moto), behind a proxy that counts requests and can fail or be slow."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.helpers.environment import environment

BUCKET = "shards"


def free_port() -> int:
    """Find a port on which no server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[int]:
    """Run moto's server, in its own process, with an empty bucket; yields its port."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=10).read()
                break
            except OSError:
                assert server.poll() is None, "moto's server ended"
                time.sleep(0.05)
        yield port
    finally:
        server.kill()
        server.wait()


def s3_environment(port: int) -> AbstractContextManager[None]:
    """Make `s3://` lead to the server, for this process and its children."""
    variables = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    return environment(variables)


@dataclass
class Behaviour:
    """How the proxy behaves, and what it counts.

    fail_every:   answer every n-th request with 503 (0: none)
    delay_s:      seconds before each answer
    deny_writes:  answer every PUT and POST with 403
    lose_answers: do this many PUTs and yet answer them with 503
    refuse:       answer every request with this status, error code and message; None: answer it
    refuse_only:  with `refuse`, do so only for paths that contain this text
    clock_s:      seconds by which the store's clock is ahead of this machine's
    requests, failed, bytes_read: counts of requests, of 503 by `fail_every`, of bytes of GETs
    scope:   what the latest request was signed with: "KEY/DATE/REGION/s3/aws4_request"
    """

    fail_every: int = 0
    delay_s: float = 0.0
    deny_writes: bool = False
    lose_answers: int = 0
    clock_s: float = 0.0
    refuse: tuple[int, str, str] | None = None
    refuse_only: str = ""
    requests: int = 0
    failed: int = 0
    bytes_read: int = 0
    scope: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def faulty_proxy(upstream: int) -> Iterator[tuple[int, Behaviour]]:
    """Run a proxy before the server; yields its port and its behaviour, changeable at any time."""
    behaviour = Behaviour()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _refuse(self, status: int, code: str, message: str = "") -> None:
            self.send_response(status)
            message = message or code
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with behaviour.lock:
                behaviour.requests += 1
                fails = behaviour.fail_every and behaviour.requests % behaviour.fail_every == 0
                behaviour.failed += bool(fails)
            signature = self.headers.get("Authorization", "")
            behaviour.scope = signature.partition("Credential=")[2].partition(",")[0]
            time.sleep(behaviour.delay_s)
            if behaviour.refuse and behaviour.refuse_only in self.path:
                self._refuse(*behaviour.refuse)
                return
            if fails:
                self._refuse(503, "SlowDown")
                return
            if behaviour.deny_writes and self.command in ("PUT", "POST"):
                self._refuse(403, "AccessDenied")
                return
            connection = http.client.HTTPConnection("127.0.0.1", upstream, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
            if self.command == "GET":
                with behaviour.lock:
                    behaviour.bytes_read += len(data)
            if self.command == "PUT" and behaviour.lose_answers:
                behaviour.lose_answers -= 1
                self._refuse(503, "SlowDown")
                return
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() == "last-modified":
                    self.send_header(
                        name,
                        formatdate(
                            parsedate_to_datetime(value).timestamp() + behaviour.clock_s,
                            usegmt=True,
                        ),
                    )
                elif name.lower() not in (
                    "transfer-encoding",
                    "connection",
                    "content-length",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1], behaviour
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def faulty_store() -> Iterator[Behaviour]:
    """Run an S3 server behind a proxy that `s3://` leads to until the block ends."""
    with s3_server() as server, faulty_proxy(server) as (port, behaviour), s3_environment(port):
        yield behaviour
