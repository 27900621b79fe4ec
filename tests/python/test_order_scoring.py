"""Log-probabilities for the order test: held to plain arithmetic, errors of the first kind, power."""

from __future__ import annotations

import doctest
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandResult
from scipy import stats
from trained_models import ITEMS, train_on_items
from xentrs.corpus import resolve_settings
from xentrs.corpus.settings import Columns
from xentrs.detect import order_scoring
from xentrs.detect.benchmark_order import order_log_probs, order_test, shard_bounds
from xentrs.detect.order_scoring import OrderScores, plan_orders, run_orders, score_orders
from xentrs.errors import DTypeError, ParamError
from xentrs.models import as_split_runner, load_model

Command = Callable[..., CommandResult]
pytestmark = pytest.mark.usefixtures("one_thread")


class Bigrams:
    """A runner of two methods over bytes: the next byte depends on the last one alone."""

    def __init__(self, seed: int = 0) -> None:
        self.table = np.random.default_rng(seed).normal(size=(256, 256)).astype(np.float32)
        self.calls = 0

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def logits(self, input_ids: Any) -> Any:
        self.calls += 1
        return self.table[input_ids]


class Follower(Bigrams):
    """Favours, behind each item of one byte, the item that is published behind it."""

    def __init__(self, items: Sequence[str], strength: float) -> None:
        super().__init__(7)
        self.follows = dict(itertools.pairwise(items))
        self.strength = strength

    def logits(self, input_ids: Any) -> Any:
        logits = super().logits(input_ids)
        before = np.concatenate([input_ids[:, :1], input_ids[:, :-1]], axis=1)
        for place in np.argwhere(input_ids == ord(";")).tolist():
            row, column = place
            follower = self.follows.get(chr(int(before[row, column])))
            if follower is not None:
                logits[row, column, ord(follower)] += self.strength
        return logits


def plain_log_prob(runner: Any, ids: list[int], count: int, window: int) -> float:
    """Of the last `count` ids, from the runner's logits alone, in windows that do not overlap."""
    found = 0.0
    targets = range(len(ids) - count, len(ids))
    for start in range(0, len(ids) - 1, window):
        inputs = ids[start : min(start + window, len(ids) - 1)]
        hidden = runner.hidden_states(np.array([inputs], dtype=np.int64))
        logits = np.asarray(runner.logits(hidden.reshape(-1, hidden.shape[-1])), dtype=np.float64)
        log_probs = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        for place in range(len(inputs)):
            if start + place + 1 in targets:
                found += float(log_probs[place, ids[start + place + 1]])
    return found


def check_table(scores: OrderScores, runner: Any, settings: Any, items: Sequence[str], separator: str) -> None:
    """Against `order_log_probs` with a function that scores one order at a time."""
    prefix = settings.prefix.token_id
    encoded = {text: entry.token_ids.tolist() for text, entry in ((t, runner.encoder.encode([t])[0]) for t in items)}
    between = runner.encoder.encode([separator])[0].token_ids.tolist()

    def log_prob(order: Sequence[str]) -> float:
        body = [token for place, item in enumerate(order) for token in (between if place else []) + encoded[item]]
        lead = between if prefix is None else [prefix]
        return plain_log_prob(runner, lead + body, len(body), settings.windowing.window)

    shards, orders = scores.log_probs.shape
    expected = order_log_probs(log_prob, items, shards=shards, shuffles=orders - 1, seed=5)
    np.testing.assert_allclose(scores.log_probs, expected, rtol=2e-5)


@pytest.mark.parametrize("part_tokens", [1, 150, 1 << 16])
@pytest.mark.parametrize("kind", ["none", "bos", "windowed"])
def test_every_order_against_one_at_a_time(tiny_runner: Any, kind: str, part_tokens: int) -> None:
    tiny_runner.prepare()
    options = {"none": {}, "bos": {"prefix": "bos"}, "windowed": {"prefix": "bos", "window": 12}}[kind]
    settings = replace(resolve_settings(tiny_runner, **options), part_tokens=part_tokens)
    items = ITEMS[:11]
    scores = score_orders(tiny_runner, items, separator=" | ", shards=3, shuffles=4, seed=5, settings=settings)
    check_table(scores, tiny_runner, settings, items, " | ")
    assert scores.windowed_shards == (3 if kind == "windowed" else 0)
    sizes = [len(entry.token_ids) for entry in tiny_runner.encoder.encode([*items, " | "])]
    for count, (start, end) in zip(scores.token_counts, itertools.pairwise(shard_bounds(11, 3)), strict=True):
        assert count == sum(sizes[start:end]) + (end - start - 1) * sizes[-1]


def test_many_orders_stand_in_one_batch_and_few_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Bigrams()
    parts: list[tuple[int, int]] = []
    score = order_scoring.score_part

    def spy(part: Any, *arguments: Any) -> Any:
        parts.append((len(part.documents), part.token_count))
        return score(part, *arguments)

    monkeypatch.setattr(order_scoring, "score_part", spy)
    split = as_split_runner(runner)
    split.prepare()
    settings = replace(resolve_settings(split, prefix="none"), part_tokens=4000)
    runner.calls = 0
    scores = score_orders(split, ITEMS[:40], shards=4, shuffles=49, settings=settings)
    assert sum(count for count, _ in parts) == 200
    longest = max(scores.token_counts) + 2
    assert all(tokens < 4000 + longest for _, tokens in parts)
    assert runner.calls < 60


