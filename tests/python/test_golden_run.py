"""Every digit of a small run is kept: one that moves means that `numerics_version` has to be raised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xentrs

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_every_digit_is_as_it_was(isa: str) -> None:
    if isa not in xentrs.available_isas():
        pytest.skip(f"this machine has no {isa}")
    environment = {**os.environ, "XENTRS_ISA": isa}
    done = subprocess.run([sys.executable, GOLDEN / "run.py"], env=environment, capture_output=True, check=True)
    found, kept = json.loads(done.stdout), json.loads((GOLDEN / "run.json").read_text())
    assert found.keys() == kept.keys()
    assert found["numerics_version"] == kept["numerics_version"] == xentrs.numerics_version
    for name in found:
        assert found[name] == kept[name], f"{name} moved: raise xentrs.numerics_version, then make run.json again"


def test_changelog_says_which_numbers_moved() -> None:
    text = (GOLDEN.parents[1] / "CHANGELOG.md").read_text()
    assert "### Numbers" in text
