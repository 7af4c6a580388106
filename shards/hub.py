"""Read dataset repositories of the Hugging Face hub: where `hf://` leads, with whose token, and
what a folder there holds.

`hf://datasets/OWNER/NAME/PATH` is a file of the branch `main`, `hf://datasets/OWNER/NAME@REVISION/…`
of another branch, tag or commit. Like the hub's own client, this obeys HF_ENDPOINT, HF_TOKEN,
HF_TOKEN_PATH and HF_HOME.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shards.errors import PretrackError

_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.*))?")
_NEXT_PAGE = re.compile(r'<([^>]+)>; *rel="next"')
_TIMEOUT_S = 60
_RETRIES, _RETRY_S = 8, 180.0
"""A request is repeated this often, and within these seconds, as those for files are."""
_OVERLOADED_S, _LOST_S = 0.5, 0.1
"""Longest first wait after an answer that the hub is overloaded, and without a whole answer. It
doubles with every try."""
_RETRY_AFTER, _RATE_LIMIT = re.compile(r"\s*(\d+)\s*$"), re.compile(r".*;\s*t=(\d+)")
"""Headers by which the hub says how many seconds to wait. The second comes with every answer: it
says when the limit is reset, which matters once it is reached."""


@dataclass(frozen=True)
class HubPath:
    """A path in a dataset repository at a revision."""

    repository: str
    revision: str
    path: str

    @property
    def root(self) -> str:
        """The address under which the repository's files lie."""
        return f"{endpoint()}/datasets/{self.repository}/resolve/{quote(self.revision, safe='')}"


def parse_hub_url(url: str) -> HubPath:
    """Parse an `hf://` URL. Raises PretrackError if it names no dataset repository."""
    match = _URL.fullmatch(url)
    if not match:
        raise PretrackError(
            f"{url}: name a dataset repository, as in hf://datasets/OWNER/NAME or "
            "hf://datasets/OWNER/NAME@REVISION"
        )
    return HubPath(match[1], match[2] or "main", (match[3] or "").strip("/"))


def endpoint() -> str:
    """Return the hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def token() -> str:
    """Return the user's token: HF_TOKEN, or what `hf auth login` stored; "" without one."""
    if value := os.environ.get("HF_TOKEN", "").strip():
        return value
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    home = Path(os.environ.get("HF_HOME", cache / "huggingface"))
    file = Path(os.environ.get("HF_TOKEN_PATH", home / "token"))
    with suppress(OSError, ValueError, RuntimeError):
        return file.expanduser().read_text().strip()
    return ""


def authorization() -> dict[str, str]:
    """Return the header that identifies the user; none without a token."""
    return {"authorization": f"Bearer {found}"} if (found := token()) else {}


def entries_in(url: str) -> Iterator[tuple[str, int | None]]:
    """Yield what is directly in a folder: (name, size in bytes; None for a folder).

    An absent folder has no entries. Raises OSError.
    """
    place = parse_hub_url(url)
    revision = quote(place.revision, safe="")
    page = f"{endpoint()}/api/datasets/{place.repository}/tree/{revision}/{quote(place.path)}"
    while page:
        entries, page = _read_page(page.rstrip("/"), url)
        for entry in entries:
            is_file = entry["type"] == "file"
            yield entry["path"].rsplit("/", 1)[-1], int(entry["size"]) if is_file else None


def written_at(url: str) -> datetime:
    """Tell when a file was last committed. Raises FileNotFoundError, OSError."""
    place = parse_hub_url(url)
    revision = quote(place.revision, safe="")
    page = f"{endpoint()}/api/datasets/{place.repository}/paths-info/{revision}"
    found, _ = _read_page(page, url, {"paths": [place.path], "expand": True})
    if not found:
        raise FileNotFoundError(errno.ENOENT, "is not there", url)
    return datetime.fromisoformat(found[0]["lastCommit"]["date"])


def _read_page(
    page: str, url: str, asked: dict[str, Any] | None = None
) -> tuple[list[dict[str, Any]], str]:
    """Read a page of a listing; return its entries and the next page, "" after the last.

    asked: what to post, as JSON
    """
    from http.client import HTTPException  # these take 40 ms, which few commands need
    from urllib.error import HTTPError, URLError
    from urllib.request import Request

    body = json.dumps(asked).encode() if asked else None
    headers = authorization() | ({"content-type": "application/json"} if asked else {})
    try:
        answered, data = _send(Request(page, body, headers))
        further = _NEXT_PAGE.search(answered.get("Link", ""))
        return json.loads(data), further[1] if further else ""
    except HTTPError as error:
        if error.code == 404:
            return [], ""
        if error.code in (401, 403):
            raise PermissionError(errno.EACCES, REFUSED, url) from error
        if error.code == 429:
            raise OSError(errno.EIO, _LIMITED, url) from error
        raise OSError(errno.EIO, f"the hub failed: {error}", url) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        sentence = f"the hub does not answer ({reason}); check the network and HF_ENDPOINT"
        raise OSError(errno.EIO, sentence, url) from error


def _send(request: Any) -> tuple[Message, bytes]:
    """Send a request and return the headers and the body of the answer.

    It is repeated while the hub is overloaded, cannot be reached, is silent, or breaks off. Raises
    HTTPError, OSError, HTTPException.
    """
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import urlopen

    end, attempt = time.monotonic() + _RETRY_S, 0
    while True:
        try:
            with urlopen(request, timeout=_TIMEOUT_S) as answer:
                return answer.headers, answer.read()
        except HTTPError as error:
            wait = _wait_s(error.code, error.headers, attempt)
            passes = error.code == 429 or error.code >= 500
            if not passes or attempt == _RETRIES or time.monotonic() + wait > end:
                raise
        except (OSError, HTTPException):
            wait = _backoff_s(_LOST_S, attempt)
            if attempt == _RETRIES or time.monotonic() + wait > end:
                raise
        time.sleep(wait)
        attempt += 1


def _wait_s(status: int, headers: Message, attempt: int) -> float:
    """Return for how many seconds to wait: those that the hub names, or exponential backoff."""
    if match := _RETRY_AFTER.match(headers.get("Retry-After", "")):
        return float(match[1])
    if status == 429 and (match := _RATE_LIMIT.match(headers.get("RateLimit", ""))):
        return float(match[1])
    return _backoff_s(_OVERLOADED_S, attempt)


def _backoff_s(first: float, attempt: int) -> float:
    return first * float(2**attempt) * random.uniform(0.5, 1)


REFUSED = (
    "the hub refuses access: there is no such repository, or it is private or gated; log in with "
    "'hf auth login' or set HF_TOKEN, and accept its terms on its page if it has any"
)
"""What is wrong if the hub denies access; it hides which repositories exist."""
_LIMITED = (
    "the hub limits the number of requests (429): run the command again in five minutes, and log "
    "in with 'hf auth login' or set HF_TOKEN, which raises the limit"
)
