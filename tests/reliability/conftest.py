from __future__ import annotations

import pytest


@pytest.fixture
def trace(tmp_path):
    """A file that hostile input tries to create; at the end of the test it must not be there."""
    path = tmp_path / "trace-of-foreign-code"
    yield path
    assert not path.exists(), "foreign code ran"
