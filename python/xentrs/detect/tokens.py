"""What scores are made of: statistics of the scored tokens of one document, or of many laid end to end.

In: columns of a tokens table (docs/schema.md) or arrays of `xentrs.row_stats`; what else is known of the documents:
compressed sizes, the same documents under a reference model, in lower case, after shots, token frequencies. Out: a
checked `DocumentTokens`; tokens without a score (the flag IGNORED) are left out.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from xentrs.detect.checked_inputs import BoolColumn, FloatColumn, IntColumn, column_of
from xentrs.detect.frequency import TokenFrequencies
from xentrs.detect.segments import first_occurrences, sums
from xentrs.errors import DTypeError, ParamError, ShapeError
from xentrs.results import Flag

_FLOATS = (
    *("nll", "entropy", "varentropy", "top1_log_prob", "margin", "log_prob_mean", "log_prob_variance"),
    *("cross_entropy", "cross_varentropy"),
)
_INTEGERS = ("token_id", "rank", "ties")
_COMPANIONS = ("reference", "lowercase", "nonmember_shots", "member_shots")
_RENYI = re.compile(r"renyi_entropy_(.+)")
_TEMPERED = re.compile(r"(nll|mean|variance)_beta_(.+)")


@dataclass(frozen=True, eq=False)
class Tempered:
    """Columns at one inverse temperature b; mean and variance are of the logits under softmax(b z)."""

    nll: Any
    mean: Any
    variance: Any


@dataclass(frozen=True, eq=False)
class DocumentTokens:
    """Columns of tokens, nats and float64; `offsets` None: they are one document.

    Raises:
        ShapeError: columns, offsets or companions do not belong together.
        DTypeError, ParamError: a column cannot be what it should be, or the frequencies are another tokenizer's.
    """

    nll: Any
    offsets: Any = None
    """Document i holds the tokens [offsets[i], offsets[i + 1])."""
    token_id: Any = None
    entropy: Any = None
    varentropy: Any = None
    rank: Any = None
    ties: Any = None
    top1_log_prob: Any = None
    margin: Any = None
    log_prob_mean: Any = None
    """Of the log-probabilities over the vocabulary, every id with the same weight; so is the variance."""
    log_prob_variance: Any = None
    renyi_entropy: Mapping[float, Any] = field(default_factory=dict)
    """By order."""
    tempered: Mapping[float, Tempered] = field(default_factory=dict)
    """By inverse temperature."""
    cross_entropy: Any = None
    """-sum p ln q, with p of the reference model and q of the model."""
    cross_varentropy: Any = None
    """Variance of ln q under p."""
    zlib_byte_count: Any = None
    """One for each document, as `zlib_byte_counts` makes them."""
    reference: DocumentTokens | None = None
    """The same documents under a reference model; its nll alone is used, its tokenizer may be another."""
    lowercase: DocumentTokens | None = None
    """The same texts in lower case."""
    nonmember_shots: DocumentTokens | None = None
    """The same tokens after a prefix of texts that are no members."""
    member_shots: DocumentTokens | None = None
    """The same tokens after a prefix of members."""
    frequencies: TokenFrequencies | None = None
    tokenizer_sha256: str | None = None
    """Of the model's tokenizer; has to be that of `frequencies`."""

    def __post_init__(self) -> None:
        """Checks everything once; past it there are arrays only."""
        count = self._set("nll", column_of(self.nll, "nll"))
        self._set("offsets", _offsets(self.offsets, count))
        for name in _FLOATS[1:]:
            if (values := getattr(self, name)) is not None:
                self._set(name, column_of(values, name, count, "nll"))
        for name in _INTEGERS:
            if (values := getattr(self, name)) is not None:
                self._set(name, _integers(values, name, count))
        if self.rank is not None and ((self.rank < 1) & ~np.isnan(self.nll)).any():
            raise ParamError("rank holds 0, expected ranks from 1: tokens without a score are to be left out")
        renyi = self.renyi_entropy.items()
        self._set("renyi_entropy", {o: column_of(v, f"renyi_entropy_{o:g}", count, "nll") for o, v in renyi})
        self._set("tempered", {b: _tempered(self.tempered[b], b, count) for b in sorted(self.tempered)})
        if self.zlib_byte_count is not None:
            self._set("zlib_byte_count", _integers(self.zlib_byte_count, "zlib_byte_count", self.document_count))
        for name in _COMPANIONS:
            companion = getattr(self, name)
            if companion is not None and companion.document_count != self.document_count:
                raise ShapeError(f"{name} has {companion.document_count} documents, expected {self.document_count}")
        if self.frequencies is not None:
            self.frequencies.require_tokenizer(self.tokenizer_sha256)

    def _set(self, name: str, value: Any) -> int:
        object.__setattr__(self, name, value)
        return len(value)

    @property
    def document_count(self) -> int:
        """Documents, empty ones too."""
        return len(self.offsets) - 1

    @cached_property
    def token_counts(self) -> IntColumn:
        """Scored tokens of each document."""
        counts: IntColumn = np.diff(self.offsets)
        return counts

    @cached_property
    def is_first(self) -> BoolColumn:
        """The first of equal token ids among the scored tokens of a document."""
        return first_occurrences(self.token_id, self.offsets)

    @cached_property
    def _nan_by_need(self) -> dict[str, BoolColumn]:
        """By need, which documents have a token with NaN there; filled as it is asked for."""
        return {}

    def has_nan_in(self, need: str) -> BoolColumn:
        """Which documents have a token with NaN in the columns of `need`."""
        if need not in self._nan_by_need:
            is_nan = np.zeros(len(self.nll), dtype=np.bool_)
            for column in self.columns_of(need) or ():
                is_nan |= np.isnan(column)
            if need == "rank":  # an integer, 0 where the prediction is NaN
                is_nan |= self.rank < 1
            self._nan_by_need[need] = sums(is_nan.astype(np.float64), self.offsets) > 0
        return self._nan_by_need[need]

    def columns_of(self, need: str) -> list[FloatColumn] | None:
        """The token columns that `need` of a score stands for, none for what is no token column; None: it is missing.

        `need` is a column of the tokens table, `tempered` for those at any inverse temperature, or another field.
        """
        if need == "tempered":
            return [column for at in self.tempered.values() for column in (at.nll, at.mean, at.variance)] or None
        if (match := _RENYI.fullmatch(need)) is not None:
            column = self.renyi_entropy.get(float(match[1]))
        elif (match := _TEMPERED.fullmatch(need)) is not None:
            column = getattr(self.tempered.get(float(match[2])), match[1], None)
        else:
            column = getattr(self, need)
        if column is None:
            return None
        return [column] if need not in _OTHERS else []

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any], token_counts: Any = None, **others: Any) -> DocumentTokens:
        """Of a tokens table: columns by their names there, and the `token_count` of each document in their order; None:
        one document. Rows with the flag IGNORED are left out; columns that no score needs are passed over. `others` are
        further fields.
        """
        flags, offsets = columns.get("flags"), None
        count = len(columns["nll"])
        kept = np.ones(count, np.bool_) if flags is None else (np.asarray(flags) & Flag.IGNORED) == 0
        if token_counts is not None:
            bounds = _offsets(np.concatenate(([0], np.cumsum(np.asarray(token_counts, dtype=np.int64)))), count)
            offsets = np.concatenate(([0], np.cumsum(kept)))[bounds]
        plain = {name: _kept(columns[name], kept) for name in (*_FLOATS, *_INTEGERS) if name in columns}
        renyi, tempered = _families(columns, kept)
        return cls(offsets=offsets, renyi_entropy=renyi, tempered=tempered, **plain, **others)


