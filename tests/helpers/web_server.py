"""Serve a folder's files over HTTP, with ranges as nginx does or without, and count requests.

The server lists no folders.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    """The server's URL, and counts of GET requests and of their bytes."""

    url: str = ""
    requests: int = 0
    bytes_read: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def web_server(folder: Path, ranges: bool = True) -> Iterator[Served]:
    """Serve a folder until the block ends. Without `ranges`, range requests get the whole file."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # headers and body in one packet, without waiting for acknowledgement

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _answer(self) -> None:
            path = folder / self.path.lstrip("/")
            if not path.is_file():
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size = path.stat().st_size
            wanted = self.headers.get("Range") if ranges else None
            first, last = 0, size - 1
            if wanted:
                first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            last = min(last, size - 1)
            with path.open("rb") as file:
                file.seek(first)
                data = file.read(last + 1 - first)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Last-Modified", "Sat, 21 Nov 2026 10:00:00 GMT")
            self.send_header("ETag", f'"{size}"')
            self.end_headers()
            if self.command == "GET":
                with served.lock:
                    served.requests += 1
                    served.bytes_read += len(data)
                self.wfile.write(data)

        do_GET = do_HEAD = _answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
