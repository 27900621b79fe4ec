"""Each protocol against a plain version of it, written from its own description and run with the transformers model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING_LINES, write_model
from xentrs.corpus import open_sources, resolve_settings, score_corpus
from xentrs.corpus.run import text_job
from xentrs.corpus.score import score_part
from xentrs.corpus.settings import Settings
from xentrs.corpus.windows import Windowing, plan_windows
from xentrs.models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
Plain = dict[int, float]
"""The nll of each scored token by its place in the document."""
SEED = 20250711
KNOWN: dict[tuple[int, ...], Any] = {}


@pytest.fixture(scope="module", params=[False, True], ids=["no-bos", "adds-bos"])
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    KNOWN.clear()
    return load_model(str(write_model(tmp_path_factory.mktemp("m"), adds_bos=request.param)), dtype="float32")


def texts() -> list[str]:
    """Documents of 0 tokens to several windows; the lengths of windows, strides and one more or less among them."""
    generator = random.Random(SEED)
    words = " ".join(TRAINING_LINES).split()
    return ["", "a", *(" ".join(generator.choices(words, k=count)) for count in (2, 4, 7, 10, 16, 21, 33))]


def log_probs(runner: Any, ids: list[int]) -> Any:
    """Float64 log-probabilities of every place of one window, by the whole model; a window is computed once."""
    import torch

    if tuple(ids) not in KNOWN:
        with torch.inference_mode():
            logits = runner.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        KNOWN[tuple(ids)] = torch.log_softmax(logits.double(), dim=-1).numpy()
    return KNOWN[tuple(ids)]


def conditioned(runner: Any, context: list[int], continuation: list[int]) -> list[float]:
    """The nll of each token of a continuation behind a context."""
    rows = log_probs(runner, [*context, *continuation][:-1])[len(context) - 1 :]
    return [-float(row[token]) for row, token in zip(rows, continuation, strict=True)]


def harness(runner: Any, tokens: list[int], window: int, **_: Any) -> Plain:
    """Rolling windows of the LM harness: the first begins with the prefix token, each later one predicts the next
    `window` tokens from the one before them, and the last is filled up to the left.
    """
    prefix = runner.encoder.bos_id
    found: Plain = {}
    first = tokens[:window]
    if first:
        found.update(enumerate(conditioned(runner, [prefix], first)))
    done = len(first)
    while done < len(tokens):
        through = min(done + window, len(tokens))
        continuation = tokens[done:through]
        context = tokens[through - window - 1 : done]
        assert len(context) + len(continuation) == window + 1
        found.update(enumerate(conditioned(runner, context, continuation), start=done))
        done = through
    return found


def recipe(runner: Any, tokens: list[int], window: int, stride: int, **_: Any) -> Plain:
    """The strided recipe of transformers, token by token."""
    found: Plain = {}
    for begin, end, new in recipe_windows(len(tokens), window, stride):
        rows = log_probs(runner, tokens[begin:end])
        # Labels are shifted inside the model: the first of a window is never predicted.
        for place in range(max(end - new, begin + 1), end):
            found[place] = -float(rows[place - begin - 1][tokens[place]])
    return found


def recipe_windows(length: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Begin, end and number of new tokens of each window."""
    windows, before = [], 0
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        windows.append((begin, end, end - before))
        before = end
        if end == length:
            break
    return windows


def recipe_mean(found: Plain, length: int, window: int, stride: int) -> float | None:
    """As the recipe averages: the mean of a window's predictions, weighted with its new tokens less one."""
    total, weights = 0.0, 0
    for begin, end, new in recipe_windows(length, window, stride):
        predicted = [found[place] for place in range(max(end - new, begin + 1), end)]
        if predicted:  # else the recipe's own mean would be NaN
            total += sum(predicted) / len(predicted) * (new - 1)
            weights += new - 1
    return total / weights if weights else None


