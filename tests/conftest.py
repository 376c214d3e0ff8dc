from __future__ import annotations

import gc
import os
from pathlib import Path

import cv2
import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # each of several processes has a core of its own
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

PHOTOS = Path(__file__).resolve().parents[2] / "shared" / "data" / "photos"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What camify remembers of images is not put beside the user's, also by processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAMIFY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _not_on_disk():
    """Nothing waits for the disk in this process: what tests write need not outlive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    torch.default_generator.manual_seed(0)  # torch.manual_seed also keeps a whole traceback for GPUs to come


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of real photographs with boxes; tests that use it are marked `data`."""
    if not PHOTOS.is_dir():
        pytest.skip(f"{PHOTOS} is missing")
    return PHOTOS


@pytest.fixture
def clean_methods():
    """Methods that a test registers are forgotten after it."""
    from camify.methods import METHODS

    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()  # what was imported stays anyway: it is not looked through again and again


def pytest_sessionfinish():
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    """Files are exported by torch 2.10 and newer; with older versions those tests have nothing to look at."""
    if torch.__version__ >= (2, 10):
        return
    skip = pytest.mark.skip(reason=f"torch {torch.__version__}: exporting needs 2.10")
    for item in items:
        if any(
            word in " ".join([item.nodeid, *item.fixturenames])
            for word in ("tests/exporters/", "tests/web/", "snippets", "onnx", "pt2", "exported_file")
        ):
            item.add_marker(skip)
