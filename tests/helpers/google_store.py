"""Imitate Google's object store for single objects.

It compares generations where S3 compares tags.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.helpers.environment import environment

_NOTHING = (0, b"", "")


@contextmanager
def google_store() -> Iterator[None]:
    """Run an empty store that `gs://` leads to until the block ends."""
    objects: dict[str, tuple[int, bytes, str]] = {}  # generation, content, time of the last write
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(
            self, status: int, generation: int = 0, written: str = "", data: bytes = b""
        ) -> None:
            self.send_response(status)
            if generation:
                self.send_header("x-goog-generation", str(generation))
                self.send_header("ETag", '"always the same"')
                self.send_header("Last-Modified", written)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                generation = objects.get(self.path, _NOTHING)[0]
                condition = self.headers.get("x-goog-if-generation-match", str(generation))
                if condition != str(generation):
                    self._answer(412)
                    return
                objects[self.path] = (generation + 1, data, formatdate(usegmt=True))
                self._answer(200, *objects[self.path][::2])

        def do_GET(self) -> None:
            generation, data, written = objects.get(self.path, _NOTHING)
            self._answer(200 if generation else 404, generation, written, data)

        do_HEAD = do_GET

        def do_DELETE(self) -> None:
            self._answer(204 if objects.pop(self.path, None) else 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with environment(_leading_to(f"http://127.0.0.1:{server.server_address[1]}")):
            yield
    finally:
        server.shutdown()
        server.server_close()


def _leading_to(url: str) -> dict[str, str]:
    """Give the environment variables that make `gs://` lead to the store at `url`."""
    key = {
        "gcs_base_url": url,
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    # The second variable makes `shards.bucket` allow http for all stores.
    return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(key), "AWS_ENDPOINT_URL": url}
