"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import camify
import camify.methods
import camify.metrics

WITH_EXAMPLES = [
    module.name
    for module in pkgutil.walk_packages(camify.__path__, "camify.")
    if ">>> " in (importlib.util.find_spec(module.name).loader.get_source(module.name) or "")
]
WITHOUT_AN_EXAMPLE = {  # types that say what they are, and the base class, which ``register`` shows
    "Calibration", "ForwardPass", "LevelBoxes", "Method", "Normalizer",
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name):
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 0
    assert found.failed == 0


@pytest.mark.parametrize("package", [camify.metrics, camify.metrics.functional, camify.methods])
def test_every_public_function_and_class_has_an_example(package):
    public = {name: getattr(package, name) for name in package.__all__ if callable(getattr(package, name))}
    missing = {name for name, value in public.items() if ">>> " not in (value.__doc__ or "")} - WITHOUT_AN_EXAMPLE
    assert not missing, sorted(missing)
    assert all(isinstance(public[name], type) for name in public.keys() & WITHOUT_AN_EXAMPLE)
