"""A small network's folder for the web, written once with files that stand in for onnxruntime-web's."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from camify.web import export_web
from camify.web.runtime import RUNTIME_VERSION, SCRIPT, WASM
from tests.browser import chromium, npm_packages
from tests.exporters.conftest import network

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def net():
    made = network()
    made.class_names = ["cat", HOSTILE, "Zürich", "日本"]
    made.certificate = replace(made.certificate, source="torchvision/vgg16@/home/somebody/weights.pth")
    made.license, made.untrained = "CC-BY 4.0", ("classifier",)
    return made


def write_runtime(folder, version="9.9.9"):
    """Files that look like onnxruntime-web's, and run nothing."""
    folder.mkdir(parents=True)
    (folder / SCRIPT).write_text(f"/*!\n * ONNX Runtime Web v{version}\n */\nexport const env = {{ wasm: {{}} }};\n")
    (folder / WASM).write_bytes(b"\0asm nothing")
    return folder


@pytest.fixture(scope="session")
def written(net, tmp_path_factory):
    """What ``export_web`` gave, with stand-ins beside the page."""
    place = tmp_path_factory.mktemp("web")
    return export_web(net, place / "page", runtime=write_runtime(place / "dist"))


@pytest.fixture
def page_folder(written, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(written.path, tmp_path / "page")


@pytest.fixture(scope="session")
def node_modules(request):
    return npm_packages(request.config.cache.mkdir(f"onnxruntime-web-{RUNTIME_VERSION}"))


@pytest.fixture(scope="module")
def browser():
    with chromium("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as opened:
        yield opened
