"""ACMIA: log-probabilities at many temperatures as their own calibration.

In: `DocumentTokens` with the columns at inverse temperatures b, any number of them. Out: values by inverse temperature.
All are means over first occurrences. The paper's grid is 0 and 2^(i/10) for i = -25 ... 25.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.segments import means_where, standardised
from xentrs.detect.tokens import DocumentTokens, Tempered

ACMIA_INVERSE_TEMPERATURES = (0.0, *(2.0 ** (step / 10) for step in range(-25, 26)))
"""The 52 values of the published code."""


def automatic_calibration(tokens: DocumentTokens) -> dict[str, FloatColumn]:
    """AC (Ref_Temp in the code): the log-probability less that at a higher temperature (b < 1), or at a lower one less
    it (b > 1). At b = 1 it would be 0 for every document and is left out.
    """
    changes = {
        beta: tokens.nll - at.nll if beta > 1 else at.nll - tokens.nll
        for beta, at in tokens.tempered.items()
        if beta != 1
    }
    return {f"beta_{beta:g}": _mean(tokens, _impossible_lowest(tokens, change)) for beta, change in changes.items()}


def derivative(tokens: DocumentTokens) -> dict[str, FloatColumn]:
    """DerivAC (Temp_diff): how much the log-probability grows from one inverse temperature to the next larger one."""
    found = {}
    for (low, before), (high, after) in pairwise(tokens.tempered.items()):
        change = _impossible_lowest(tokens, before.nll - after.nll)
        found[f"beta_{low:g}_{high:g}"] = _mean(tokens, change)
    return found


def normalised(tokens: DocumentTokens) -> dict[str, FloatColumn]:
    """NormAC (Normal_Temp): the log-probability at b, standardised under the distribution at b; not at b = 0."""
    return {
        f"beta_{beta:g}": _mean(tokens, _standardised_at(tokens, at))
        for beta, at in tokens.tempered.items()
        if beta > 0
    }


def _standardised_at(tokens: DocumentTokens, at: Tempered) -> FloatColumn:
    """(z_x - E z) / sd z under softmax(b z): the same for logits and for log-probabilities.

    z_x - E_1 z is entropy - nll, so z_x - E_b z needs the means at 1 and at b besides; where both round to one logit
    the difference is noise. A single outcome of probability p is never more than sqrt((1 - p) / p) standard deviations
    from the mean, and nll at b knows 1 - p to full relative accuracy: that bound makes the noise as small as the value.
    """
    deviation = (tokens.entropy - tokens.nll) + (tokens.tempered[1.0].mean - at.mean)
    bound = np.sqrt(np.expm1(at.nll))
    return np.clip(standardised(deviation, at.variance), -bound, bound)


def _impossible_lowest(tokens: DocumentTokens, change: FloatColumn) -> FloatColumn:
    """For a token of probability 0: the limit of a logit that falls without end."""
    return np.where(np.isposinf(tokens.nll), -np.inf, change)


def _mean(tokens: DocumentTokens, values: FloatColumn) -> FloatColumn:
    return means_where(tokens.is_first, values, tokens.offsets)
