"""Was the text drawn from this model? Log-perplexity against entropy, or against cross-entropy, with p-values.

In: `DocumentTokens`. Out: for each document the size of z = S / sqrt(V) and two p-values of the hypothesis that each
token was drawn from the prediction p before it (whole distribution, temperature 1): S = sum x_t, x_t = nll - H,
V = sum Var(nll) under p. Against cross-entropy p is the reference model, nll the model's, H and Var CE(p, q) and
Var_p(ln q). Larger p-values speak for the machine; none of them can prove it.

Under that hypothesis S is a martingale, whatever the text depends on (the setting of arXiv 2501.02406).
The normal p-value is the limit for long texts. The bound holds for every length, also one that the model chose:
exp(x - x^2/6) <= 1 + x + x^2/3 for all real x (Delyon 2009, Electron. J. Probab. 14) makes exp(a S - a^2 W / 2) with
W = (sum x^2 + 2 V) / 3 a supermartingale for every a, with no bound on x, which a log-probability does not have.
Mixed over a ~ Normal(0, 1/rho) (Robbins 1970) it is E = sqrt(rho / (rho + W)) exp(S^2 / (2 (rho + W))), its mean is at
most 1, and by Ville's inequality min(1, 1 / E) is a p-value. rho is a constant chosen before any text; it decides at
which length the bound is sharpest. This is not the bound of arXiv 2501.02406, which needs one on the log-probabilities.
"""

from __future__ import annotations

import math

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.segments import standardised, sums
from xentrs.detect.tokens import DocumentTokens


def entropy_z(tokens: DocumentTokens) -> FloatColumn:
    """abs(z) against entropy."""
    return _abs_z(tokens, tokens.entropy, tokens.varentropy)


def entropy_normal(tokens: DocumentTokens) -> FloatColumn:
    """Two-sided p-value of the normal limit, against entropy."""
    return _normal(entropy_z(tokens))


def entropy_bound(tokens: DocumentTokens, rho: float) -> FloatColumn:
    """Two-sided p-value for any length, against entropy."""
    return _bound(tokens, tokens.entropy, tokens.varentropy, rho)


def cross_entropy_z(tokens: DocumentTokens) -> FloatColumn:
    """abs(z) against cross-entropy."""
    return _abs_z(tokens, tokens.cross_entropy, tokens.cross_varentropy)


def cross_entropy_normal(tokens: DocumentTokens) -> FloatColumn:
    """Two-sided p-value of the normal limit, against cross-entropy."""
    return _normal(cross_entropy_z(tokens))


def cross_entropy_bound(tokens: DocumentTokens, rho: float) -> FloatColumn:
    """Two-sided p-value for any length, against cross-entropy."""
    return _bound(tokens, tokens.cross_entropy, tokens.cross_varentropy, rho)


def _abs_z(tokens: DocumentTokens, expected: FloatColumn, variance: FloatColumn) -> FloatColumn:
    deviation = sums(expected - tokens.nll, tokens.offsets)
    found = np.abs(standardised(deviation, sums(variance, tokens.offsets)))
    return np.where(tokens.token_counts > 0, found, np.nan)


def _normal(abs_z: FloatColumn) -> FloatColumn:
    return np.array([math.erfc(value / math.sqrt(2)) for value in abs_z.tolist()], dtype=np.float64)


def _bound(tokens: DocumentTokens, expected: FloatColumn, variance: FloatColumn, rho: float) -> FloatColumn:
    deviation = tokens.nll - expected
    total = sums(deviation, tokens.offsets)
    spread = rho + (sums(deviation**2, tokens.offsets) + 2 * sums(variance, tokens.offsets)) / 3
    log_evidence = 0.5 * (math.log(rho) - np.log(spread)) + total**2 / (2 * spread)
    # A token of probability 0 is never drawn: evidence without end, where the formula is infinity over infinity.
    log_evidence = np.where(np.isposinf(total), np.inf, log_evidence)
    return np.where(tokens.token_counts > 0, np.exp(-np.maximum(0.0, log_evidence)), np.nan)
