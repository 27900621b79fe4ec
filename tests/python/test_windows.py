"""Windows: every token predicted exactly once; prefix, window and stride resolved as documented."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from xentrs.corpus.batches import plan_batches
from xentrs.corpus.parts import EncodedDocument
from xentrs.corpus.settings import resolve_prefix, resolve_settings
from xentrs.corpus.windows import Window, plan_windows
from xentrs.errors import ParamError
from xentrs.models import EncodedText, ModelInfo

LENGTHS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 64)
SIZES = [(1, 1), (2, 1), (2, 2), (7, 3), (8, 1), (8, 5), (8, 8), (16, 4), (100, 1), (100, 100)]


@pytest.mark.parametrize(("window", "stride"), SIZES)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_token_but_the_first_is_predicted_once(length: int, window: int, stride: int) -> None:
    predicted: list[int] = []
    for entry in plan_windows(length, window, stride):
        assert entry.start >= 0
        assert 1 <= entry.input_count <= window
        assert entry.start + entry.input_count < length
        assert 0 <= entry.scored_from < entry.input_count
        first = entry.start + entry.scored_from + 1
        predicted.extend(range(first, first + entry.scored_count))
    assert predicted == list(range(1, length))


def test_windows_without_overlap_follow_the_rolling_rule() -> None:
    # s[0] conditions; each later window starts at the last token of the one before.
    assert plan_windows(10, 4, 4) == [Window(0, 4, 0), Window(4, 4, 0), Window(8, 1, 0)]


def test_overlapping_windows_see_window_less_stride_tokens_of_context() -> None:
    windows = plan_windows(12, 6, 2)
    assert windows == [Window(0, 6, 0), Window(2, 6, 4), Window(4, 6, 4), Window(6, 5, 4)]
    assert all(entry.scored_from == 6 - 2 for entry in windows[1:])


@pytest.mark.parametrize(("window", "stride"), [(4, 0), (4, 5), (0, 0), (4, -1)])
def test_stride_outside_the_window_is_refused(window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        plan_windows(10, window, stride)


def document(number: int, count: int) -> EncodedDocument:
    ids = np.arange(count, dtype=np.int64) + 100 * (number + 1)
    return EncodedDocument(number, str(number), "f", EncodedText(ids, ids, ids, count))


@pytest.mark.parametrize("prefix_id", [None, 7])
@pytest.mark.parametrize("batch_tokens", [1, 16, 1000])
def test_batches_score_each_token_once_with_its_own_target(prefix_id: int | None, batch_tokens: int) -> None:
    counts = (5, 0, 1, 17, 30, 2)
    documents = [document(number, count) for number, count in enumerate(counts)]
    tokens = np.concatenate([entry.encoded.token_ids for entry in documents])
    seen: list[int] = []
    for batch in plan_batches(
        documents, prefix_id=prefix_id, window=8, stride=3, batch_tokens=batch_tokens, max_windows=None
    ):
        rows, length = batch.input_ids.shape
        assert rows == 1 or rows * length <= batch_tokens
        np.testing.assert_array_equal(batch.targets, tokens[batch.token_index])
        before = batch.input_ids.reshape(-1)[batch.hidden_index]
        first_of_document = np.isin(batch.targets % 100, 0)
        np.testing.assert_array_equal(before[~first_of_document], batch.targets[~first_of_document] - 1)
        assert (before[first_of_document] == 7).all()
        seen.extend(batch.token_index.tolist())
    starts = np.cumsum([0, *counts[:-1]])
    unscored = (
        {int(start) for start, count in zip(starts, counts, strict=True) if count} if prefix_id is None else set()
    )
    assert sorted(seen) == [place for place in range(len(tokens)) if place not in unscored]


def test_one_window_per_batch_when_the_runner_asks() -> None:
    batches = plan_batches([document(0, 30)], prefix_id=None, window=8, stride=8, batch_tokens=1000, max_windows=1)
    assert all(batch.input_ids.shape[0] == 1 for batch in batches)


def encoder(**overrides: Any) -> Any:
    return SimpleNamespace(**{"bos_id": 0, "eos_id": 1, "adds_bos": False, "sha256": "x", **overrides})


def runner(max_length: int | None = 64, **overrides: Any) -> Any:
    info = ModelInfo("m", None, "", "float32", "", "cpu", 320, max_length)
    return SimpleNamespace(info=info, encoder=encoder(**overrides))


@pytest.mark.parametrize(
    ("requested", "adds_bos", "resolved", "token_id"),
    [
        ("auto", False, "none", None),
        ("auto", True, "bos", 0),
        ("none", True, "none", None),
        ("bos", False, "bos", 0),
        ("eos", False, "eos", 1),
        ("319", False, "id", 319),
    ],
)
def test_prefix(requested: str, adds_bos: bool, resolved: str, token_id: int | None) -> None:
    prefix = resolve_prefix(requested, encoder(adds_bos=adds_bos), 320)
    assert (prefix.resolved, prefix.token_id) == (resolved, token_id)


@pytest.mark.parametrize("requested", ["320", "-1", "first", "", "1.5", "٣"])
def test_unusable_prefix(requested: str) -> None:
    with pytest.raises(ParamError, match="--prefix"):
        resolve_prefix(requested, encoder(), 320)


@pytest.mark.parametrize("requested", ["bos", "eos"])
def test_prefix_that_the_tokenizer_lacks(requested: str) -> None:
    with pytest.raises(ParamError, match=f"has no {requested.upper()} token"):
        resolve_prefix(requested, encoder(bos_id=None, eos_id=None), 320)


def test_window_and_stride_defaults() -> None:
    assert resolve_settings(runner(64)).window == 64
    assert resolve_settings(runner(100_000)).window == 2048
    assert resolve_settings(runner(None)).window == 2048
    settings = resolve_settings(runner(64), window=32)
    assert (settings.window, settings.stride) == (32, 32)
    assert replace(settings, limit=3).limit == 3


@pytest.mark.parametrize(("window", "stride"), [(65, None), (0, None), (32, 33), (32, 0)])
def test_window_and_stride_outside_the_model(window: int, stride: int | None) -> None:
    with pytest.raises(ParamError, match=r"--window|--stride"):
        resolve_settings(runner(64), window=window, stride=stride)


def test_scored_counts_add_up_over_a_grid() -> None:
    for length, window in itertools.product(range(40), range(1, 12)):
        for stride in range(1, window + 1):
            total = sum(entry.scored_count for entry in plan_windows(length, window, stride))
            assert total == max(length - 1, 0)
