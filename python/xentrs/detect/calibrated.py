"""DC-PDD: the probability of each token against how often it occurs anywhere.

In: `DocumentTokens` with token ids and `TokenFrequencies`. Out: one value for each document.
"""

from __future__ import annotations

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.segments import means_where
from xentrs.detect.tokens import DocumentTokens


def dc_pdd(tokens: DocumentTokens, clip: float) -> FloatColumn:
    """Mean over first occurrences of min(p ln(1/f), clip), f smoothed by Laplace's rule."""
    assert tokens.frequencies is not None, "the table names it as a need, which was checked"
    divergence = np.exp(-tokens.nll) * tokens.frequencies.surprisals(tokens.token_id)
    return means_where(tokens.is_first, np.minimum(divergence, clip), tokens.offsets)
