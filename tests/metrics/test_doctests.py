"""The examples in the scores' docstrings print what they say."""

import doctest
import importlib
import pkgutil

import pytest

from miga_bench import metrics

# the public networks' modules have no examples: their weights are not at hand
MODULES = [
    module.name
    for module in pkgutil.walk_packages(metrics.__path__, f"{metrics.__name__}.")
    if ".networks." not in module.name and not module.ispkg
]


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_the_scores_have_examples():
    finder = doctest.DocTestFinder()
    counts = {
        name: sum(len(test.examples) for test in finder.find(importlib.import_module(name)))
        for name in MODULES
    }
    for name in ("consistency", "flickering", "smoothness", "overall", "narrative"):
        assert counts[f"miga_bench.metrics.{name}"] > 0, name
