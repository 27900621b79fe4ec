"""The head's products are no worse than a float32 matrix product of the same stored numbers."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import xentrs as xe


@pytest.mark.parametrize("width", [64, 576, 2304])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["float32", "float16", "bfloat16"])
def test_no_worse_than_a_float32_product(dtype: type, width: int) -> None:
    """Root mean square and largest error of lse and of every target's nll, both with exact statistics of the logits.

    numpy's product sums in blocks of its own; a tenth is left for the luck of 256 rows.
    """
    generator = np.random.default_rng(width)
    hidden = generator.normal(size=(256, width)).astype(dtype)
    weight = (generator.normal(size=(1_500, width)) * 4 / np.sqrt(width)).astype(dtype)
    targets = generator.integers(0, 1_500, 256)
    exact = hidden.astype(np.float64) @ weight.astype(np.float64).T
    product = hidden.astype(np.float32) @ weight.astype(np.float32).T
    wanted, plain = xe.row_stats(exact, targets), xe.row_stats(product.astype(np.float64), targets)
    found = xe.linear_row_stats(hidden, weight, targets)

    def errors(stats: xe.RowStats) -> np.ndarray:
        return np.concatenate([stats.nll - wanted.nll, stats.lse - wanted.lse])

    # What float32 statistics add: |lse| near 10 rounds by 2^-21, and the sum of e^d by a few units of 2^-24.
    slack = 2.0**-22
    assert np.sqrt((errors(found) ** 2).mean()) <= 1.1 * np.sqrt((errors(plain) ** 2).mean()) + slack
    bound = 2.0**-24 * np.sqrt(width) * np.maximum(1, np.abs(exact).max(1)) + slack
    assert (np.abs(found.nll - wanted.nll) <= bound).all()