_OTHERS = frozenset(known.name for known in fields(DocumentTokens) if known.name not in (*_FLOATS, *_INTEGERS))


def zlib_byte_counts(texts: Sequence[str]) -> IntColumn:
    """Bytes of each text's UTF-8 after `zlib.compress` of the Python that runs, at its default level, header and
    checksum included. Another zlib, or zlib-ng, compresses to other sizes.
    """
    return np.array([len(zlib.compress(text.encode())) for text in texts], dtype=np.int64)


def _kept(values: Any, kept: BoolColumn) -> Any:
    array = np.asarray(values)
    if array.shape != kept.shape:
        raise ShapeError(f"a column has shape {array.shape} and nll {kept.shape}: expected one value for each token")
    return array[kept]


def _families(columns: Mapping[str, Any], kept: BoolColumn) -> tuple[dict[float, Any], dict[float, Tempered]]:
    """The columns whose names hold an order or an inverse temperature."""
    renyi: dict[float, Any] = {}
    parts: dict[float, dict[str, Any]] = {}
    for name, values in columns.items():
        if (match := _RENYI.fullmatch(name)) is not None:
            renyi[float(match[1])] = _kept(values, kept)
        elif (match := _TEMPERED.fullmatch(name)) is not None:
            parts.setdefault(float(match[2]), {})[match[1]] = _kept(values, kept)
    return renyi, {beta: Tempered(**held) for beta, held in parts.items() if len(held) == 3}


def _tempered(at: Tempered, beta: float, count: int) -> Tempered:
    names = ("nll", "mean", "variance")
    return Tempered(*(column_of(getattr(at, name), f"{name}_beta_{beta:g}", count, "nll") for name in names))


def _integers(values: Any, name: str, count: int) -> IntColumn:
    array = column_of(values, name, count, "nll" if name in _INTEGERS else "offsets")
    if (array != np.floor(array)).any():
        raise DTypeError(f"{name} holds {array[array != np.floor(array)][0]:g}, expected integers")
    return array.astype(np.int64)


def _offsets(offsets: Any, token_count: int) -> IntColumn:
    if offsets is None:
        return np.array([0, token_count], dtype=np.int64)
    array = np.asarray(offsets)
    is_sound = array.ndim == 1 and array.dtype.kind in "iu" and len(array) > 0
    if not is_sound or array[0] != 0 or (np.diff(array) < 0).any() or array[-1] != token_count:
        raise ShapeError(f"offsets do not rise from 0 to {token_count}, the number of tokens")
    return array.astype(np.int64)
