"""Scores of documents: what was asked for, computed from the columns that are there, larger for member or machine.

In: `DocumentTokens`, names. Out: `DocumentScores`: a value for each document and score, why one is NaN, and which
scores of a group could not be computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.detect.definition import Request
from xentrs.detect.registry import requests_of
from xentrs.detect.tokens import DocumentTokens
from xentrs.errors import MissingColumn, ParamError

NO_TOKENS = "no_tokens"
NAN_STATISTICS = "nan_statistics"
NO_COMPANION_TOKENS = "no_companion_tokens"
UNDEFINED = "undefined"
_COMPANIONS = ("reference", "lowercase", "nonmember_shots", "member_shots")


@dataclass(frozen=True)
class DocumentScores:
    """Scores by column; a column is a score's name, with the parameters that were given and the label of one of several
    values behind it: `min-k`, `min-k:k=0.1`, `renyi_0.5`.
    """

    values: dict[str, FloatColumn]
    reasons: dict[str, dict[int, str]]
    """Why a document has NaN: `no_tokens`; `nan_statistics`, a column that the score needs is NaN at one of its tokens;
    `no_companion_tokens`, it has none under the reference model, in lower case or after shots; `undefined`, such as
    infinity less infinity.
    """
    unavailable: dict[str, str]
    """Scores of a group that were left out, and what they lack."""


def score_documents(tokens: DocumentTokens, names: str | Iterable[str] = "all") -> DocumentScores:
    """Computes scores of every document.

    Args:
        tokens: columns of one document or many.
        names: names, `NAME:PARAMETER=VALUE`, or the groups `all`, `membership`, `machine`: every score that can be
            computed from what is there.

    Raises:
        ParamError: there is no such score, or a parameter is outside its range.
        MissingColumn: a score that was named needs what is not there.

    Example:
        >>> import numpy as np
        >>> from xentrs.detect import DocumentTokens, score_documents
        >>> tokens = DocumentTokens(nll=np.array([0.5, 1.5, 3.0]), offsets=np.array([0, 2, 3]))
        >>> score_documents(tokens, "loss").values["loss"].tolist()
        [-1.0, -3.0]
    """
    named, grouped = requests_of(names)
    lacks = {request.column: _missing(tokens, request) for request in (*named, *grouped)}
    for request in named:
        if lacks[request.column]:
            raise MissingColumn(f"score {request.score.name} needs {', '.join(lacks[request.column])}")
    found = DocumentScores({}, {}, {column: ", ".join(lack) for column, lack in lacks.items() if lack})
    for request in (*named, *grouped):
        if not lacks[request.column]:
            _add(found, tokens, request)
    return found


def score_document(tokens: DocumentTokens, names: str | Iterable[str] = "all") -> dict[str, float]:
    """The scores of one document. Arguments and errors are those of `score_documents`.

    Raises:
        ParamError: there are more documents, or none.
    """
    if tokens.document_count != 1:
        raise ParamError(f"tokens hold {tokens.document_count} documents, expected 1: use score_documents")
    return {column: float(values[0]) for column, values in score_documents(tokens, names).values.items()}


def _missing(tokens: DocumentTokens, request: Request) -> list[str]:
    return [need for need in request.score.needs if tokens.columns_of(need) is None]


def _add(found: DocumentScores, tokens: DocumentTokens, request: Request) -> None:
    """The one place where a sign is changed."""
    with np.errstate(all="ignore"):
        computed = request.score.compute(tokens, **request.parameters)
    has_nan = np.logical_or.reduce([tokens.has_nan_in(need) for need in request.score.needs])
    for label, values in computed.items() if isinstance(computed, dict) else [("", computed)]:
        column = f"{request.column}_{label}" if label else request.column
        directed = np.where(has_nan, np.nan, -values if request.score.published == "lower" else values)
        # A zero of either sign is one value.
        found.values[column] = directed + 0.0
        places = np.flatnonzero(np.isnan(directed)).tolist()
        found.reasons[column] = {place: _reason(tokens, request, place, bool(has_nan[place])) for place in places}


def _reason(tokens: DocumentTokens, request: Request, place: int, has_nan: bool) -> str:
    if tokens.token_counts[place] == 0:
        return NO_TOKENS
    companions = [getattr(tokens, need) for need in request.score.needs if need in _COMPANIONS]
    if any(companion.token_counts[place] == 0 for companion in companions):
        return NO_COMPANION_TOKENS
    if has_nan or any(np.isnan(companion.nll[_tokens_of(companion, place)]).any() for companion in companions):
        return NAN_STATISTICS
    return UNDEFINED


def _tokens_of(tokens: DocumentTokens, place: int) -> slice:
    return slice(int(tokens.offsets[place]), int(tokens.offsets[place + 1]))
