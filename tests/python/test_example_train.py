"""examples/train.py: the same training with and without logits, in less memory."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("tokenizers")

TRAIN = Path(__file__).parents[2] / "examples" / "train.py"
STEPS, BATCH, LENGTH, VOCAB = 4, 8, 128, 32_768
LOGITS_BYTES = BATCH * LENGTH * VOCAB * 4
SIZES = ["--steps", STEPS, "--batch", BATCH, "--length", LENGTH, "--vocab", VOCAB, "--width", 32]
LEARNING_RATE = 1e-3

# A loss of about 10.4 lies where float32 numbers are 2^-20 apart. Each run rounds lse and the target's logit, which are
# of that size, and the mean: 4 half units each. Rounding also moves the weights: a gradient that is off by d moves a
# step of Adam by at most 2 * learning rate * d / |gradient|, and the loss by |gradient| times that, so that over all
# weights a step adds at most twice the learning rate times the summed |d|. The gradients of this model sum to less than
# 100, and |d| to less than 2^-18 of that, 64 roundings: torch's are 2^-22 away from the gradients in float64.
ROUNDING = 2 * 4 * 2.0**-21
DRIFT = 2 * LEARNING_RATE * STEPS * 100 * 2.0**-18
TOLERANCE = ROUNDING + DRIFT


def train(loss: str, folder: Path) -> Any:
    """Trains in a fresh process."""
    record = folder / f"{loss}.json"
    options = [*SIZES, "--learning-rate", LEARNING_RATE, "--loss", loss, "--record", record]
    done = subprocess.run([sys.executable, TRAIN, *map(str, options)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("tokens/s") == STEPS
    return json.loads(record.read_text())


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What torch's own loss gives."""
    return train("torch", tmp_path_factory.mktemp("torch"))


@pytest.mark.parametrize(("loss", "saved"), [("xentrs", 1.0), ("xentrs-logits", 0.75)])
def test_the_losses_are_those_of_torch_in_less_memory(loss: str, saved: float, by_torch: Any, tmp_path: Path) -> None:
    """At its peak torch holds three arrays of the size of the logits, `xentrs` none, and `xentrs-logits` two; a quarter
    of one is for what else differs.
    """
    run = train(loss, tmp_path)
    differences = [abs(mine - theirs) for mine, theirs in zip(run["losses"], by_torch["losses"], strict=True)]
    assert max(differences) <= TOLERANCE, differences
    assert run["losses"][-1] < run["losses"][0]
    assert by_torch["peak_bytes"] - run["peak_bytes"] >= saved * LOGITS_BYTES


@pytest.mark.slow
def test_compare_prints_both() -> None:
    """The command of the docs, on as little as it takes."""
    sizes = ["--steps", "1", "--batch", "2", "--length", "16", "--vocab", "512", "--width", "8"]
    done = subprocess.run([sys.executable, TRAIN, "--compare", *sizes], capture_output=True, text=True, check=True)
    assert "largest difference of the losses: " in done.stdout
    assert "the logits of a batch are 0 MiB" in done.stdout


def test_guide_to_training() -> None:
    """The examples of docs/training.md run."""
    failed, tried = doctest.testfile(str(TRAIN.parents[1] / "docs" / "training.md"), module_relative=False)
    assert tried >= 5
    assert failed == 0
