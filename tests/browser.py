"""The installed browser, a server of files for it, and npm's package, where they are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from camify.web.runtime import RUNTIME_VERSION

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium(*arguments: str) -> Iterator:
    """The installed chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()


class _Quiet(SimpleHTTPRequestHandler):
    headers_of_all: Mapping[str, str] = {}

    def log_message(self, *_):
        pass

    def end_headers(self):
        for name, value in self.headers_of_all.items():
            self.send_header(name, value)
        super().end_headers()


@contextmanager
def served(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a static server of the folder, on this machine."""
    handler = type("Handler", (_Quiet,), {"headers_of_all": headers or {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def npm_packages(cache: Path) -> Path:
    """A folder ``node_modules`` with onnxruntime-web: ``$ONNXRUNTIME_WEB``, or got by npm and kept in a cache."""
    given = os.environ.get("ONNXRUNTIME_WEB")
    place = Path(given) if given else cache / "node_modules"
    if (place / "onnxruntime-web" / "dist").is_dir():
        return place
    npm = shutil.which("npm")
    if given or npm is None:
        pytest.skip(f"{place} has no onnxruntime-web" if given else "npm is not installed")
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", aside]
        try:
            subprocess.run(
                [*command, f"onnxruntime-web@{RUNTIME_VERSION}"], check=True, capture_output=True, timeout=120
            )
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm cannot get onnxruntime-web ({type(error).__name__})")
        if not place.exists():  # another process may have been faster
            (Path(aside) / "node_modules").rename(place)
    return place
