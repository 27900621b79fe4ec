"""Scores of machine-written text: entropy, ranks, curvature of the log-probability, two models.

In: `DocumentTokens`, for two models with cross_entropy and cross_varentropy: p is the reference model (the one that
samples, the observer), q the model (the one that scores, the performer). Out: one value for each document.
"""

from __future__ import annotations

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.likelihood import mean_nll
from xentrs.detect.segments import means, ratios, standardised, sums
from xentrs.detect.tokens import DocumentTokens

GLTR_TOPS = (10, 100, 1000)


def mean_entropy(tokens: DocumentTokens) -> FloatColumn:
    """Mean entropy of the predictions."""
    return means(tokens.entropy, tokens.offsets)


def mean_rank(tokens: DocumentTokens) -> FloatColumn:
    """Mean rank, 1 for the most likely token; ties do not count."""
    return means(tokens.rank.astype(np.float64), tokens.offsets)


def mean_log_rank(tokens: DocumentTokens) -> FloatColumn:
    """Mean ln rank."""
    return means(np.log(tokens.rank), tokens.offsets)


def log_likelihood_log_rank_ratio(tokens: DocumentTokens) -> FloatColumn:
    """LRR: mean nll over mean ln rank; infinite where every token has rank 1."""
    return ratios(mean_nll(tokens), mean_log_rank(tokens), np.inf)


def gltr(tokens: DocumentTokens) -> dict[str, FloatColumn]:
    """Fractions of tokens among the 10, 100 and 1000 most likely: GLTR's buckets, added up from the best."""
    is_within = {f"top{top}": (tokens.rank <= top).astype(np.float64) for top in GLTR_TOPS}
    return {name: means(inside, tokens.offsets) for name, inside in is_within.items()}


def fast_detect_gpt(tokens: DocumentTokens) -> FloatColumn:
    """Conditional curvature with one model as p and q."""
    return _curvature(tokens, tokens.entropy, tokens.varentropy)


def fast_detect_gpt_cross(tokens: DocumentTokens) -> FloatColumn:
    """Conditional curvature with two models."""
    return _curvature(tokens, tokens.cross_entropy, tokens.cross_varentropy)


def binoculars(tokens: DocumentTokens) -> FloatColumn:
    """As the paper has it: log-perplexity of the observer over the cross-perplexity."""
    assert tokens.reference is not None, "the table names it as a need, which was checked"
    return ratios(mean_nll(tokens.reference), means(tokens.cross_entropy, tokens.offsets), 1.0)


def binoculars_code(tokens: DocumentTokens) -> FloatColumn:
    """As the published code has it: log-perplexity of the performer over the cross-perplexity."""
    return ratios(mean_nll(tokens), means(tokens.cross_entropy, tokens.offsets), 1.0)


def _curvature(tokens: DocumentTokens, expected: FloatColumn, variance: FloatColumn) -> FloatColumn:
    deviation = sums(expected - tokens.nll, tokens.offsets)
    found = standardised(deviation, sums(variance, tokens.offsets))
    return np.where(tokens.token_counts > 0, found, np.nan)
