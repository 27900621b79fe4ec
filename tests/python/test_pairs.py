"""Pairs of a context and a continuation: the boundary, the windows, shared contexts; against whole forward passes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING_LINES, CommandResult, write_model
from xentrs.corpus import Reading, open_sources, resolve_settings
from xentrs.corpus.parts import Part
from xentrs.corpus.run import text_job
from xentrs.corpus.score import PartColumns, score_part
from xentrs.models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
Command = Callable[..., CommandResult]
Pair = tuple[str, str]
READING = Reading(context_key="context", continuation_key="continuation")
SEED = 417
LONG = " ".join(TRAINING_LINES)


def scored(runner: Any, tmp_path: Path, pairs: Sequence[Pair], **options: Any) -> tuple[Part, PartColumns]:
    path = tmp_path / "pairs.jsonl"
    lines = [json.dumps({"context": context, "continuation": continuation}) for context, continuation in pairs]
    path.write_text("".join(line + "\n" for line in lines))
    settings = resolve_settings(runner, reading=READING, **options)
    part = text_job(runner, open_sources([str(path)])[0], settings).reader.next_part()
    assert part is not None
    return part, score_part(part, runner, settings)


def split(runner: Any, pair: Pair) -> tuple[list[int], list[int]]:
    """The rule of the LM harness, in its own steps: trailing spaces go over, both are encoded as one."""
    context, continuation = pair
    space = context[len(context.rstrip()) :]
    context, continuation = context[: len(context) - len(space)], space + continuation
    tokenizer = runner.encoder.tokenizer
    whole = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
    count = len(tokenizer(context, add_special_tokens=False)["input_ids"]) if context else 0
    return whole[:count], whole[count:]


def log_likelihood(runner: Any, context: list[int], continuation: list[int], window: int) -> tuple[list[float], bool]:
    """By the LM harness: the last `window` inputs; the nll of each token, and whether each is the likeliest."""
    import torch

    inputs = [*context, *continuation][-(window + 1) :][:-1]
    with torch.inference_mode():
        logits = runner.model(input_ids=torch.tensor([inputs]), use_cache=False).logits[0]
    rows = torch.log_softmax(logits.double(), dim=-1)[len(inputs) - len(continuation) :]
    nll = [-float(row[token]) for row, token in zip(rows, continuation, strict=True)]
    return nll, rows.argmax(dim=-1).tolist() == continuation


def rows_of(columns: PartColumns, number: int) -> list[float]:
    found: list[float] = columns.tokens["nll"][columns.tokens["document"] == number].tolist()
    return found


PAIRS: list[Pair] = [
    ("The quick brown", " fox jumps"),
    ("The quick brown ", "fox jumps"),
    ("The quick brown \n ", "fox"),
    ("The quick bro", "wn fox"),  # one word: tokens of the whole are not those of the parts
    ("In 19", "84 there were"),
    ("naïve caf", "é 東京"),
    ("The dog", ""),
    ("", "The dog does not mind"),
    ("   ", "The dog"),
    ("", "a"),
    (LONG, " and the dog"),
    (LONG * 2, " x"),
    (LONG[:60], "."),
]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("window", [64, 9])
def test_pairs_follow_the_harness(
    tiny_runner: Any, tmp_path: Path, window: int, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_runner.prepare()
    monkeypatch.setattr(tiny_runner, "shares_contexts", shares)
    _, columns = scored(tiny_runner, tmp_path, PAIRS, protocol="lm-eval", window=window)
    documents = columns.documents
    greedy = []
    for number, pair in enumerate(PAIRS):
        context, continuation = split(tiny_runner, pair)
        assert documents["token_count"][number] == len(continuation), pair
        assert documents["context_count"][number] == len(context), pair
        if not continuation:
            assert documents["reason"][number] == "no_tokens"
            continue
        # An empty context is the prefix, as HFLM has it.
        nll, is_greedy = log_likelihood(tiny_runner, context or [0], continuation, window)
        np.testing.assert_allclose(rows_of(columns, number), nll, rtol=1e-5, err_msg=str(pair))
        assert documents["nll_sum"][number] == pytest.approx(math.fsum(nll), rel=1e-5)
        assert documents["greedy_match"][number] is is_greedy
        assert documents["scored_count"][number] == len(continuation)
        dropped = max(len(context) + len(continuation) - (window + 1), 0) if context else 0
        assert documents["dropped_context_count"][number] == dropped, pair
        greedy.append(is_greedy)
    assert any(documents["dropped_context_count"])


def test_greedy_match(tiny_runner: Any, tmp_path: Path) -> None:
    """Continuations that the model itself goes on with match, and with another last token they do not."""
    import torch

    tokenizer = tiny_runner.encoder.tokenizer
    found: list[tuple[Pair, bool]] = []
    for context in (*TRAINING_LINES, "The", "12", "dog"):
        ids = tokenizer(context, add_special_tokens=False)["input_ids"]
        for _ in range(2):
            with torch.inference_mode():
                ids.append(int(tiny_runner.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        continuation = tokenizer.decode(ids[-2:])
        if split(tiny_runner, (context, continuation))[1] == ids[-2:]:  # it may be no text
            found += [((context, continuation), True), ((context, continuation + "!"), False)]
    # A token that the tokenizer gives back, for each context: its rank says whether it is the likeliest.
    found_pairs = [pair for pair, _ in found] or [("The", " dog")]
    _, columns = scored(tiny_runner, tmp_path, found_pairs, prefix="none")
    for number, (pair, wanted) in enumerate(found):
        ranks = columns.tokens["rank"][columns.tokens["document"] == number]
        assert columns.documents["greedy_match"][number] is bool((ranks == 1).all()), pair
        if wanted:
            assert columns.documents["greedy_match"][number] is True, pair
        assert columns.documents["top1_count"][number] == (ranks == 1).sum()


@pytest.mark.parametrize("prefix", ["none", "bos"])
@pytest.mark.parametrize("every", ["document", "window"])
def test_a_context_longer_than_the_window_is_cut_on_the_left(
    tiny_runner: Any, tmp_path: Path, prefix: str, every: Any
) -> None:
    window = 12
    pairs = [(LONG[:length], " and the dog") for length in range(5, 60, 3)]
    _, columns = scored(tiny_runner, tmp_path, pairs, prefix=prefix, prefix_every=every, window=window)
    dropped = []
    for number, pair in enumerate(pairs):
        context, continuation = split(tiny_runner, pair)
        tokens = context + continuation
        head = [0] if prefix == "bos" else []
        fits = len(head) + len(tokens) <= window + 1
        if fits:
            inputs_before = head + context
        elif head and every == "window":
            inputs_before = head + tokens[-window:][: -len(continuation)]
        else:
            inputs_before = tokens[-(window + 1) :][: -len(continuation)]
        nll, _ = log_likelihood(tiny_runner, inputs_before, continuation, window)
        np.testing.assert_allclose(rows_of(columns, number), nll, rtol=1e-5, err_msg=str(pair))
        kept = len(inputs_before) - (len(head) if fits or every == "window" else 0)
        dropped.append(len(context) - kept)
        assert columns.documents["dropped_context_count"][number] == dropped[-1]
    assert dropped[0] == 0 < dropped[-1]


def test_a_continuation_longer_than_the_window_has_several(tiny_runner: Any, tmp_path: Path) -> None:
    """The rolling windows of the whole, those left out that predict nothing of the continuation."""
    window, stride = 10, 4
    part, columns = scored(tiny_runner, tmp_path, [(LONG[:70], LONG)], prefix="none", window=window, stride=stride)
    context, continuation = split(tiny_runner, (LONG[:70], LONG))
    tokens = context + continuation
    assert len(continuation) > 5 * window
    expected: dict[int, float] = {}
    for begin in range(0, len(tokens) - 1, stride):
        piece = tokens[begin : begin + window + 1]
        nll, _ = log_likelihood(tiny_runner, piece[:1], piece[1:], window)
        for place, value in enumerate(nll, start=begin + 1):
            expected.setdefault(place, value)
    wanted = [expected[place] for place in range(len(context), len(tokens))]
    np.testing.assert_allclose(rows_of(columns, 0), wanted, rtol=1e-5)
    assert columns.documents["scored_count"] == [len(continuation)]
    assert part.row_count == len(continuation)
    assert columns.documents["dropped_context_count"][0] > 0


def listen(runner: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What each forward pass of the model's body reads: rows, inputs a row, tokens shared before them."""
    calls: list[tuple[int, int, int]] = []
    real = runner.hidden_states

    def hidden_states(input_ids: Any, shared_ids: Any = None) -> Any:
        calls.append((*input_ids.shape, 0 if shared_ids is None else len(shared_ids)))
        return real(input_ids, *(() if shared_ids is None else (shared_ids,)))

    monkeypatch.setattr(runner, "hidden_states", hidden_states)
    return calls


