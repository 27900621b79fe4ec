"""What a `Scorer` gives back: shown in a notebook, pickled, read by Arrow."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xentrs
from conftest import TRAINING_LINES
from xentrs.scorer_results import document_scores

TEXTS = [TRAINING_LINES[0], "", "a", " ".join(TRAINING_LINES * 3)]


@pytest.fixture(scope="module")
def scorer(tiny_runner: Any) -> xentrs.Scorer:
    return xentrs.Scorer(tiny_runner)


def test_html_is_small_and_escaped(scorer: xentrs.Scorer) -> None:
    records = [{"id": f"<script>alert({number})</script>", "text": "a b c"} for number in range(25)]
    result = scorer.score([*records, {"id": "bell\x07", "text": "a"}])
    page = result._repr_html_()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 20
    assert "and 6 more" in page
    assert "window 64, stride 64" in page
    assert "mean nll (nats)" in page
    assert "bits per byte" in page
    page = scorer.score([{"id": "bell\x07", "text": "a"}])._repr_html_()
    assert "\x07" not in page
    assert "unscorable (one_token)" in page
    assert " more</td>" not in page


def test_results_travel(scorer: xentrs.Scorer) -> None:
    result = scorer.score([*TEXTS, None], on_bad="skip")
    back = pickle.loads(pickle.dumps(result))
    assert back.documents == result.documents
    assert (back.totals, back.protocol, back.quarantine) == (result.totals, result.protocol, result.quarantine)
    np.testing.assert_array_equal(back[0].tokens.nll, result[0].tokens.nll)
    assert back.to_arrow().equals(result.to_arrow())
    assert back._repr_html_() == result._repr_html_()
    pair = scorer.score_pairs([("a", " b c")])[0]
    assert pickle.loads(pickle.dumps(pair)) == pair
    with pytest.raises(AttributeError):
        pair.nll_sum = 0.0


def test_arrow_takes_a_result(scorer: xentrs.Scorer) -> None:
    result = scorer.score(TEXTS)
    table = pa.table(result)
    assert table.equals(result.to_arrow())
    assert table["nll_sum"].to_pylist() == [document.nll_sum for document in result]
    assert table["perplexity"].to_pylist() == [document.perplexity for document in result]
    empty = scorer.score([])
    assert (len(empty), empty.perplexity, empty.totals["reason"]) == (0, None, "no_tokens")
    assert empty.to_arrow().schema == table.schema
    assert len(scorer.score(pa.table({"text": ["from a table", "and another"]}))) == 2


def test_details_stand_by_name() -> None:
    columns = {name: np.arange(3) for name in xentrs.TokenScores.__dataclass_fields__ if name != "details"}
    columns |= {"document": np.zeros(3), "margin": np.arange(3.0), "top_ids": np.arange(6).reshape(3, 2)}
    names = [name for name in xentrs.DocumentScore.__dataclass_fields__ if name != "tokens"]
    part: Any = SimpleNamespace(documents=[SimpleNamespace(wanted=range(1)), SimpleNamespace(wanted=range(2))])
    table: Any = SimpleNamespace(documents={name: [name, name] for name in names}, tokens=columns)
    first, second = document_scores(part, table, True, xentrs.DocumentScore)
    assert sorted(second.tokens.details) == ["margin", "top_ids"]
    assert second.tokens.details["top_ids"].tolist() == [[2, 3], [4, 5]]
    assert first.tokens.nll.tolist() == [0]
    assert first.status == "status"
