"""A real headless browser for tests that look at pages as a reader does."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SHOTS = Path(__file__).parents[3] / "test-output"
"""Where screenshots go; git ignores it."""

ARGUMENTS = [
    "--no-sandbox",  # root, and most containers, may not make one
    "--disable-gpu",
    # Of itself the browser would call home, look for updates and open connections in advance.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, driven by playwright; ended with the block. Skips, with the reason, where either is missing.

    For one module at most: while it is open, playwright runs an event loop in this thread, in which no other can run.
    """
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on the PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


def shot(page: Page, name: str, *, whole: bool = True) -> Path:
    """Keep what the page looks like as test-output/NAME.png: all of it, or only what is in view."""
    path = SHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=whole)
    return path
