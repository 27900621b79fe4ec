"""Temperature and softcap: z = softcap(x) / temperature, softcap(x) = c tanh(x / c); row C26 of the table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference as ref
import xentrs as xe
from test_edge_lse import noise

DTYPE = pytest.mark.parametrize("dtype", ref.DTYPES.values(), ids=list(ref.DTYPES))
VOCABS = (1, 2, 16, 17, 4096, 4097, 32_000)


def allowed(row: ref.Floats, value: float, dtype: np.dtype[Any]) -> float:
    """The bound at temperature 1 plus one rounding of each z: u max|z| (and one more for tanh)."""
    return ref.lse_bound(row.size, value, dtype) + 2 * ref.unit_of(dtype) * float(np.abs(row).max())


@DTYPE
@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 1.3, 100.0], ids=lambda value: f"C26-temperature[{value}]")
@pytest.mark.parametrize("softcap", [None, 5.0, 30.0, 1e4], ids=lambda value: f"softcap[{value}]")
def test_scaled_rows(temperature: float, softcap: float | None, dtype: np.dtype[Any]) -> None:
    for vocab in VOCABS:
        logits = noise(vocab, dtype, 3, 6.0)
        targets = np.array([0, vocab // 2, vocab - 1])
        options: dict[str, Any] = {"temperature": temperature, "softcap": softcap}
        stats = xe.row_stats(logits, targets, **options)
        decoded = ref.decode(logits)
        scaled = (decoded if softcap is None else softcap * np.tanh(decoded / softcap)) / temperature
        for index, row in enumerate(scaled):
            lse, nll = ref.logsumexp(row), ref.nll(row, targets[index])
            assert abs(stats.lse[index] - lse) <= allowed(row, lse, dtype), (vocab, index)
            assert abs(stats.nll[index] - nll) <= 2 * allowed(row, nll, dtype), (vocab, index)
            assert stats.max_logit[index] == pytest.approx(row.max(), rel=4 * ref.unit_of(dtype))
        np.testing.assert_array_equal(xe.logsumexp(logits, **options), stats.lse)
        np.testing.assert_array_equal(xe.entropy(logits, **options), stats.entropy)
        np.testing.assert_array_equal(xe.cross_entropy(logits, targets, reduction="none", **options), stats.nll)


@DTYPE
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_temperature_leaves_special_values(value: float, dtype: np.dtype[Any]) -> None:
    logits = noise(33, dtype, 2)
    logits[0, 5] = value
    plain, scaled = (xe.row_stats(logits, np.array([5, 5]), temperature=value) for value in (1.0, 0.5))
    np.testing.assert_array_equal(scaled.flags, plain.flags)
    np.testing.assert_array_equal(scaled.nll[0], plain.nll[0])


@DTYPE
def test_softcap_leaves_nan(dtype: np.dtype[Any]) -> None:
    logits = noise(33, dtype, 2)
    logits[0, 5] = np.nan
    stats = xe.row_stats(logits, np.array([5, 5]), softcap=30.0)
    np.testing.assert_array_equal(stats.flags, [ref.NAN, 0])
    np.testing.assert_array_equal(np.isnan(stats.nll), [True, False])


@DTYPE
def test_defaults_change_no_bit(dtype: np.dtype[Any]) -> None:
    logits = noise(4097, dtype, 5)
    wanted = xe.row_stats(logits, np.arange(5))
    got = xe.row_stats(logits, np.arange(5), temperature=1, softcap=None)
    assert got.lse.tobytes() == wanted.lse.tobytes()
    assert got.nll.tobytes() == wanted.nll.tobytes()
