"""A plain web server for a folder's files: understands ranges, as nginx does, or sends whole files; lists nothing, and counts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    """What was asked for."""

    url: str = ""
    requests: int = 0
    bytes_read: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def web_server(folder: Path, ranges: bool = True) -> Iterator[Served]:
    """Serves a folder until the block ends. Without `ranges` who asks for a part of a file gets the whole."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = (
            1 << 16
        )  # headers and body in one packet, or each answer waits for an acknowledgement

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
            asked = self.headers.get("Range") if ranges else None
            first, last = (
                (int(part) for part in asked.removeprefix("bytes=").split("-"))
                if asked
                else (0, size - 1)
            )
            last = min(last, size - 1)
            with path.open("rb") as file:
                file.seek(first)
                data = file.read(last + 1 - first)
            self.send_response(206 if asked else 200)
            if asked:
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
