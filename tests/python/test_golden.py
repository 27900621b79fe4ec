"""Golden rows: the CSV is the one that was pinned, mpmath still gives it, and numpy arrays give its values."""

from __future__ import annotations

import csv
import hashlib
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from loading import load_file

GOLDEN: Final = Path(__file__).parents[1] / "golden"
SHA256: Final = "45a1b5ba15e95ee7871b0f043d401ef5c71c5883e566d5347f04c8c5a6ec2c1a"
# 9 and 97 share no factor with the 40 rows after which dtypes and kinds begin again: samples have all of both.
COMPARED: Final = range(0, 200 * 9, 9)
COMPUTED: Final = range(0, 20 * 97, 97)


@pytest.fixture(scope="module")
def make() -> ModuleType:
    return load_file(GOLDEN / "make.py")


def test_the_csv_is_the_pinned_one() -> None:
    assert hashlib.sha256((GOLDEN / "rows.csv").read_bytes()).hexdigest() == SHA256


def test_mpmath_gives_the_csv(make: ModuleType) -> None:
    assert make.check(COMPUTED) == []


def test_the_definition_with_twice_the_digits_gives_the_csv(make: ModuleType) -> None:
    """Entropy and varentropy from -sum p ln p itself, and nll from ln p, where make.py has other forms."""
    mp = make.mp
    with (GOLDEN / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    with mp.workdps(120):
        for number in (291, 194, 970, 1455, 485):
            row = make.golden_row(number)
            weights = [mp.exp(mp.mpf(logit)) for logit in row.logits]
            total = mp.fsum(weights)
            log_probs = [mp.log(weight / total) for weight in weights]
            entropy = -mp.fsum(weight * log_prob for weight, log_prob in zip(weights, log_probs, strict=True)) / total
            spread = mp.fsum(w * (log_prob + entropy) ** 2 for w, log_prob in zip(weights, log_probs, strict=True))
            wanted = {"lse": mp.log(total), "nll": -log_probs[row.target], "max_log_prob": max(log_probs)}
            wanted |= {"entropy": entropy, "varentropy": spread / total}
            wanted["sum_sq_prob"] = mp.fsum((weight / total) ** 2 for weight in weights)
            for name, value in wanted.items():
                kept = mp.mpf(lines[number][name])
                assert abs(kept - value) <= mp.mpf("5.1e-25") * abs(value) + mp.mpf("1e-60"), (number, name)


def relative_bound(wanted: dict[str, float], dtype: np.dtype[Any]) -> float:
    """Allowed error of -ln p of the largest, by which nll of a peaked row keeps its digits.

    With D = sum p d, every e^-d off by (2 + d) u and n additions: u ((2 + n) (1 - p of the largest) + D); n is 16
    for float32 lanes, 45 with the float64 additions of lanes and leaves. Lanes count e^-d as 0 below the exponent.
    """
    is_double = dtype == np.float64
    unit, additions, lowest = (ref.UNIT_F64, 45, -708.39) if is_double else (ref.UNIT_F32, 16, -87.33)
    drop = max(wanted["entropy"] + wanted["max_log_prob"], 0.0)
    return unit * ((2 + additions) * -math.expm1(wanted["max_log_prob"]) + drop) + 4097 * math.exp(lowest)


def test_row_stats_gives_the_values(make: ModuleType) -> None:
    with (GOLDEN / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == make.ROWS
    for number in COMPARED:
        line, row = lines[number], make.golden_row(number)
        assert make.checksum(row.logits) == line["checksum"]
        wanted = {name: float(line[name]) for name in make.QUANTITIES}
        exact, dtype = np.array(row.logits), ref.DTYPES[row.dtype]
        logits = exact.astype(dtype)
        np.testing.assert_array_equal(ref.decode(logits), exact)  # the recipe's values need no rounding
        stats = xe.row_stats(logits[None], np.array([row.target]))
        relative = relative_bound(wanted, dtype)
        with np.errstate(under="ignore"):
            bounds = {
                "lse": ref.lse_bound(exact.size, wanted["lse"], dtype),
                # The difference of the logits, the sum and the golden value are rounded.
                "nll": relative + 4 * ref.UNIT_F64 * wanted["nll"] + sys.float_info.min,
                "max_log_prob": relative - 4 * ref.UNIT_F64 * wanted["max_log_prob"] + sys.float_info.min,
                "entropy": ref.entropy_bound(exact, dtype),
                "varentropy": ref.varentropy_bound(exact, dtype),
            }
        for name, bound in bounds.items():
            got = float(getattr(stats, name)[0])
            assert abs(got - wanted[name]) <= bound, (number, line["dtype"], line["kind"], name, got, wanted[name])