def test_orders_of_a_model_that_sees_none_are_equal() -> None:
    """With tokens counted one by one every order has the same log-probability: only so is p exactly 1."""

    class Unigrams(Bigrams):
        def logits(self, input_ids: Any) -> Any:
            return np.broadcast_to(self.table[0], (*input_ids.shape, 256)).copy()

    for options in ({"prefix": "none"}, {"prefix": "65"}):
        split = as_split_runner(Unigrams())
        scores = score_orders(split, ITEMS[:20], shards=4, shuffles=9, settings=resolve_settings(split, **options))
        assert np.ptp(scores.log_probs, axis=1).max() < 1e-9
        assert order_test(scores.log_probs, permutations=99).permutation_p_value == 1.0


def rejections_allowed(count: int, level: float) -> int:
    """More a fair test has once in 10,000 tries."""
    return int(stats.binom.isf(1e-4, count, level))


def assert_level_kept(p_values: Sequence[float]) -> None:
    for level in (0.05, 0.2, 0.5):
        rejected = int(np.less_equal(p_values, level).sum())
        assert rejected <= rejections_allowed(len(p_values), level), f"{rejected} of {len(p_values)} at {level}"
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3


def p_value(runner: Any, items: Sequence[str], seed: int, **sizes: int) -> float:
    scores = score_orders(runner, items, seed=seed, **sizes)
    return order_test(scores.log_probs, permutations=199, seed=seed).permutation_p_value


def test_the_level_is_kept_by_an_untrained_model(tiny_runner: Any) -> None:
    found = []
    for seed in range(200):
        items = np.random.default_rng(seed).permutation(ITEMS)[:12].tolist()
        found.append(p_value(tiny_runner, items, seed, shards=3, shuffles=5))
    assert_level_kept(found)


def test_the_level_is_kept_by_a_model_that_prefers_other_orders() -> None:
    found = []
    for seed in range(200):
        generator = np.random.default_rng(seed)
        letters = list("abcdefghijklmnopqrst")
        runner = Follower(generator.permutation(letters).tolist(), 4.0)
        published = generator.permutation(letters).tolist()
        scores = score_orders(runner, published, separator=";", shards=4, shuffles=6, seed=seed)
        found.append(order_test(scores.log_probs, permutations=199, seed=seed).permutation_p_value)
    assert_level_kept(found)


def test_a_model_that_favours_the_next_item_is_found() -> None:
    letters = list("abcdefghijklmnopqrstuvwxyzABCD")
    scores = score_orders(Follower(letters, 3.0), letters, separator=";", shards=5, shuffles=20)
    found = order_test(scores.log_probs)
    assert found.permutation_p_value == 1 / 10_000
    assert found.t_p_value < 0.01
    assert found.mean_difference > 5.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A tiny model trained for some steps on items in their order, and these items."""
    return train_on_items(tmp_path_factory.mktemp("trained"))


def test_a_model_trained_on_the_published_order_is_found(trained: tuple[Path, list[str]]) -> None:
    folder, items = trained
    runner = load_model(str(folder), dtype="float32")
    assert p_value(runner, items, 0, shards=5, shuffles=20) <= 0.01
    other = np.random.default_rng(9).permutation(items).tolist()
    assert p_value(runner, other, 0, shards=5, shuffles=20) > 0.05


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: score_orders(Bigrams(), ITEMS[:5], shards=3), ParamError, "items has 5 entries for 3 shards"),
        (
            lambda: score_orders(Bigrams(), ITEMS[:4], shards=2, separator=""),
            ParamError,
            "the separator has no tokens and there is no prefix",
        ),
        (
            lambda: score_orders(Bigrams(), [[1], [2], [256], [3]], shards=2),
            ParamError,
            "items[2] has the id 256, outside [0, 256)",
        ),
        (lambda: score_orders(Bigrams(), [[1], [0.5], [2], [3]], shards=2), DTypeError, "items[1] is float64 of shape"),
    ],
    ids=itertools.count(),
)
def test_errors_say_place_and_numbers(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_protocols_that_leave_tokens_out_are_refused(tiny_runner: Any) -> None:
    tiny_runner.prepare()
    for protocol in ("llama.cpp", "hf-strided"):
        settings = resolve_settings(tiny_runner, protocol=protocol)
        with pytest.raises(ParamError, match=f"protocol {protocol} does not score every token"):
            plan_orders(tiny_runner, ITEMS[:4], settings, shards=2)


def test_ids_are_items_too_and_columns_of_the_settings_do_not_matter(tiny_runner: Any) -> None:
    tiny_runner.prepare()
    settings = resolve_settings(tiny_runner, columns=Columns("detect"))
    ids = [entry.token_ids for entry in tiny_runner.encoder.encode(ITEMS[:8])]
    sizes = {"shards": 2, "shuffles": 3, "settings": settings}
    one, other = (score_orders(tiny_runner, items, **sizes) for items in (ITEMS[:8], ids))
    np.testing.assert_array_equal(one.log_probs, other.log_probs)
    plan = plan_orders(tiny_runner, ITEMS[:8], settings, shards=2, shuffles=3)
    assert plan.token_count == 4 * sum(one.token_counts)
    assert (plan.leads, plan.empty_items) == (True, 0)
    from xentrs.corpus.run import Silent

    np.testing.assert_array_equal(run_orders(plan, tiny_runner, settings, Silent()).log_probs, one.log_probs)
    assert json.loads(json.dumps(one.block()))["token_counts"] == list(one.token_counts)


def test_examples() -> None:
    failed, tried = doctest.testmod(order_scoring)
    assert (failed, tried) == (0, 4)
