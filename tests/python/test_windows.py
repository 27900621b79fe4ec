"""Windows: every token predicted at most once, by each rule; prefix, window and stride resolved as documented."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from xentrs.corpus.batches import plan_batches
from xentrs.corpus.encoding import EncodedDocument, TextSize
from xentrs.corpus.reading import Reading
from xentrs.corpus.settings import Prefix, Settings, resolve_prefix, resolve_settings
from xentrs.corpus.windows import Window, Windowing, plan_windows
from xentrs.errors import ParamError
from xentrs.models import EncodedText, ModelInfo

LENGTHS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 64)
SIZES = [(1, 1), (2, 1), (2, 2), (7, 3), (8, 1), (8, 5), (8, 8), (16, 4), (100, 1), (100, 100)]


def predicted_tokens(windows: list[Window]) -> list[int]:
    """The tokens whose predictions count, window after window."""
    return [
        token
        for entry in windows
        for token in range(entry.first_target + entry.scored_from, entry.first_target + entry.input_count)
    ]


@pytest.mark.parametrize("rule", ["rolling", "backfilled"])
@pytest.mark.parametrize("has_prefix", [False, True])
@pytest.mark.parametrize(("window", "stride"), SIZES)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_token_but_the_first_is_predicted_once(
    length: int, window: int, stride: int, has_prefix: bool, rule: Any
) -> None:
    windows = plan_windows(length, Windowing(window, stride, rule), has_prefix)
    for entry in windows:
        assert entry.start >= 0
        assert 1 <= entry.input_count <= window
        assert entry.end <= length
        assert 0 <= entry.scored_from < entry.input_count
    assert [entry.prefixed for entry in windows] == [place == 0 and has_prefix for place in range(len(windows))]
    assert predicted_tokens(windows) == list(range(not has_prefix, length))


def test_windows_without_overlap_follow_the_rolling_rule() -> None:
    # s[0] conditions; each later window starts at the last token of the one before.
    assert plan_windows(10, Windowing(4, 4), False) == [Window(0, 4), Window(4, 4), Window(8, 1)]
    assert plan_windows(10, Windowing(4, 4), True) == [Window(0, 4, prefixed=True), Window(3, 4), Window(7, 2)]


def test_overlapping_windows_see_window_less_stride_tokens_of_context() -> None:
    windows = plan_windows(12, Windowing(6, 2), False)
    assert windows == [Window(0, 6, 0), Window(2, 6, 4), Window(4, 6, 4), Window(6, 5, 4)]
    assert all(entry.scored_from == 6 - 2 for entry in windows[1:])


@pytest.mark.parametrize(("window", "stride"), [(4, 0), (4, 5), (0, 0), (4, -1)])
def test_stride_outside_the_window_is_refused(window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        Windowing(window, stride)


def document(number: int, count: int) -> EncodedDocument:
    ids = np.arange(count, dtype=np.int64) + 100 * (number + 1)
    encoded = EncodedText(ids, ids, ids, count)
    return EncodedDocument(
        number, str(number), "f", encoded, np.arange(count), TextSize(count, count, 1), (ids, ids, ids)
    )


def batching(prefix_id: int | None, window: int, stride: int, batch_tokens: int) -> Settings:
    return Settings(Prefix("id", "id", prefix_id), Windowing(window, stride), batch_tokens=batch_tokens)


@pytest.mark.parametrize("prefix_id", [None, 7])
@pytest.mark.parametrize("batch_tokens", [1, 16, 1000])
def test_batches_score_each_token_once_with_its_own_target(prefix_id: int | None, batch_tokens: int) -> None:
    counts = (5, 0, 1, 17, 30, 2)
    documents = [document(number, count) for number, count in enumerate(counts)]
    tokens = np.concatenate([entry.encoded.token_ids for entry in documents])
    seen: list[int] = []
    for batch in plan_batches(documents, batching(prefix_id, 8, 3, batch_tokens)):
        rows, length = batch.input_ids.shape
        assert rows == 1 or rows * length <= batch_tokens
        np.testing.assert_array_equal(batch.targets, tokens[batch.row_index])
        before = batch.input_ids.reshape(-1)[batch.hidden_index]
        first_of_document = np.isin(batch.targets % 100, 0)
        np.testing.assert_array_equal(before[~first_of_document], batch.targets[~first_of_document] - 1)
        assert (before[first_of_document] == 7).all()
        seen.extend(batch.row_index.tolist())
    starts = np.cumsum([0, *counts[:-1]])
    unscored = (
        {int(start) for start, count in zip(starts, counts, strict=True) if count} if prefix_id is None else set()
    )
    assert sorted(seen) == [place for place in range(len(tokens)) if place not in unscored]


def test_one_window_per_batch_when_the_runner_asks() -> None:
    batches = plan_batches([document(0, 30)], batching(None, 8, 8, 1000), max_windows=1)
    assert [batch.input_ids.shape[0] for batch in batches] == [1, 1, 1, 1]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "lmeval"}, "--protocol lmeval: expected lm-eval, "),
        ({"prefix_every": "page"}, "--prefix-every page"),
    ],
)
def test_unknown_protocol_and_place_of_the_prefix(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamError, match=message):
        resolve_settings(runner(), **options)


@pytest.mark.parametrize("requested", ["bos", "eos"])
def test_prefix_that_the_tokenizer_lacks(requested: str) -> None:
    with pytest.raises(ParamError, match=f"has no {requested.upper()} token"):
        resolve_prefix(requested, encoder(bos_id=None, eos_id=None), 320)


def test_window_and_stride_defaults() -> None:
    assert resolve_settings(runner(64)).windowing.window == 64
    assert resolve_settings(runner(100_000)).windowing.window == 2048
    assert resolve_settings(runner(None)).windowing.window == 2048
    settings = resolve_settings(runner(64), window=32)
    assert settings.windowing == Windowing(32, 32, "rolling", "document")
    assert resolve_settings(runner(64), window=32, min_context=12).windowing.stride == 20
    assert resolve_settings(runner(64), prefix="eos", prefix_every="window").windowing.prefix_every == "window"
    assert replace(settings, reading=Reading(limit=3)).reading.limit == 3


@pytest.mark.parametrize(
    ("protocol", "overrides", "windowing", "token_id"),
    [
        ("lm-eval", {}, Windowing(4096, 4096, "backfilled"), 0),
        ("lm-eval", {"bos_id": None}, Windowing(4096, 4096, "backfilled"), 1),
        ("lm-eval", {"window": 100, "stride": 100}, Windowing(100, 100, "backfilled"), 0),
        ("hf-strided", {"adds_bos": True}, Windowing(4096, 512, "inside"), None),
        ("hf-strided", {"window": 100}, Windowing(100, 100, "inside"), None),
        ("hf-strided", {"window": 100, "stride": 7}, Windowing(100, 7, "inside"), None),
        ("llama.cpp", {}, Windowing(512, 512, "halves"), None),
        ("llama.cpp", {"adds_bos": True, "window": 64}, Windowing(64, 64, "halves"), 0),
        ("full", {"adds_bos": True}, Windowing(4096, 2048, "rolling"), 0),
        ("full", {"min_context": 4000}, Windowing(4096, 96, "rolling"), None),
    ],
)
def test_presets(protocol: Any, overrides: dict[str, Any], windowing: Windowing, token_id: int | None) -> None:
    of_tokenizer = {name: overrides.pop(name) for name in ("bos_id", "adds_bos") if name in overrides}
    settings = resolve_settings(runner(4096, **of_tokenizer), protocol=protocol, **overrides)
    assert (settings.windowing, settings.prefix.token_id) == (windowing, token_id)
    assert settings.protocol == protocol


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"window": 65}, "--window 65: the model was made for at most 64"),
        ({"window": 0}, "--window 0: expected at least 1"),
        ({"window": 32, "stride": 33}, "--stride 33: expected 1 to the window, 32"),
        ({"window": 32, "stride": 0}, "--stride 0: expected 1 to the window, 32"),
        ({"window": 32, "min_context": 32}, "--min-context 32: expected 0 to less than the window, 32"),
        ({"stride": 8, "min_context": 8}, "two ways to say the same"),
        ({"protocol": "lm-eval", "stride": 8}, "--protocol lm-eval: windows do not overlap"),
        ({"protocol": "llama.cpp", "min_context": 8}, "--protocol llama.cpp: windows do not overlap"),
        ({"protocol": "llama.cpp", "window": 1}, "--window 1: expected at least 2"),
        ({"protocol": "full", "prefix": "bos"}, "--protocol full has its own prefix"),
        ({"protocol": "lm-eval", "prefix_every": "window"}, "--protocol lm-eval has its own prefix"),
    ],
)
def test_windows_that_do_not_go_together(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamError, match=message):
        resolve_settings(runner(64), **overrides)


def test_preset_that_needs_a_token_the_tokenizer_lacks() -> None:
    with pytest.raises(ParamError, match="neither BOS nor EOS"):
        resolve_settings(runner(64, bos_id=None, eos_id=None), protocol="lm-eval")


def test_scored_counts_add_up_over_a_grid() -> None:
    for length, window in itertools.product(range(40), range(1, 12)):
        for stride in range(1, window + 1):
            total = sum(entry.scored_count for entry in plan_windows(length, Windowing(window, stride), False))
            assert total == max(length - 1, 0)
