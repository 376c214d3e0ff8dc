"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import camify.methods
import camify.metrics
import camify.normalizers
import camify.sources

PACKAGES = (camify.methods, camify.metrics, camify.sources)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {camify.normalizers.__name__}  # metrics.functional gives its functions too
    | {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
)
FINDER = doctest.DocTestFinder(exclude_empty=True)
WITHOUT_AN_EXAMPLE = {  # types that say what they are, and the base class, which ``register`` shows
    "Calibration", "ForwardPass", "LevelBoxes", "Method", "Normalizer",
}  # fmt: skip


def examples_of(name):
    tests = FINDER.find(importlib.import_module(name), name)
    return [test for test in tests if any(not example.options.get(doctest.SKIP) for example in test.examples)]


WITH_EXAMPLES = [name for name in MODULES if examples_of(name)]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_give_what_they_say(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in examples_of(name):
        said = []
        runner.run(test, out=said.append)
        assert not said, "".join(said)


@pytest.mark.parametrize("package", [camify.metrics, camify.metrics.functional, camify.methods])
def test_every_public_function_and_class_has_an_example(package):
    shown = {test.name.rpartition(".")[2] for name in MODULES for test in examples_of(name)}
    public = {name for name in package.__all__ if callable(getattr(package, name))}
    missing = public - shown - WITHOUT_AN_EXAMPLE
    assert not missing, sorted(missing)
    assert all(inspect.isclass(getattr(package, name)) for name in public & WITHOUT_AN_EXAMPLE)
