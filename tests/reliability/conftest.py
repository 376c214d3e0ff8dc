from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def trace(tmp_path):
    """A file that hostile input tries to create; at the end of the test it must not be there."""
    path = tmp_path / "trace-of-foreign-code"
    yield path
    assert not path.exists(), "foreign code ran"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of small pictures: two classes, two splits."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for shade, name in ((40, "dark"), (200, "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(random.normal(shade, 20, (100, 100, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root
