"""Scores that compare a document's likelihood with another one: of a reference model, of the text in lower case, of the
same tokens after shots.

In: `DocumentTokens` with the companion. Out: one value for each document. Text in lower case and another tokenizer have
tokens of their own, so means are compared. After shots the tokens are the same, but for the first, which only a prefix
gives a score: the means are over the tokens that all passes have, the last ones.
"""

from __future__ import annotations

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.likelihood import mean_nll
from xentrs.detect.segments import last_tokens, means_where, ratios
from xentrs.detect.tokens import DocumentTokens


def reference_difference(tokens: DocumentTokens) -> FloatColumn:
    """Mean nll of the reference model less that of the model."""
    return mean_nll(_given(tokens.reference)) - mean_nll(tokens)


def reference_ratio(tokens: DocumentTokens) -> FloatColumn:
    """Mean nll of the model over that of the reference model."""
    return ratios(mean_nll(tokens), mean_nll(_given(tokens.reference)), 1.0)


def lowercase_ratio(tokens: DocumentTokens) -> FloatColumn:
    """Mean nll in lower case over that of the text as it is."""
    return ratios(mean_nll(_given(tokens.lowercase)), mean_nll(tokens), 1.0)


def recall(tokens: DocumentTokens) -> FloatColumn:
    """Likelihood after shots that are no members over that without."""
    after, plain = _shared_means(_given(tokens.nonmember_shots), tokens)
    return ratios(after, plain, 1.0)


def con_recall(tokens: DocumentTokens, gamma: float) -> FloatColumn:
    """Likelihood after shots that are no members, less `gamma` times that after members, over that without."""
    after, after_members, plain = _shared_means(_given(tokens.nonmember_shots), _given(tokens.member_shots), tokens)
    return ratios(after - gamma * after_members, plain, 1.0 - gamma)


def _shared_means(*passes: DocumentTokens) -> list[FloatColumn]:
    """Mean nll of each pass over as many last tokens as the shortest has."""
    shared = np.minimum.reduce([one.token_counts for one in passes])
    return [means_where(last_tokens(one.offsets, shared), one.nll, one.offsets) for one in passes]


def _given(companion: DocumentTokens | None) -> DocumentTokens:
    assert companion is not None, "the table names it as a need, which was checked"
    return companion
