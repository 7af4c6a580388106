"""A real browser, for tests of the pages that pretrack writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest


@contextmanager
def chromium_browser() -> Iterator[Any]:
    """The system's Chromium, without a window; skips the test where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not path:
        pytest.skip("there is no chromium on this machine")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page, what it asked for, and what it did that it should not do."""

    page: Any
    requests: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def visit(browser: Any, address: str, **context: Any) -> Opened:
    """Opens a page in a context of its own, 1280x800 unless `context` says otherwise."""
    opened = Opened(
        browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context}).new_page()
    )
    opened.page.set_default_timeout(10_000)
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on(
        "console", lambda said: opened.faults.append(said.text) if said.type == "error" else None
    )
    opened.page.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.page.on("dialog", lambda dialog: opened.faults.append(f"dialog {dialog.message}"))
    opened.page.goto(address)
    return opened
