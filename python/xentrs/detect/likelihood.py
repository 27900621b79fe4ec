"""Scores of the likelihood alone: loss, perplexity, and the loss against the size of the compressed text.

In: `DocumentTokens`. Out: one value for each document, as published; `registry` knows which direction that is.
"""

from __future__ import annotations

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.segments import means
from xentrs.detect.tokens import DocumentTokens


def mean_nll(tokens: DocumentTokens) -> FloatColumn:
    """Nats per scored token."""
    return means(tokens.nll, tokens.offsets)


def perplexity(tokens: DocumentTokens) -> FloatColumn:
    """Per scored token; inf beyond float64."""
    return np.exp(mean_nll(tokens))


def nll_per_zlib_byte(tokens: DocumentTokens) -> FloatColumn:
    """Mean nll over the bytes that zlib needs for the text."""
    rate: FloatColumn = mean_nll(tokens) / tokens.zlib_byte_count
    return rate
