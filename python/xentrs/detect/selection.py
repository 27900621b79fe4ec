"""Scores over the most telling share of a document's tokens: Min-K%, Min-K%++, SURP, Gap-K%, MaxRenyi-K%.

In: `DocumentTokens`. Out: one value for each document. A share of N tokens is max(1, floor(share * N)) of them, for
every score (`segments.share_counts`).
"""

from __future__ import annotations

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.segments import lowest, means_of_lowest, means_where, minima, moving_averages, standardised
from xentrs.detect.tokens import DocumentTokens


def min_k(tokens: DocumentTokens, k: float) -> FloatColumn:
    """Mean log-probability of the share k of least likely tokens."""
    return means_of_lowest(-tokens.nll, tokens.offsets, k)


def min_k_plus_plus(tokens: DocumentTokens, k: float) -> FloatColumn:
    """Mean of the lowest share k of log-probabilities, each standardised under the predicted distribution."""
    return means_of_lowest(standardised(tokens.entropy - tokens.nll, tokens.varentropy), tokens.offsets, k)


def min_k_plus_plus_unweighted(tokens: DocumentTokens, k: float) -> FloatColumn:
    """The same, standardised with mean and variance over the vocabulary, every id with the same weight."""
    deviation = -tokens.nll - tokens.log_prob_mean
    return means_of_lowest(standardised(deviation, tokens.log_prob_variance), tokens.offsets, k)


def surprising_tokens(tokens: DocumentTokens, k: float, max_entropy: float) -> FloatColumn:
    """Mean log-probability of the tokens that are among the share k of least likely ones, though the entropy is below
    `max_entropy`. Where there is none, the one with the lowest entropy stands for them: what is left last when
    `max_entropy` falls.
    """
    is_unlikely = lowest(-tokens.nll, tokens.offsets, k)
    found = means_where(is_unlikely & (tokens.entropy < max_entropy), -tokens.nll, tokens.offsets)
    most_certain = minima(np.where(is_unlikely, tokens.entropy, np.inf), tokens.offsets)
    is_last = is_unlikely & (tokens.entropy == np.repeat(most_certain, tokens.token_counts))
    return np.where(np.isnan(found), means_where(is_last, -tokens.nll, tokens.offsets), found)


def gap_k(tokens: DocumentTokens, k: float, window: int) -> FloatColumn:
    """Mean of the lowest share k of moving averages of the standardised gap to the most likely token.

    A token of rank 1 has the gap 0, whatever the rounding of two log-probabilities says.
    """
    gap = np.where(tokens.rank == 1, 0.0, -tokens.nll - tokens.top1_log_prob)
    averages, offsets = moving_averages(standardised(gap, tokens.varentropy), tokens.offsets, window)
    return means_of_lowest(averages, offsets, k)


def max_renyi(tokens: DocumentTokens, k: float) -> dict[str, FloatColumn]:
    """Mean of the highest share k of Renyi entropies, for the orders 0.5, 1, 2 and infinity."""
    entropies = {
        "0.5": tokens.renyi_entropy[0.5],
        "1": tokens.entropy,
        "2": tokens.renyi_entropy[2.0],
        "inf": -tokens.top1_log_prob,
    }
    return {order: -means_of_lowest(-values, tokens.offsets, k) for order, values in entropies.items()}
