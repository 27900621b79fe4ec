"""Scored rows: held to float64 from the same hidden states, to their documents, and to each other."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xentrs
from conftest import TRAINING_LINES, write_model
from xentrs.corpus import open_sources, resolve_settings, score_corpus
from xentrs.corpus.parts import Part
from xentrs.corpus.run import Silent, text_job
from xentrs.corpus.score import PartColumns, score_part
from xentrs.corpus.settings import Settings, protocol_block
from xentrs.models import load_model

HEADS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gemma2", {"final_logit_softcapping": 1.5, "head_dim": 16}),
    ("cohere", {"logit_scale": 0.25}),
    ("granite", {"logits_scaling": 4.0}),
    ("phi", {}),  # with a bias
]
TEXTS = [
    TRAINING_LINES[0],
    "",
    "a",
    " ".join(TRAINING_LINES * 3),
    TRAINING_LINES[2],
    "12 towns, 31 towns. " * 20,
    "The town",
]


@pytest.fixture
def sources(tmp_path: Path) -> list[Any]:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return open_sources([str(path)])[0]


def scored(runner: Any, sources: list[Any], settings: Settings) -> tuple[Part, PartColumns]:
    part = text_job(runner, sources, settings).reader.next_part()
    assert part is not None
    return part, score_part(part, runner, settings)


def exact_rows(runner: Any, ids: list[int]) -> Any:
    """Float64 log-probabilities after each of `ids`, from the runner's hidden states."""
    import torch

    hidden = runner.hidden_states(np.array([ids], dtype=np.int64))[0].double()
    head = runner.head
    logits = hidden @ head.weight.double().T * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits, dim=-1).numpy()


@pytest.mark.parametrize(
    ("kind", "overrides"), [("llama", {}), ("gemma2", {"final_logit_softcapping": 1.5, "head_dim": 16})]
)
@pytest.mark.parametrize("prefix", ["none", "bos"])
def test_rows_equal_float64_from_the_same_hidden_states(
    tmp_path: Path, sources: list[Any], kind: str, overrides: dict[str, Any], prefix: str
) -> None:
    runner: Any = load_model(str(write_model(tmp_path / "m", kind, **overrides)), dtype="float32")
    # One window per batch and no overlap: the hidden states can then be had again exactly.
    settings = replace(resolve_settings(runner, prefix=prefix, window=32), batch_tokens=1)
    part, columns = scored(runner, sources, settings)
    first = 0
    for document in part.documents:
        ids = document.encoded.token_ids.tolist()
        sequence = ids if prefix == "none" else [0, *ids]
        shift = 0 if prefix == "none" else 1
        for start in range(0, len(sequence) - 1, 32):
            window = sequence[start : start + 32]
            window = window[: len(sequence) - 1 - start]
            rows = exact_rows(runner, window)
            targets = sequence[start + 1 : start + 1 + len(window)]
            at = np.arange(len(window)) + first + start + 1 - shift
            nll = -rows[np.arange(len(window)), targets]
            np.testing.assert_allclose(columns.tokens["nll"][at], nll, rtol=0, atol=2e-5)
            entropy = -(np.exp(rows) * rows).sum(axis=1)
            np.testing.assert_allclose(columns.tokens["entropy"][at], entropy, rtol=0, atol=2e-5)
            np.testing.assert_allclose(columns.tokens["top1_log_prob"][at], rows.max(axis=1), rtol=0, atol=2e-5)
            close = np.sort(rows, axis=1)[:, -1] - np.sort(rows, axis=1)[:, -2] < 1e-4
            np.testing.assert_array_equal(columns.tokens["top1_id"][at][~close], rows.argmax(axis=1)[~close])
        first += len(ids)


def test_tokens_say_which_piece_of_which_text_they_are(tiny_runner: Any, sources: list[Any]) -> None:
    part, columns = scored(tiny_runner, sources, resolve_settings(tiny_runner))
    tokens = columns.tokens
    assert len(tokens["nll"]) == part.token_count
    for number, text in enumerate(TEXTS):
        rows = tokens["document"] == number
        data = text.encode()
        assert tokens["position"][rows].tolist() == list(range(rows.sum()))
        pieces = [data[a:b] for a, b in zip(tokens["byte_start"][rows], tokens["byte_end"][rows], strict=True)]
        if text.isascii():
            assert b"".join(pieces) == data
        expected = tiny_runner.encoder.encode([text])[0].token_ids
        np.testing.assert_array_equal(tokens["token_id"][rows], expected)