def llama_cpp(runner: Any, tokens: list[int], window: int, **_: Any) -> Plain:
    """Chunks of the BOS and the tokens, BOS in the place of each chunk's first; logits from the middle on count."""
    bos = [runner.encoder.bos_id] if runner.encoder.adds_bos else []
    stream = bos + tokens
    found: Plain = {}
    if len(stream) < 2 * window:
        return found
    for chunk in range(len(stream) // window):
        start = chunk * window
        ids = stream[start : start + window]
        rows = log_probs(runner, bos + ids[len(bos) :])
        for place in range(window // 2, window - 1):
            found[start + place + 1 - len(bos)] = -float(rows[place][ids[place + 1]])
    return found


def rolling(runner: Any, tokens: list[int], window: int, stride: int, prefix: int | None, every: bool = False) -> Plain:
    """Window after window, each `stride` further; every token by the first window that reaches it."""
    found: Plain = {}
    head = [] if prefix is None else [prefix]
    stream = tokens if every else head + tokens
    shift = 0 if every else len(head)
    begin = 0
    while begin < len(stream) - (not every):
        body = stream[begin : begin + window - every]
        inputs = head + body if every else body
        rows = log_probs(runner, inputs)
        for place in range(len(inputs)):
            target = begin + place + (not every)
            if target < len(stream) and target - shift not in found:
                found[target - shift] = -float(rows[place][stream[target]])
        if begin + window + (not every) > len(stream) - every:
            break
        begin += stride
    return found


def full(runner: Any, tokens: list[int], window: int, **_: Any) -> Plain:
    """Half a window further each time, so that half a window of context is always there; BOS where it is added."""
    prefix = runner.encoder.bos_id if runner.encoder.adds_bos else None
    return rolling(runner, tokens, window, window // 2, prefix)


def check(runner: Any, tmp_path: Path, settings: Settings, plain: Callable[[Any, list[int]], Plain]) -> Any:
    """Every token and document of `texts` against the plain version."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    sources, _ = open_sources([str(path)])
    part = text_job(runner, sources, settings).reader.next_part()
    assert part is not None
    columns = score_part(part, runner, settings)
    counted = 0
    for number, text in enumerate(texts()):
        tokens = runner.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = plain(runner, tokens)
        rows = columns.tokens["document"] == number
        found = dict(
            zip(
                columns.tokens["position"][rows & columns.scored].tolist(),
                columns.tokens["nll"][rows & columns.scored].tolist(),
                strict=True,
            )
        )
        where = f"document {number} of {len(tokens)} tokens, seed {SEED}"
        assert sorted(found) == sorted(expected), where
        for place, nll in expected.items():
            assert found[place] == pytest.approx(nll, rel=1e-5, abs=1e-6), f"{where}, token {place}"
        assert columns.documents["scored_count"][number] == len(expected)
        assert columns.documents["nll_sum"][number] == pytest.approx(math.fsum(expected.values()), rel=1e-5)
        if expected:
            mean = math.fsum(expected.values()) / len(expected)
            assert columns.documents["mean_nll"][number] == pytest.approx(mean, rel=1e-5)
        counted += len(expected)
    assert counted >= 30
    return columns.documents


@pytest.mark.parametrize("window", [2, 5, 16, 33, 64])
def test_lm_eval(runner: Any, tmp_path: Path, window: int) -> None:
    settings = resolve_settings(runner, protocol="lm-eval", window=window)
    documents = check(runner, tmp_path, settings, lambda model, tokens: harness(model, tokens, window))
    assert documents["scored_count"] == documents["token_count"]


@pytest.mark.parametrize(("window", "stride"), [(64, None), (16, 16), (16, 5), (33, 1), (10, 7), (3, 2), (7, 6)])
def test_hf_strided(runner: Any, tmp_path: Path, window: int, stride: int | None) -> None:
    settings = resolve_settings(runner, protocol="hf-strided", window=window, stride=stride)
    step = stride or window  # 512, but no more than the window
    documents = check(runner, tmp_path, settings, lambda model, tokens: recipe(model, tokens, window, step))
    for text, found, exact in zip(texts(), documents["recipe_mean_nll"], documents["mean_nll"], strict=True):
        tokens = runner.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        wanted = recipe_mean(recipe(runner, tokens, window, step), len(tokens), window, step)
        assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-5)), text
        if found is not None and step == window:
            assert found == pytest.approx(exact, rel=1e-12)  # without overlap both are the same mean
    differ = [a != b for a, b in zip(documents["recipe_mean_nll"], documents["mean_nll"], strict=True) if a]
    assert any(differ) or step == window


@pytest.mark.parametrize("window", [2, 3, 8, 15, 32])
def test_llama_cpp(runner: Any, tmp_path: Path, window: int) -> None:
    settings = resolve_settings(runner, protocol="llama.cpp", window=window)
    if window == 2:  # the middle of two is the last, which predicts nothing in its chunk
        assert list(plan_windows(100, settings.windowing, runner.encoder.adds_bos)) != []
        assert llama_cpp(runner, list(range(2, 60)), 2) == {}
        return
    check(runner, tmp_path, settings, lambda model, tokens: llama_cpp(model, tokens, window))


@pytest.mark.parametrize("window", [64, 20, 7])
def test_full(runner: Any, tmp_path: Path, window: int) -> None:
    settings = resolve_settings(runner, protocol="full", window=window)
    check(runner, tmp_path, settings, lambda model, tokens: full(model, tokens, window))


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (16, 16), (16, 5), (9, 1), (1, 1)])
@pytest.mark.parametrize("prefix", ["none", "eos"])
def test_rolling(runner: Any, tmp_path: Path, window: int, stride: int, prefix: str) -> None:
    settings = resolve_settings(runner, window=window, stride=stride, prefix=prefix)
    token = runner.encoder.eos_id if prefix == "eos" else None
    check(runner, tmp_path, settings, lambda model, tokens: rolling(model, tokens, window, stride, token))


@pytest.mark.parametrize(("window", "min_context"), [(64, 32), (16, 15), (16, 0), (9, 4)])
def test_min_context(runner: Any, tmp_path: Path, window: int, min_context: int) -> None:
    settings = resolve_settings(runner, window=window, min_context=min_context, prefix="bos")
    check(runner, tmp_path, settings, lambda model, tokens: rolling(model, tokens, window, window - min_context, 0))
    for entry in plan_windows(200, settings.windowing, True)[1:]:
        assert entry.scored_from >= min_context


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (16, 16), (16, 5), (9, 1), (1, 1)])
def test_prefix_in_every_window(runner: Any, tmp_path: Path, window: int, stride: int) -> None:
    settings = resolve_settings(runner, window=window, stride=stride, prefix="7", prefix_every="window")
    documents = check(runner, tmp_path, settings, lambda model, ids: rolling(model, ids, window, stride, 7, every=True))
    assert documents["scored_count"] == documents["token_count"]


def test_without_a_prefix_every_is_no_different(runner: Any, tmp_path: Path) -> None:
    settings = resolve_settings(runner, window=9, prefix="none", prefix_every="window")
    check(runner, tmp_path, settings, lambda model, tokens: rolling(model, tokens, 9, 9, None))


def unscored_by_rule(rule: str, length: int, window: int, stride: int, has_prefix: bool) -> set[int]:
    """The tokens that a rule leaves out, each said on its own."""
    if rule == "inside":
        starts = {begin for begin, _, new in recipe_windows(length, window, stride) if begin == 0 or stride == window}
        return starts if window > 1 else set(range(length))
    if rule == "halves":
        stream = length + has_prefix
        chunks = stream // window if stream >= 2 * window else 0
        places = (chunk * window + place for chunk in range(chunks) for place in range(window // 2 + 1, window))
        return set(range(length)) - {place - has_prefix for place in places}
    return set() if has_prefix else ({0} if length else set())


@pytest.mark.parametrize("every", ["document", "window"])
@pytest.mark.parametrize("rule", ["rolling", "backfilled", "inside", "halves"])
def test_every_token_is_predicted_at_most_once_and_the_others_are_those_of_the_rule(rule: Any, every: Any) -> None:
    generator = random.Random(SEED)
    for trial in range(3000):
        window = generator.randint(2 if rule == "halves" else 1, 40)
        stride = window if rule in ("backfilled", "halves") else generator.randint(1, window)
        length, has_prefix = generator.randint(0, 150), generator.random() < 0.5 and rule != "inside"
        where = f"trial {trial} of seed {SEED}: {rule}, {length} tokens, {window}/{stride}, prefix {has_prefix}"
        seen: list[int] = []
        for entry in plan_windows(length, Windowing(window, stride, rule, every), has_prefix):
            assert 0 <= entry.scored_from <= entry.input_count <= window, where
            assert entry.start >= 0, where
            assert entry.end <= length, where
            assert entry.prefixed <= has_prefix, where
            seen.extend(range(entry.first_target + entry.scored_from, entry.end))
        assert len(seen) == len(set(seen)), where
        assert set(range(length)) - set(seen) == unscored_by_rule(rule, length, window, stride, has_prefix), where


@pytest.mark.parametrize("protocol", ["lm-eval", "hf-strided", "llama.cpp", "full"])
def test_the_summary_says_the_protocol(runner: Any, tmp_path: Path, protocol: Any) -> None:
    from xentrs.corpus.run import Silent

    path = tmp_path / "a.txt"
    path.write_text(" ".join(TRAINING_LINES * 4))
    settings = replace(resolve_settings(runner, protocol=protocol, window=16), batch_tokens=64)
    result = score_corpus(runner, open_sources([str(path)])[0], settings, None, Silent())
    block = result.summary["protocol"]
    assert block["protocol"] == protocol
    assert block["window"] == 16
    assert block["stride"] == (8 if protocol == "full" else 16)
    adds = runner.encoder.adds_bos
    assert block["prefix"] == {"lm-eval": "bos", "hf-strided": "none"}.get(protocol, "bos" if adds else "none")
    assert np.isfinite(result.documents[0]["nll_sum"])
    assert ("recipe_mean_nll" in result.documents[0]) == (protocol == "hf-strided")