GEMMA = {"final_logit_softcapping": 1.5, "head_dim": 16, "sliding_window": 8}


@pytest.mark.parametrize("prefix", ["none", "bos"])
@pytest.mark.parametrize(("kind", "overrides"), [("llama", {}), ("gemma2", GEMMA), ("phi", {})])
def test_shared_contexts_change_no_score(
    tmp_path: Path, kind: str, overrides: dict[str, Any], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several groups of questions with several answers each; one group alone, and answers of one token."""
    runner: Any = load_model(str(write_model(tmp_path / "m", kind, **overrides)), dtype="float32")
    runner.prepare()
    generator = random.Random(SEED)
    words = LONG.split()
    contexts = [" ".join(generator.choices(words, k=count)) for count in (9, 4, 6, 2)]
    pairs = [(context, " " + answer) for context in contexts for answer in ("fox", "the dog", "31 of them", "a")]
    pairs += [("alone here", " dog"), ("", "no context"), ("", "none either")]
    generator.shuffle(pairs)
    calls = listen(runner, monkeypatch)
    results = []
    for shares in (runner.shares_contexts, False):
        calls.clear()
        monkeypatch.setattr(runner, "shares_contexts", shares)
        results.append(scored(runner, tmp_path, pairs, prefix=prefix, batch_tokens=4096)[1])
        shared = [call for call in calls if call[2]]
        assert len(shared) == (4 if shares else 0), f"{calls}, seed {SEED}"
        assert all(call[0] == 4 for call in shared)
    one, other = results
    assert runner.head is not None
    for number in range(len(pairs)):
        found, wanted = rows_of(one, number), rows_of(other, number)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6, err_msg=f"{pairs[number]}, seed {SEED}")
    np.testing.assert_array_equal(one.scored, other.scored)
    names = ("token_count", "scored_count", "context_count", "dropped_context_count", "scored_byte_count", "status")
    assert [one.documents[name] for name in names] == [other.documents[name] for name in names]


def test_a_llama_shares_contexts_and_reads_them_once(
    tiny_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_runner.prepare()
    assert tiny_runner.shares_contexts
    calls = listen(tiny_runner, monkeypatch)
    pairs = [(TRAINING_LINES[0], answer) for answer in ("a", "b", "c", "d")]
    context, answer = split(tiny_runner, pairs[0])
    assert len(answer) == 1
    part, _ = scored(tiny_runner, tmp_path, pairs, prefix="bos")
    # The prefix and the context less its last token are shared; the last one predicts the answer in each row.
    assert calls == [(4, 1, len(context))]
    assert part.row_count == 4
    calls.clear()
    scored(tiny_runner, tmp_path, pairs[:1], prefix="bos")
    assert calls == [(1, 1 + len(context), 0)], "one alone shares nothing"


def test_answers_on_both_sides_of_the_window_share_a_context(tiny_runner: Any, tmp_path: Path) -> None:
    """With the prefix the longest does not fit; it is read from its first token on, which is not the others' way."""
    window = 20
    tiny_runner.prepare()
    context = LONG[:24]
    pairs = [(context, " " + LONG[40 : 40 + count]) for count in range(1, 24)]
    _, columns = scored(tiny_runner, tmp_path, pairs, prefix="bos", window=window)
    totals = []
    for number, pair in enumerate(pairs):
        before, answer = split(tiny_runner, pair)
        totals.append(len(before) + len(answer))
        head = [0] if totals[-1] <= window else []
        nll, _ = log_likelihood(tiny_runner, head + before, answer, window)
        np.testing.assert_allclose(rows_of(columns, number), nll, rtol=1e-5, err_msg=str(pair))
    assert {window - 1, window, window + 1} <= set(totals)


def test_batches_of_a_shared_context_stay_bounded(
    tiny_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of a context are repeated for each row of a batch: many answers are several batches."""
    tiny_runner.prepare()
    calls = listen(tiny_runner, monkeypatch)
    pairs = [(TRAINING_LINES[0][:30], f" {number} towns") for number in range(40)]
    base, columns = scored(tiny_runner, tmp_path, pairs, prefix="none", batch_tokens=4096)
    assert len(calls) == 1
    calls.clear()
    _, small = scored(tiny_runner, tmp_path, pairs, prefix="none", batch_tokens=32)
    assert len(calls) > 4
    for rows, length, shared in calls:
        assert shared > 0
        assert rows == 1 or (rows * length <= 32 and rows * (length + shared) <= 4 * 32)
    assert sum(rows for rows, _, _ in calls) == 40
    np.testing.assert_allclose(columns.tokens["nll"], small.tokens["nll"], rtol=1e-5, atol=1e-6)
    assert base.row_count == len(columns.tokens["nll"])


def test_a_runner_that_shares_nothing_need_not_know_how(
    tiny_runner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Simple:
        """Without the argument for shared contexts."""

        shares_contexts, max_batch_windows, notices, head = False, None, (), None
        info, encoder = tiny_runner.info, tiny_runner.encoder

        def hidden_states(self, input_ids: Any) -> Any:
            return tiny_runner.hidden_states(input_ids)

        def logits(self, hidden_rows: Any) -> Any:
            return tiny_runner.logits(hidden_rows)

    pairs = [(TRAINING_LINES[0], " " + answer) for answer in ("a", "the dog", "c")]
    _, columns = scored(Simple(), tmp_path, pairs, prefix="none")
    _, expected = scored(tiny_runner, tmp_path, pairs, prefix="none")
    np.testing.assert_allclose(columns.tokens["nll"], expected.tokens["nll"], rtol=1e-5, atol=1e-6)


def test_a_model_whose_cache_gives_other_states_shares_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from xentrs.models.hf import TransformersRunner

    real = TransformersRunner._continued
    monkeypatch.setattr(TransformersRunner, "_continued", lambda *arguments: real(*arguments) * 1.01)
    runner: Any = load_model(str(tiny_model), dtype="float32")
    runner.prepare()
    assert not runner.shares_contexts
    assert runner.head is not None

    def refuse(*arguments: Any) -> Any:
        raise TypeError("no cache")

    monkeypatch.setattr(TransformersRunner, "_continued", refuse)
    other: Any = load_model(str(tiny_model), dtype="float32")
    other.prepare()
    assert not other.shares_contexts


def test_no_prefix_and_no_context_leave_the_first_token(tiny_runner: Any, tmp_path: Path) -> None:
    pairs = [("", "The dog"), (" ", "dog dog"), ("", "a"), ("The", " dog")]
    _, columns = scored(tiny_runner, tmp_path, pairs, prefix="none")
    documents = columns.documents
    assert [a - b for a, b in zip(documents["token_count"], documents["scored_count"], strict=True)] == [1, 1, 1, 0]
    assert documents["status"] == ["scored", "scored", "unscorable", "scored"]
    assert documents["reason"][2] == "one_token"
    for number in range(len(pairs)):
        assert 0 <= documents["scored_byte_count"][number] <= documents["byte_count"][number]
        assert 0 <= documents["scored_char_count"][number] <= documents["char_count"][number]
        assert 0 <= documents["scored_word_count"][number] <= documents["word_count"][number]


@pytest.mark.parametrize("protocol", ["hf-strided", "llama.cpp", "full"])
def test_pairs_under_protocols_for_texts(tiny_runner: Any, tmp_path: Path, protocol: Any) -> None:
    """Windows are those of the whole text; what is no whole text has no mean by the recipe."""
    pairs = [(LONG[:100], LONG[:90]), ("The dog", " does"), ("", LONG[:120])]
    _, columns = scored(tiny_runner, tmp_path, pairs, protocol=protocol, window=8)
    documents = columns.documents
    assert documents["context_count"][0] > 8
    assert all(
        scored <= count for scored, count in zip(documents["scored_count"], documents["token_count"], strict=True)
    )
    assert np.isfinite(columns.tokens["nll"][columns.scored]).all()
    assert columns.scored.sum() > 20
    if protocol == "hf-strided":
        assert [value is None for value in documents["recipe_mean_nll"]] == [True, True, False]


def test_pairs_on_the_command_line(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"q": "The quick brown", "a": " fox", "id": "one"}, {"q": "The quick", "id": "bad"}, {"q": "", "a": "x"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = xentrs_command(
        "score", path, "--model", tiny_model, "--context-key", "q", "--continuation-key", "a", "--json",
        "--prefix", "bos",
    )  # fmt: skip
    assert result.code == 3
    page = json.loads(result.out)
    assert [entry["id"] for entry in page["documents"]] == ["one", f"{path}#3"]
    assert page["documents"][0]["context_count"] > 0
    assert page["documents"][1]["context_count"] == 0
    assert [entry["reason"] for entry in page["quarantine"]] == ["key 'a' is missing"]
    assert page["reading"]["context_key"] == "q"
