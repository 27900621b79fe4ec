"""Random documents with every special row, and their columns as xentrs computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xentrs as xe
from detect_reference import Floats, Passage
from xentrs.detect import DocumentTokens, TokenFrequencies, zlib_byte_counts

VOCAB = 60
TOKENIZER = "5f0e" * 16
GRID = (0.0, 0.25, 0.5, 2**-0.1, 1.0, 2**0.1, 2.0, 4.0)
INF = float("inf")


def special_rows(rows: Floats, generator: np.random.Generator) -> None:
    """One-hot, uniform, two-valued, tied and padded rows, in place."""
    for row in rows:
        kind = generator.integers(0, 9)
        if kind == 0:
            row[:] = -INF
            row[generator.integers(VOCAB)] = 3.0
        elif kind == 1:
            row[:] = 1.5
        elif kind == 2:
            row[:] = np.where(np.arange(VOCAB) < 4, 2.0, -INF)
        elif kind == 3:
            row[:] = np.round(row)
        elif kind == 4:
            row[generator.permutation(VOCAB)[:20]] = -INF


def passage(generator: np.random.Generator, tokens: int, *, special: bool, dtype: Any = np.float64) -> Passage:
    """One pass. Without `special` every logit is finite."""
    logits = (generator.normal(size=(tokens, VOCAB)) * generator.uniform(0.3, 4, (tokens, 1))).astype(dtype)
    if special:
        special_rows(logits, generator)
    likely = np.argsort(-logits, axis=1, kind="stable")[np.arange(tokens), generator.integers(0, 12, tokens)]
    is_lost = np.isneginf(logits[np.arange(tokens), likely]) & (generator.random(tokens) < 0.9)
    likely = np.where(is_lost, logits.argmax(axis=1), likely)
    return Passage(logits, [int(target) for target in likely])


def document(generator: np.random.Generator, tokens: int, *, special: bool, dtype: Any = np.float64) -> Passage:
    """One document with all that scores ask for; the reference model allows what the model allows, and more."""
    found = passage(generator, tokens, special=special, dtype=dtype)
    noise = generator.normal(size=found.logits.shape).astype(dtype)
    found.reference = Passage((found.logits + noise).astype(dtype), found.targets)
    found.lowercase = passage(generator, tokens + int(generator.integers(0, 3)) * (tokens > 0), special=False)
    for name in ("nonmember_shots", "member_shots"):
        # After shots the first token has a score too.
        shots = passage(generator, tokens + int(generator.integers(0, 2)) * (tokens > 0), special=False)
        setattr(found, name, shots)
    found.text = "".join(generator.choice(list("abc é東\n"), tokens * 3))
    found.counts = [int(count) for count in np.arange(VOCAB) ** 2]
    found.inverse_temperatures = GRID
    return found


def columns(one: Passage, grid: Sequence[float] = GRID) -> dict[str, Any]:
    """The columns of a tokens table at the level `detect`."""
    targets = np.array(one.targets, dtype=np.int64)
    stats, moments = xe.row_stats(one.logits, targets), xe.log_prob_moments(one.logits)
    renyi, tempered = xe.renyi_entropy(one.logits, [0.5, 2.0]), xe.temperature_grid(one.logits, grid, targets)
    found = {name: getattr(stats, name) for name in ("nll", "entropy", "varentropy", "rank", "ties", "margin", "flags")}
    found |= {"top1_log_prob": stats.max_log_prob, "token_id": targets}
    found |= {"log_prob_mean": moments.mean, "log_prob_variance": moments.variance}
    found |= {"renyi_entropy_0.5": renyi[:, 0], "renyi_entropy_2": renyi[:, 1]}
    for place, beta in enumerate(grid):
        found |= {f"{what}_beta_{beta!r}": getattr(tempered, what)[:, place] for what in ("nll", "mean", "variance")}
    return found


def tokens_of(documents: Sequence[Passage], **others: Any) -> DocumentTokens:
    """All of them end to end, with everything that a score can need."""
    table = [columns(one, one.inverse_temperatures) for one in documents]
    joined = {name: np.concatenate([held[name] for held in table]) for name in table[0]}
    crossed = [xe.divergences(one.reference.logits, one.logits) for one in documents]
    companions = ("reference", "lowercase", "nonmember_shots", "member_shots")
    fields: dict[str, Any] = {name: nll_of([getattr(one, name) for one in documents]) for name in companions}
    fields["cross_entropy"] = np.concatenate([pair.cross_entropy for pair in crossed])
    fields["cross_varentropy"] = np.concatenate([pair.cross_varentropy for pair in crossed])
    fields["zlib_byte_count"] = zlib_byte_counts([one.text for one in documents])
    fields["frequencies"] = frequencies(documents[0].counts)
    joined |= {name: fields.pop(name) for name in ("cross_entropy", "cross_varentropy")}
    counts = [len(one) for one in documents]
    return DocumentTokens.from_columns(joined, counts, tokenizer_sha256=TOKENIZER, **{**fields, **others})


def nll_of(passes: Sequence[Passage]) -> DocumentTokens:
    """A companion: its nll alone."""
    nll = [xe.row_stats(one.logits, np.array(one.targets, dtype=np.int64)).nll for one in passes]
    return DocumentTokens(np.concatenate(nll), np.concatenate(([0], np.cumsum([len(one) for one in passes]))))


def frequencies(counts: Sequence[int]) -> TokenFrequencies:
    """A table with these counts."""
    ids = np.repeat(np.arange(len(counts)), counts)
    return TokenFrequencies.build([ids], vocab_size=len(counts), tokenizer_sha256=TOKENIZER)


def wide(one: Passage) -> Passage:
    """The same with float64 logits, for the definitions."""
    names = ("reference", "lowercase", "nonmember_shots", "member_shots")
    inner = {name: wide(held) for name in names if (held := getattr(one, name)) is not None}
    return replace(one, logits=one.logits.astype(np.float64), **inner)
