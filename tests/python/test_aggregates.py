"""Totals of a corpus: figures against plain arithmetic, intervals against simulation, the same bits in any order."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import xentrs
from xentrs.corpus import bootstrap
from xentrs.corpus.aggregates import Totals, document_rows
from xentrs.corpus.json_text import dump_page
from xentrs.errors import InternalError

Table = dict[str, list[Any]]
Part = tuple[Table, xentrs.Perplexity]


def document(number: int, nll: Sequence[float], **changes: Any) -> dict[str, Any]:
    """One line of a documents table: a token more than is scored, four bytes and three characters each."""
    count, total = len(nll), math.fsum(nll) if all(map(math.isfinite, nll)) else sum(nll)
    is_scored = count > 0
    return {
        "document": number, "id": f"d{number}", "source": "a.jsonl", "token_count": count + 1, "scored_count": count,
        "byte_count": 4 * (count + 1), "char_count": 3 * (count + 1), "word_count": count + 1,
        "scored_byte_count": 4 * count, "scored_char_count": 3 * count, "scored_word_count": count,
        "nll_sum": total, "mean_nll": total / count if is_scored else None, "perplexity": None,
        "bits_per_byte": total / math.log(2) / (4 * count) if is_scored else None, "top1_count": count // 2,
        "greedy_match": False if is_scored else None, "status": "scored" if is_scored else "unscorable",
        "reason": None if is_scored else "one_token",
    } | changes  # fmt: skip


def part(*rows: dict[str, Any], nll: Sequence[Sequence[float]]) -> Part:
    table = {name: [row[name] for row in rows] for name in rows[0]}
    return table, exact([value for values in nll for value in values])


def exact(values: Sequence[float]) -> xentrs.Perplexity:
    metric = xentrs.Perplexity()
    metric.update_nll(np.array(values, dtype=np.float64))
    return metric


def make(values: Sequence[Sequence[float]], first: int = 0, **changes: Sequence[Any]) -> Part:
    rows = [
        document(first + place, nll, **{name: column[place] for name, column in changes.items()})
        for place, nll in enumerate(values)
    ]
    return part(*rows, nll=values)


def totals_of(*parts: Part) -> Totals:
    totals = Totals()
    for table, nll in parts:
        totals.add(table, nll, 0, 0)
    return totals


def block_of(values: Sequence[Sequence[float]], **changes: Sequence[Any]) -> dict[str, Any]:
    return totals_of(make(values, **changes)).block()


def random_documents(count: int, seed: int, mean_length: float = 12.0) -> list[list[float]]:
    """Documents of different lengths, each with a level of its own: tokens within one are not independent."""
    generator = np.random.default_rng(seed)
    lengths = 1 + generator.poisson(mean_length, count)
    levels = generator.gamma(4.0, 0.75, count)
    return [generator.exponential(level, length).tolist() for level, length in zip(levels, lengths, strict=True)]


def test_counts_and_means() -> None:
    totals = Totals()
    table, nll = make([[1.0, 2.0, 3.0], [], [0.5, 0.25]], greedy_match=[True, None, False])
    totals.add(table, nll, 3, 4)
    block = totals.block()
    assert {name: block[name] for name in list(block)[:15]} == {
        "documents": 3, "scored_documents": 2, "unscorable_documents": 1, "tokens": 8, "scored_tokens": 5,
        "unscored_tokens": 3, "bytes": 32, "scored_bytes": 20, "chars": 24, "scored_chars": 15, "words": 8,
        "scored_words": 5, "top1_tokens": 2, "word_splitter": "whitespace", "nll_sum": 6.75,
    }  # fmt: skip
    expected = {
        "mean_nll": 6.75 / 5,
        "perplexity_per_token": math.exp(6.75 / 5),
        "bits_per_token": 6.75 / 5 / math.log(2),
        "bits_per_byte": 6.75 / math.log(2) / 20,
        "bits_per_char": 6.75 / math.log(2) / 15,
        "nats_per_word": 6.75 / 5,
        "perplexity_per_word": math.exp(6.75 / 5),
        "top1_fraction": 2 / 5,
        "mean_nll_over_documents": (6.0 / 3 + 0.75 / 2) / 2,
        "bits_per_byte_over_documents": (6.0 / 12 + 0.75 / 8) / 2 / math.log(2),
    }
    for name, value in expected.items():
        assert block[name] == pytest.approx(value, rel=1e-15), name
    assert (block["quarantined"], block["skipped_lines"], block["greedy_documents"]) == (3, 4, 1)
    assert (block["infinite_count"], block["nan_count"], block["reason"], block["reasons"]) == (0, 0, None, {})


def test_words_and_characters_have_their_own_denominators() -> None:
    block = block_of([[1.0, 3.0]], scored_word_count=[1], scored_char_count=[5], scored_byte_count=[8])
    assert block["nats_per_word"] == 4.0
    assert block["perplexity_per_word"] == pytest.approx(math.exp(4.0), rel=1e-15)
    assert block["bits_per_char"] == pytest.approx(4.0 / math.log(2) / 5, rel=1e-15)
    assert block["bits_per_byte"] == pytest.approx(4.0 / math.log(2) / 8, rel=1e-15)


MEANS = (
    "mean_nll", "perplexity_per_token", "bits_per_token", "bits_per_byte", "bits_per_char", "nats_per_word",
    "perplexity_per_word", "top1_fraction", "mean_nll_over_documents", "bits_per_byte_over_documents",
)  # fmt: skip


@pytest.mark.parametrize("values", [[], [[]], [[], []]])
def test_nothing_scored_has_no_figure_and_says_why(values: list[list[float]]) -> None:
    block = block_of(values) if values else Totals().block()
    assert block["documents"] == len(values)
    assert block["nll_sum"] == 0.0
    assert block["reason"] == "no_tokens"
    for name in MEANS:
        assert block[name] is None, name
        assert block["reasons"][name] == ("no_documents" if name.endswith("documents") else "no_tokens")
    interval = block["confidence_interval"]
    assert interval["mean_nll"] is interval["bits_per_byte"] is interval["perplexity_per_token"] is None
    assert interval["reason"] == "fewer_than_two_documents"


@pytest.mark.parametrize(
    ("column", "names", "reason"),
    [
        ("scored_byte_count", ["bits_per_byte"], "no_bytes"),
        ("scored_char_count", ["bits_per_char"], "no_chars"),
        ("scored_word_count", ["nats_per_word", "perplexity_per_word"], "no_words"),
    ],
)
def test_a_denominator_of_zero_is_named(column: str, names: list[str], reason: str) -> None:
    block = block_of([[1.0], [2.0]], **{column: [0, 0]})
    assert {name: block[name] for name in names} == dict.fromkeys(names)
    assert block["reasons"] == dict.fromkeys(names, reason)
    assert block["mean_nll"] == 1.5
    if reason == "no_bytes":
        assert block["confidence_interval"]["bits_per_byte"] is None
        assert block["confidence_interval"]["reason"] == "no_bytes"
        assert block["confidence_interval"]["mean_nll"] is not None


def test_infinities_nan_and_overflow_are_flagged_and_never_reach_json() -> None:
    infinite = block_of([[1.0, math.inf], [2.0]])
    assert infinite["nll_sum"] == infinite["mean_nll"] == math.inf
    assert (infinite["infinite_count"], infinite["nan_count"]) == (1, 0)
    assert infinite["reasons"] == {name: "infinite" for name in MEANS if name != "top1_fraction"}
    assert infinite["confidence_interval"]["reason"] == "not_finite"
    nan = block_of([[1.0, math.nan], [math.inf]])
    assert math.isnan(nan["mean_nll"])
    assert (nan["infinite_count"], nan["nan_count"], nan["reasons"]["mean_nll"]) == (1, 1, "nan")
    huge = block_of([[800.0], [900.0]])
    assert huge["mean_nll"] == 850.0
    assert huge["perplexity_per_token"] == huge["perplexity_per_word"] == math.inf
    assert huge["reasons"] == {"perplexity_per_token": "overflow", "perplexity_per_word": "overflow"}
    assert huge["confidence_interval"]["perplexity_per_token"] == [math.inf, math.inf]
    for block in (infinite, nan, huge):
        text = dump_page(block).decode()
        assert "Infinity" not in text
        assert "NaN" not in text
        assert json.loads(text)["perplexity_per_token"] is None


def test_columns_that_do_not_fit_their_nll_are_refused() -> None:
    table, _ = make([[1.0, 2.0]])
    with pytest.raises(InternalError, match="totals of 1 tokens came for 2 scored tokens"):
        Totals().add(table, exact([1.0]), 0, 0)


def random_corpus() -> list[list[float]]:
    values = random_documents(9_000, seed=1, mean_length=3.0)
    values[17] = []
    return values


def rows_of(parts: list[Part]) -> list[dict[str, Any]]:
    return [row for table, _ in parts for row in document_rows(table)]


@pytest.fixture(scope="module")
def corpus() -> list[Part]:
    """9,000 documents, so that groups hold several, in parts of uneven size; two columns to break down by."""
    values = random_corpus()
    bounds = [0, 1, 700, 701, 4_500, 8_999, 9_000]
    parts = []
    for first, last in itertools.pairwise(bounds):
        numbers = range(first, last)
        labels = {
            "source": [f"part-{number % 3}.jsonl" for number in numbers],
            "by_site": [None if number % 5 == 0 else f"site {number * 7919 % 2_500:04d}" for number in numbers],
        }
        parts.append(make(values[first:last], first, **labels))
    return parts


def test_any_order_and_any_sharding_gives_the_same_bits(corpus: list[Part]) -> None:
    whole = totals_of(*corpus)
    expected = (whole.block(), whole.best(), whole.worst())
    shuffled = corpus[:]
    random.Random(5).shuffle(shuffled)
    merged = Totals()
    for shard in (shuffled[:2], shuffled[2:5], [], shuffled[5:]):
        merged.merge(pickle.loads(pickle.dumps(totals_of(*shard))))
    for totals in (totals_of(*shuffled), merged):
        assert (totals.block(), totals.best(), totals.worst()) == expected
    rejoined = {name: [value for table, _ in corpus for value in table[name]] for name in corpus[0][0]}
    all_nll = [value for nll in random_corpus() for value in nll]
    assert totals_of((rejoined, exact(all_nll))).block() == expected[0]


def test_sums_are_exact(corpus: list[Part]) -> None:
    block = totals_of(*corpus).block()
    assert block["nll_sum"] == math.fsum(value for nll in random_corpus() for value in nll)
    by_source = math.fsum(row["nll_sum"] for row in rows_of(corpus) if row["source"] == "part-1.jsonl")
    assert block["breakdowns"]["source"]["values"][1]["nll_sum"] == by_source
    per_document = [value for table, _ in corpus for value in table["mean_nll"] if value is not None]
    assert block["mean_nll_over_documents"] == math.fsum(per_document) / 8_999


def test_interval_of_few_documents_is_the_bootstrap_over_documents() -> None:
    values = random_documents(40, seed=2)
    interval = block_of(values)["confidence_interval"]
    assert interval["method"] == "percentile bootstrap over documents"
    assert (interval["documents"], interval["groups"], interval["resamples"], interval["level"]) == (40, 40, 1000, 0.95)
    assert interval["seed"] == bootstrap.SEED
    sums = np.array([math.fsum(nll) for nll in values])
    counts = np.array([len(nll) for nll in values])
    drawn = np.random.default_rng(3).integers(40, size=(20_000, 40))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    expected = np.quantile(means, [0.025, 0.975])
    width = expected[1] - expected[0]
    np.testing.assert_allclose(interval["mean_nll"], expected, rtol=0, atol=0.1 * width)
    bits = np.array(interval["mean_nll"]) / math.log(2) / 4
    np.testing.assert_allclose(interval["bits_per_byte"], bits, rtol=1e-12)
    assert interval["perplexity_per_token"] == [math.exp(value) for value in interval["mean_nll"]]


@pytest.mark.parametrize(("count", "groups"), [(60, bootstrap.GROUPS), (600, 61)])
def test_interval_covers_the_truth_as_often_as_it_says(
    count: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """True mean: E[length * level] / E[length] = 3, length and level being independent."""
    monkeypatch.setattr(bootstrap, "GROUPS", groups)
    covered = 0
    repeats = 150
    for seed in range(repeats):
        interval = block_of(random_documents(count, seed=1000 + seed))["confidence_interval"]
        assert interval["groups"] == min(count, bootstrap.GROUPS)
        assert interval["method"].endswith("in groups") == (count > bootstrap.GROUPS)
        low, high = interval["mean_nll"]
        covered += low <= 3.0 <= high
    # Binomial with 95 %: three standard deviations are 8; the percentile interval is known to be a little short.
    assert 0.88 * repeats <= covered <= 0.995 * repeats


def test_interval_needs_two_groups() -> None:
    assert block_of([[1.0, 2.0]])["confidence_interval"]["reason"] == "fewer_than_two_documents"
    rows = [document(0, [1.0]), document(bootstrap.GROUPS, [2.0])]
    interval = totals_of(part(*rows, nll=[[1.0], [2.0]])).block()["confidence_interval"]
    assert (interval["reason"], interval["mean_nll"]) == ("one_group", None)


def test_a_shard_of_every_nth_document_fills_all_groups() -> None:
    values = [[1.0]] * 600
    rows = [document(64 * place, nll) for place, nll in enumerate(values)]
    assert totals_of(part(*rows, nll=values)).block()["confidence_interval"]["groups"] == 600


def test_best_and_worst_documents_without_their_text() -> None:
    rates = [3.0, None, 1.0, math.nan, math.inf, 2.0, 1.0, 7.0, 5.0, 0.5]
    values: list[list[float]] = [[] if rate is None else [1.0] for rate in rates]
    parts = [
        make(values[:4], bits_per_byte=rates[:4], text=["t"] * 4),
        make(values[4:], 4, bits_per_byte=rates[4:], text=["t"] * 6),
    ]
    for totals in (totals_of(*parts), totals_of(parts[1]).merge(totals_of(parts[0]))):
        assert [row["document"] for row in totals.best()] == [9, 2, 6, 5, 0]
        assert [row["document"] for row in totals.worst()] == [4, 7, 8, 0, 5]
        assert "text" not in totals.best()[0]
        assert totals.best()[0]["id"] == "d9"


def test_numbers_are_those_of_the_metric() -> None:
    values = random_documents(30, seed=9)
    metric = xentrs.Perplexity()
    metric.update_nll(np.concatenate([np.array(nll) for nll in values]))
    result, block = metric.compute(), block_of(values)
    assert (block["nll_sum"], block["mean_nll"]) == (result.nll_sum, result.mean_nll)
    assert (block["perplexity_per_token"], block["bits_per_token"]) == (result.perplexity, result.bits_per_token)
