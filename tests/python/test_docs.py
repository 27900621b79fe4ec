"""The README's Python and every docstring example run as they stand."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"


def test_readme_examples() -> None:
    """What the README shows is what a reader gets."""
    failed, tried = doctest.testfile(str(README), module_relative=False)
    assert tried >= 5
    assert failed == 0


@pytest.mark.parametrize(
    "name",
    ["functional", "divergences", "tempered", "metrics", "heads", "linear", "linear_pairs", "scorer", "models.runner"],
)
def test_docstring_examples(name: str) -> None:
    """Each public function and class shows one example."""
    failed, tried = doctest.testmod(importlib.import_module(f"xentrs.{name}"))
    assert tried >= 2
    assert failed == 0


def test_guide_to_heads() -> None:
    """The examples of the guide run too."""
    failed, tried = doctest.testfile(str(README.parent / "docs" / "linear.md"), module_relative=False)
    assert tried >= 5
    assert failed == 0


@pytest.mark.slow  # loads the default model
def test_guide_to_python() -> None:
    """Its figures are those of the default model."""
    failed, tried = doctest.testfile(str(README.parent / "docs" / "python.md"), module_relative=False)
    assert tried >= 20
    assert failed == 0
