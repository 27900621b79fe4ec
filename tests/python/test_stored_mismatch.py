"""Files of stored tensors that do not fit one another: an error before anything is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_files import VOCAB, random_logits, run, save
from xentrs.corpus.stored import stored_job
from xentrs.errors import (
    DTypeError,
    ParamError,
    ShapeError,
    TargetError,
)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "what"),
    [
        ((6,), (5,), ShapeError, r"targets\.npy has shape \(5,\), expected \(6,\) as .*a\.npy has \(6, 40\)"),
        ((2, 6), (12,), ShapeError, r"expected \(2, 6\)"),
        ((), (), ShapeError, r"a\.npy has shape \(40,\), expected \(rows, vocab\) or \(documents, length, vocab\)"),
        ((1, 1, 6), (1, 1, 6), ShapeError, r"has shape \(1, 1, 6, 40\)"),
    ],
)
def test_shapes_that_do_not_fit(tmp_path: Path, logits: Any, targets: Any, error: Any, what: str) -> None:
    with pytest.raises(error, match=what):
        run(tmp_path, random_logits(*logits), np.zeros(targets, dtype=int))


def test_files_that_do_not_fit_one_another(tmp_path: Path) -> None:
    a, t = save(tmp_path / "a.npy", random_logits(4)), save(tmp_path / "t.npy", np.zeros(4, int))
    b = save(tmp_path / "b.npy", random_logits(4)[:, :30])
    half = save(tmp_path / "half.npy", random_logits(4, dtype=np.float16))
    with pytest.raises(ShapeError, match=r"b\.npy has shape \(4, 30\), expected \(\.\.\., 40\) as .*a\.npy has"):
        stored_job([a, b], [t, t])
    with pytest.raises(DTypeError, match=r"half\.npy has dtype float16, expected float32 as .*a\.npy has"):
        stored_job([a, half], [t, t])
    with pytest.raises(ParamError, match="2 files of rows and 1 of targets, expected one for each"):
        stored_job([a, b], [t])
    with pytest.raises(ShapeError, match=r"a\.npy has shape \(4, 40\), expected \(\.\.\., 30\) as .*b\.npy has"):
        stored_job([a], [t], b)
    with pytest.raises(ShapeError, match=r"t\.npy has shape \(4,\), expected \(vocab, width\) of a head"):
        stored_job([a], [t], t)
    bias = save(tmp_path / "bias.npy", np.zeros(5, np.float32))
    with pytest.raises(ShapeError, match=r"bias\.npy has shape \(5,\), expected \(4,\): one for each row of .*a\.npy"):
        stored_job([a], [t], a, bias)


@pytest.mark.parametrize(
    ("targets", "what"),
    [
        ([0, 1, VOCAB, 3], r"targets\[2\] = 40 of .*targets\.npy is outside \[0, 40\)"),
        ([0, -1, 2, 3], r"targets\[1\] = -1"),
        (np.array([0, 1, 2, 2**64 - 100], dtype=np.uint64), r"targets\[3\] = 18446744073709551516"),
    ],
)
def test_a_target_outside_the_vocabulary(tmp_path: Path, targets: Any, what: str) -> None:
    with pytest.raises(TargetError, match=what):
        run(tmp_path, random_logits(4), np.array(targets))
    with pytest.raises(IndexError, match=r"targets\[1, 3\] = 99"):
        run(tmp_path, random_logits(2, 4), np.array([[0, 1, 2, 3], [0, 1, 2, 99]]))


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, np.bool_, np.longdouble, "datetime64[s]", "U3"])
def test_logits_of_another_type(tmp_path: Path, dtype: Any) -> None:
    with pytest.raises(DTypeError, match=r"a\.npy has dtype .*, expected one of float32, float16, bfloat16, float64"):
        run(tmp_path, np.zeros((4, VOCAB), dtype=dtype), np.zeros(4, int))


def test_targets_of_another_type(tmp_path: Path) -> None:
    for targets in (np.zeros(4), np.zeros(4, dtype=bool)):
        with pytest.raises(DTypeError, match=r"targets\.npy has dtype .*, expected integers"):
            run(tmp_path, random_logits(4), targets)