def test_unscored_tokens_are_marked_and_counted(tiny_runner: Any, sources: list[Any]) -> None:
    for prefix, unscored_documents in (("none", 6), ("bos", 0)):
        _, columns = scored(tiny_runner, sources, resolve_settings(tiny_runner, prefix=prefix))
        tokens = columns.tokens
        assert (~columns.scored).sum() == unscored_documents
        assert ((tokens["flags"] == int(xentrs.Flag.IGNORED)) == ~columns.scored).all()
        assert (tokens["position"][~columns.scored] == 0).all()
        assert np.isfinite(tokens["nll"][columns.scored]).all()
        assert (tokens["rank"][columns.scored] >= 1).all()
        documents = columns.documents
        expected = [count - (count > 0 and prefix == "none") for count in documents["token_count"]]
        assert documents["scored_count"] == expected


def test_document_lines(tiny_runner: Any, sources: list[Any]) -> None:
    _, columns = scored(tiny_runner, sources, resolve_settings(tiny_runner))
    documents = columns.documents
    assert documents["status"] == ["scored", "unscorable", "unscorable", *["scored"] * 4]
    assert documents["reason"] == [None, "no_tokens", "one_token", None, None, None, None]
    assert documents["byte_count"] == [len(text.encode()) for text in TEXTS]
    for number, count in enumerate(documents["scored_count"]):
        rows = (columns.tokens["document"] == number) & columns.scored
        assert documents["nll_sum"][number] == math.fsum(columns.tokens["nll"][rows])
        if count == 0:
            assert documents["perplexity"][number] is None
            assert documents["bits_per_byte"][number] is None
        else:
            mean = documents["nll_sum"][number] / count
            assert documents["perplexity"][number] == pytest.approx(math.exp(mean), rel=1e-14)
            assert documents["mean_nll"][number] == pytest.approx(mean, rel=1e-15)
            bits = documents["nll_sum"][number] / math.log(2) / documents["scored_byte_count"][number]
            assert documents["bits_per_byte"][number] == pytest.approx(bits, rel=1e-15)


def test_batch_size_changes_rounding_of_the_body_alone(tiny_runner: Any, sources: list[Any]) -> None:
    base = resolve_settings(tiny_runner, window=16, stride=8, prefix="bos")
    _, one = scored(tiny_runner, sources, replace(base, batch_tokens=1))
    for batch_tokens in (40, 100_000):
        _, other = scored(tiny_runner, sources, replace(base, batch_tokens=batch_tokens))
        for name in ("document", "position", "token_id", "byte_start", "byte_end", "flags"):
            np.testing.assert_array_equal(one.tokens[name], other.tokens[name])
        np.testing.assert_allclose(one.tokens["nll"], other.tokens["nll"], rtol=0, atol=1e-5)
        assert one.documents["scored_count"] == other.documents["scored_count"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "overrides"), HEADS)
