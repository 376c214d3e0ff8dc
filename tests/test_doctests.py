"""The examples in docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import camify.methods
import camify.metrics
import camify.sources

PACKAGES = (camify.methods, camify.metrics, camify.sources)
MODULES = sorted(
    {package.__name__ for package in PACKAGES}
    | {
        module.name
        for package in PACKAGES
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    }
)
FINDER = doctest.DocTestFinder(exclude_empty=True)


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


def test_public_metrics_and_functions_have_examples():
    shown = {test.name.rpartition(".")[2] for name in MODULES for test in examples_of(name)}
    public = {*camify.metrics.__all__, *camify.metrics.functional.__all__, *camify.methods.__all__}
    assert len(shown & public) >= 25, sorted(shown & public)
