"""Figures by the values of a column: which are kept, what they count, and the rest."""

from __future__ import annotations

import math
import pickle

import pytest
from test_aggregates import Part, block_of, make, rows_of, totals_of
from test_aggregates import corpus as corpus  # a fixture
from xentrs.corpus import breakdown


def test_breakdowns_count_documents_that_are_not_finite() -> None:
    values = [[1.0, math.inf], [math.inf, math.inf], [math.nan], [2.0]]
    lines = block_of(values, by_x=["i", "i", "n", "f"])["breakdowns"]["by_x"]["values"]
    found = {line["value"]: (line["infinite_documents"], line["nan_documents"]) for line in lines}
    assert found == {"i": (2, 0), "n": (0, 1), "f": (0, 0)}
    assert lines[1]["mean_nll"] == math.inf


def test_breakdown_by_source_and_field() -> None:
    labels = {"source": ["b", "a", "b", "c"], "by_lang": ["de", None, "en", "de"]}
    block = block_of([[1.0, 2.0], [3.0], [], [0.5]], **labels)["breakdowns"]
    assert list(block) == ["source", "by_lang"]
    assert [line["value"] for line in block["source"]["values"]] == ["a", "b", "c"]
    assert [line["value"] for line in block["by_lang"]["values"]] == ["de", "en", None]
    german, english, without = block["by_lang"]["values"]
    assert german == {
        "value": "de", "documents": 2, "scored_documents": 2, "tokens": 5, "scored_tokens": 3, "bytes": 20,
        "scored_bytes": 12, "nll_sum": 3.5, "mean_nll": 3.5 / 3, "reason": None,
        "perplexity_per_token": pytest.approx(math.exp(3.5 / 3), rel=1e-15),
        "bits_per_byte": pytest.approx(3.5 / math.log(2) / 12, rel=1e-15),
        "infinite_documents": 0, "nan_documents": 0,
    }  # fmt: skip
    assert (english["documents"], english["mean_nll"], english["reason"]) == (1, None, "no_tokens")
    assert (without["nll_sum"], without["documents"]) == (3.0, 1)
    assert block["by_lang"]["rest"] is block["by_lang"]["note"] is None


def test_one_source_is_no_breakdown() -> None:
    assert block_of([[1.0], [2.0]])["breakdowns"] == {}
    assert list(block_of([[1.0], [2.0]], by_x=["u", "u"])["breakdowns"]) == ["by_x"]


def test_values_beyond_the_most_are_counted_together(corpus: list[Part]) -> None:
    block = totals_of(*corpus).block()["breakdowns"]["by_site"]
    named = sorted({label for table, _ in corpus for label in table["by_site"] if label is not None})
    assert len(named) > breakdown.MAX_VALUES
    assert [line["value"] for line in block["values"]] == [*named[: breakdown.MAX_VALUES], None]
    assert block["note"] == (
        "this column has more than 1,000 values: the first 1,000 in the order of their text are listed, "
        "all others are counted together in rest"
    )
    rows = rows_of(corpus)
    for line in (block["values"][0], block["values"][999], block["values"][1000]):
        mine = [row for row in rows if row["by_site"] == line["value"]]
        assert line["documents"] == len(mine)
        assert line["nll_sum"] == pytest.approx(math.fsum(row["nll_sum"] for row in mine), rel=1e-14)
    kept = {line["value"] for line in block["values"]}
    others = [row for row in rows if row["by_site"] not in kept]
    assert block["rest"]["documents"] == len(others)
    assert block["rest"]["nll_sum"] == pytest.approx(math.fsum(row["nll_sum"] for row in others), rel=1e-14)


def test_kept_values_do_not_depend_on_when_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breakdown, "MAX_VALUES", 3)
    labels = ["e", "d", "c", "b", "a", "d", "b", "e"]
    parts = [make([[1.0 + place]], place, by_x=[label]) for place, label in enumerate(labels)]
    expected = totals_of(*parts).block()["breakdowns"]["by_x"]
    assert [(line["value"], line["nll_sum"]) for line in expected["values"]] == [("a", 5.0), ("b", 11.0), ("c", 3.0)]
    assert (expected["rest"]["documents"], expected["rest"]["nll_sum"]) == (4, 17.0)
    assert totals_of(*reversed(parts)).block()["breakdowns"]["by_x"] == expected
    merged = totals_of(*parts[:3]).merge(totals_of(*parts[3:]))
    assert merged.block()["breakdowns"]["by_x"] == expected


def test_a_column_that_a_part_has_not_counts_as_no_value() -> None:
    with_label, without = make([[1.0]], by_x=["u"]), make([[2.0]], 1)
    expected = [("u", 1.0), (None, 2.0)]
    for totals in (
        totals_of(with_label, without),
        totals_of(without, with_label),
        totals_of(without).merge(totals_of(with_label)),
        totals_of(with_label).merge(totals_of(without)),
    ):
        lines = totals.block()["breakdowns"]["by_x"]["values"]
        assert [(line["value"], line["nll_sum"]) for line in lines] == expected


def test_memory_does_not_grow_with_the_corpus(corpus: list[Part]) -> None:
    totals = totals_of(*corpus)
    size = len(pickle.dumps(totals))
    table, nll = make([[1.0, 2.0]] * 9_000, 9_000, by_site=[f"later {number}" for number in range(9_000)])
    totals.add(table, nll, 0, 0)
    assert len(pickle.dumps(totals)) < 1.02 * size