def test_no_logits_give_the_scores_of_logits(
    tmp_path: Path,
    sources: list[Any],
    kind: str,
    overrides: dict[str, Any],
    dtype: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner: Any = load_model(str(write_model(tmp_path / "m", kind, **overrides)), dtype=dtype)
    runner.prepare()
    settings = resolve_settings(runner, prefix="bos")
    with monkeypatch.context() as patch:
        patch.setattr(runner, "logits", None)  # a call fails
        _, fused = scored(runner, sources, settings)
    monkeypatch.setattr(type(runner), "head", None)
    _, blocks = scored(runner, sources, settings)
    assert (fused.tokens["nll"] != blocks.tokens["nll"]).any()  # they are two paths
    # Float64 products rounded to float32 logits, or two orders of float32 sums: a few 2^-24 of logits below 20.
    for name in ("nll", "entropy", "varentropy", "top1_log_prob"):
        np.testing.assert_allclose(fused.tokens[name], blocks.tokens[name], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(fused.tokens["flags"], blocks.tokens["flags"])
    assert (fused.tokens["top1_id"] == blocks.tokens["top1_id"]).mean() > 0.99
    assert (fused.tokens["rank"] == blocks.tokens["rank"]).mean() > 0.98


def test_a_batch_is_one_call_with_the_threads_asked_for(
    tiny_runner: Any, sources: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = xentrs.linear_row_stats

    def listening(*arguments: Any, **options: Any) -> xentrs.RowStats:
        calls.append((len(arguments[0]), options["num_threads"]))
        return real(*arguments, **options)

    monkeypatch.setattr(xentrs, "linear_row_stats", listening)
    monkeypatch.setattr("xentrs.corpus.score.BLOCK_BYTES", 4 * 320 * 7)
    settings = replace(resolve_settings(tiny_runner), num_threads=2)
    _, columns = scored(tiny_runner, sources, settings)
    assert calls == [(columns.scored.sum(), 2)]
    _, other = scored(tiny_runner, sources, replace(settings, num_threads=1))
    np.testing.assert_array_equal(columns.tokens["nll"], other.tokens["nll"])


def test_protocol_names_what_multiplies_the_head(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("float32", "bfloat16"):
        runner: Any = load_model(str(tiny_model), dtype=dtype)
        hidden = runner.hidden_states(np.zeros((1, 4), dtype=np.int64))
        isa = xentrs.linear_row_stats(hidden, runner.head.weight).isa
        assert protocol_block(runner, resolve_settings(runner))["isa"] == isa
    monkeypatch.setattr(type(runner), "head", None)
    assert protocol_block(runner, resolve_settings(runner))["isa"] == xentrs.isa()


def test_block_size_changes_counts_nowhere(
    tiny_runner: Any, sources: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny_runner), "head", None)
    settings = resolve_settings(tiny_runner)
    _, one = scored(tiny_runner, sources, settings)
    monkeypatch.setattr("xentrs.corpus.score.BLOCK_BYTES", 4 * 320 * 7)
    _, other = scored(tiny_runner, sources, settings)
    np.testing.assert_allclose(one.tokens["nll"], other.tokens["nll"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(one.scored, other.scored)


def test_more_context_is_used_by_overlapping_windows(tiny_runner: Any, sources: list[Any]) -> None:
    wide = resolve_settings(tiny_runner, window=32, stride=1)
    _, columns = scored(tiny_runner, sources, replace(wide, batch_tokens=4096))
    _, disjoint = scored(tiny_runner, sources, resolve_settings(tiny_runner, window=32))
    first_window = columns.tokens["position"] <= 32
    both = columns.scored & first_window
    np.testing.assert_allclose(columns.tokens["nll"][both], disjoint.tokens["nll"][both], rtol=0, atol=1e-5)
    later = columns.scored & ~first_window
    assert np.abs(columns.tokens["nll"][later] - disjoint.tokens["nll"][later]).max() > 1e-3


def test_totals_do_not_depend_on_parts(tiny_runner: Any, sources: list[Any]) -> None:
    settings = replace(resolve_settings(tiny_runner), batch_tokens=1)
    whole = score_corpus(tiny_runner, sources, settings, None, Silent())
    cut = score_corpus(tiny_runner, sources, replace(settings, part_tokens=1), None, Silent())
    assert whole.summary["parts"] == 1
    assert cut.summary["parts"] == 6
    assert whole.summary["totals"] == cut.summary["totals"]
    assert whole.summary["best_documents"] == cut.summary["best_documents"]
    assert whole.documents == cut.documents
    totals = whole.summary["totals"]
    assert totals["tokens"] == totals["scored_tokens"] + totals["unscored_tokens"]
    assert (totals["documents"], totals["scored_documents"], totals["unscorable_documents"]) == (7, 5, 2)
    assert totals["mean_nll"] == pytest.approx(totals["nll_sum"] / totals["scored_tokens"], rel=1e-15)
    assert totals["bits_per_byte"] == pytest.approx(totals["nll_sum"] / math.log(2) / totals["scored_bytes"], rel=1e-15)


def test_model_whose_head_is_unknown_gives_the_same_scores(
    tiny_model: Path, sources: list[Any], monkeypatch: pytest.MonkeyPatch, tiny_runner: Any
) -> None:
    settings = resolve_settings(tiny_runner)
    assert tiny_runner.notices == []
    _, known = scored(tiny_runner, sources, settings)
    monkeypatch.setattr("xentrs.models.hf.find_head", lambda *arguments: None)
    runner: Any = load_model(str(tiny_model), dtype="float32")
    runner.prepare()
    assert runner.head is None
    assert "is not understood; full logits are computed" in runner.notices[0]
    _, unknown = scored(runner, sources, settings)
    np.testing.assert_allclose(known.tokens["nll"], unknown.tokens["nll"], rtol=0, atol=1e-5)
