"""The columns of a RUN's two tables: which there are at each level, and their values.

In: the statistics of rows, a part, what was asked for. Out: columns by name, numpy for tokens, lists for documents.
A document's sum is exact (`xentrs.Perplexity`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

import xentrs
from xentrs.corpus.batches import document_windows
from xentrs.corpus.encoding import EncodedDocument
from xentrs.corpus.parts import Part
from xentrs.corpus.settings import RENYI_ORDERS, Columns, Settings

_Column = npt.NDArray[Any]
_BASIC_FLOATS = ("nll", "entropy", "varentropy", "top1_log_prob")
_DETECT_FLOATS = ("margin", "sum_sq_prob", "log_prob_mean", "log_prob_variance")
_INTEGERS = ("rank", "ties", "top1_id")
_TEMPERED = ("nll", "mean", "variance")


def statistics_options(columns: Columns) -> dict[str, Any]:
    """What `xentrs.row_stats` has to be asked for besides its usual fields."""
    options: dict[str, Any] = {}
    if columns.has_details:
        options.update(moments=True, renyi_orders=RENYI_ORDERS)
        if columns.inverse_temperatures:
            options["inverse_temperatures"] = columns.inverse_temperatures
    if columns.level == "all":
        options["top_k"] = columns.top_k
    return options


def float_names(columns: Columns) -> tuple[str, ...]:
    """The columns of one float64 for each token, in the order of the table."""
    if not columns.has_details:
        return _BASIC_FLOATS
    orders = (renyi_name(order) for order in RENYI_ORDERS)
    tempered = (tempered_name(what, beta) for beta in columns.inverse_temperatures for what in _TEMPERED)
    return (*_BASIC_FLOATS, *_DETECT_FLOATS, *orders, *tempered)


def renyi_name(order: float) -> str:
    """The column of a Renyi entropy."""
    return f"renyi_entropy_{order:g}"


def tempered_name(what: str, inverse_temperature: float) -> str:
    """The column of nll, mean or variance at an inverse temperature."""
    return f"{what}_beta_{inverse_temperature:g}"


def statistics(stats: xentrs.RowStats, columns: Columns) -> dict[str, Any]:
    """What of them is kept, by column name."""
    found: dict[str, Any] = {
        "nll": stats.nll,
        "entropy": stats.entropy,
        "varentropy": stats.varentropy,
        "rank": stats.rank,
        "ties": stats.ties,
        "top1_id": stats.argmax,
        "top1_log_prob": stats.max_log_prob,
        "flags": stats.flags,
    }
    if columns.has_details:
        found.update({name: getattr(stats, name) for name in _DETECT_FLOATS})
        renyi = np.asarray(stats.renyi_entropy)
        found.update({renyi_name(order): renyi[:, place] for place, order in enumerate(RENYI_ORDERS)})
    if columns.has_details and columns.inverse_temperatures:
        grid = stats.temperature_grid
        for place, beta in enumerate(columns.inverse_temperatures):
            found.update({tempered_name(what, beta): np.asarray(getattr(grid, what))[:, place] for what in _TEMPERED})
    if columns.level == "all":
        found.update(top_ids=stats.top_ids, top_log_probs=stats.top_log_probs)
    return found


def empty_statistics(row_count: int, columns: Columns) -> dict[str, _Column]:
    """Columns of rows that nothing is known of yet."""
    held: dict[str, _Column] = {name: np.full(row_count, np.nan) for name in float_names(columns)}
    held.update({name: np.zeros(row_count, dtype=np.int32) for name in _INTEGERS})
    held["flags"] = np.zeros(row_count, dtype=np.uint8)
    if columns.level == "all":
        held["top_ids"] = np.zeros((row_count, columns.top_k), dtype=np.int32)
        held["top_log_probs"] = np.full((row_count, columns.top_k), np.nan)
    return held


def token_places(part: Part) -> dict[str, _Column]:
    """Which token each row is: document number, position, id, byte range in the text as it was encoded."""
    documents = part.documents
    counts = [len(document.wanted) for document in documents]
    numbers = np.array([document.number for document in documents], dtype=np.int64)
    encoded = [(document.encoded, document.wanted) for document in documents]
    return {
        "document": np.repeat(numbers, counts),
        "position": _joined([wanted for _, wanted in encoded], np.int32),
        "token_id": _joined([tokens.token_ids[wanted] for tokens, wanted in encoded], np.int32),
        "byte_start": _joined([tokens.byte_start[wanted] for tokens, wanted in encoded], np.int64),
        "byte_end": _joined([tokens.byte_end[wanted] for tokens, wanted in encoded], np.int64),
    }


def _joined(pieces: list[_Column], dtype: Any) -> _Column:
    return np.concatenate(pieces).astype(dtype) if pieces else np.zeros(0, dtype=dtype)


def document_columns(
    part: Part, tokens: dict[str, _Column], scored: npt.NDArray[np.bool_], settings: Settings
) -> dict[str, list[Any]]:
    """One line for each document of a part."""
    is_top1 = tokens["top1_id"] == tokens["token_id"]
    table: dict[str, list[Any]] = {name: [] for name in document_names(settings)}
    first = 0
    for document in part.documents:
        rows = slice(first, first + len(document.wanted))
        first = rows.stop
        line = _document_line(document, tokens["nll"][rows], scored[rows], is_top1[rows], settings)
        for name, values in table.items():
            values.append(line[name])
    return table


def document_names(settings: Settings) -> tuple[str, ...]:
    """The columns of the documents table, in its order."""
    return (
        *("document", "id", "source", "token_count", "scored_count", "context_count", "dropped_context_count"),
        *("byte_count", "char_count", "word_count", "scored_byte_count", "scored_char_count", "scored_word_count"),
        *("nll_sum", "mean_nll", "perplexity", "bits_per_byte", "top1_count", "greedy_match"),
        *(("recipe_mean_nll",) if settings.protocol == "hf-strided" else ()),
        *("status", "reason"),
        *(f"by_{key}" for key in settings.reading.by),
        *(("text",) if settings.keep_text else ()),
    )


def _document_line(
    document: EncodedDocument,
    nll: _Column,
    scored: npt.NDArray[np.bool_],
    is_top1: npt.NDArray[np.bool_],
    settings: Settings,
) -> dict[str, Any]:
    """A document without a scored token is unscorable and has no perplexity."""
    size, without = document.size, [int(values[~scored].sum()) for values in document.token_sizes]
    line: dict[str, Any] = {
        "document": document.number,
        "id": document.id,
        "source": document.source,
        "token_count": len(nll),
        "scored_count": int(scored.sum()),
        "context_count": document.context_count,
        "dropped_context_count": _dropped_context_count(document, settings),
        "byte_count": size.byte_count,
        "char_count": size.char_count,
        "word_count": size.word_count,
        "scored_byte_count": size.byte_count - without[0],
        "scored_char_count": size.char_count - without[1],
        "scored_word_count": size.word_count - without[2],
        "nll_sum": 0.0,
        **dict.fromkeys(("mean_nll", "perplexity", "bits_per_byte", "greedy_match", "recipe_mean_nll")),
        "top1_count": int(is_top1[scored].sum()),
        "status": "unscorable",
        "reason": _unscorable_reason(len(nll)),
        **{f"by_{key}": value for key, value in document.by.items()},
        "text": document.text,
    }
    if line["scored_count"] == 0:
        return line
    total = xentrs.Perplexity()
    total.update_nll(nll[scored])
    result = total.compute()
    line.update(nll_sum=result.nll_sum, mean_nll=result.mean_nll, perplexity=result.perplexity)
    line.update(status="scored", reason=None, greedy_match=bool(is_top1[scored].all()))
    if line["scored_byte_count"]:
        line["bits_per_byte"] = result.nll_sum / math.log(2) / line["scored_byte_count"]
    if settings.protocol == "hf-strided" and document.context_count == 0:  # the recipe is for whole texts
        line["recipe_mean_nll"] = _recipe_mean_nll(document, nll, scored, settings)
    return line


def _dropped_context_count(document: EncodedDocument, settings: Settings) -> int:
    """Tokens of the context that no window holds."""
    if document.context_count == 0:
        return 0
    return min((window.start for window in document_windows(document, settings)), default=0)


def _unscorable_reason(token_count: int) -> str:
    return {0: "no_tokens", 1: "one_token"}.get(token_count, "shorter_than_the_windows_need")


def _recipe_mean_nll(
    document: EncodedDocument, nll: _Column, scored: npt.NDArray[np.bool_], settings: Settings
) -> float | None:
    """The mean as the transformers recipe takes it: the mean of each window counts with one less than its new tokens,
    though after the first window all of these are predicted (docs/source/en/perplexity.md).
    """
    weighted, weights = [], []
    covered = 0
    for window in document_windows(document, settings):
        new = window.end - covered
        covered = window.end
        rows = slice(window.end - window.scored_count, window.end)
        weights.append(new - 1)
        weighted.append(math.fsum(nll[rows][scored[rows]]) / window.scored_count * (new - 1))
    return math.fsum(weighted) / sum(weights) if sum(weights) else None
