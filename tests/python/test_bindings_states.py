"""States: what they refuse, and that a refusal or a damaged pickle leaves no harm behind."""

from __future__ import annotations

import contextlib
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xentrs as xe
from test_bindings_errors import F32, rows
from test_edge_arrays import assert_same_stats
from test_edge_lse import noise


def test_state_columns_missing() -> None:
    state = xe.RowStatsState(5000, rows=2)
    state.update(rows(2, 3000), 0)
    with pytest.raises(xe.ShapeError, match="3000"):
        state.compute()


@pytest.mark.parametrize(("start", "columns"), [(0, 10), (999, 1), (4095, 2), (500, 5000)], ids=str)
def test_state_columns_twice(start: int, columns: int) -> None:
    """By update or by merge_state; the state is as before and can be finished."""
    logits = noise(9000, F32, 2)
    state, other = xe.RowStatsState(9000, rows=2), xe.RowStatsState(9000, rows=2)
    state.update(logits[:, :1000], 0)
    state.update(logits[:, 4096:5000], 4096)
    other.update(logits[:, start : start + columns], start)
    with pytest.raises(xe.ShapeError):
        state.update(logits[:, start : start + columns], start)
    with pytest.raises(xe.ShapeError):
        state.merge_state(other)
    state.update(logits[:, 5000:], 5000)
    state.update(logits[:, 1000:4096], 1000)
    assert_same_stats(state.compute(), xe.row_stats(logits))


@pytest.mark.parametrize("start", [-1, 8, 2**62, -(2**62)], ids=str)
def test_state_start_outside(start: int) -> None:
    with pytest.raises(ValueError, match=str(start)):
        xe.RowStatsState(7).update(rows(2, 1), start)


def with_payload(pickled: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The pickle (protocol 3: no frames) with its longest bytes object changed."""
    found = [(place, value) for _, value, place in pickletools.genops(pickled) if isinstance(value, bytes)]
    place, value = max(found, key=lambda item: len(item[1]))
    assert place is not None
    header = 2 if pickled[place : place + 1] == b"C" else 5
    changed = change(value)
    replaced = b"B" + len(changed).to_bytes(4, "little") + changed
    return pickled[:place] + replaced + pickled[place + header + len(value) :]


@pytest.mark.parametrize("columns", [0, 3], ids=["empty", "with-columns"])
@pytest.mark.parametrize(
    "options",
    [{"vocab": 8}, {"rows": 3}, {"temperature": 2.0}, {"top_k": 1}, {"targets": np.array([1, 2])}],
    ids=lambda options: next(iter(options)),
)
def test_states_of_two_kinds_do_not_merge(options: dict[str, Any], columns: int) -> None:
    """Both states know what they are from the start: no column need have come."""
    settings = {"vocab": 7, "rows": 2}
    state, other = xe.RowStatsState(**settings), xe.RowStatsState(**{**settings, **options})
    if columns:
        state.update(rows(2, 3), 0)
        other.update(rows(options.get("rows", 2), 3), 3)
    with pytest.raises(ValueError, match=rf"{next(iter(options))}|expected"):
        state.merge_state(other)


def half_full_state() -> Any:
    state = xe.RowStatsState(9000, np.array([5, 7]), np.zeros(2, np.float32), top_k=2)
    state.update(noise(9000, F32, 2)[:, :6000], 0)
    return state


def half_full_totals() -> Any:
    totals = xe.Perplexity()
    totals.update_nll(np.array([1.0, np.inf, 2.0]))
    return totals


@pytest.mark.parametrize("make", [half_full_state, half_full_totals])
def test_corrupt_pickles(make: Callable[[], Any]) -> None:
    """A pickle is data from outside: damage is an error or gives some state, never a crash."""
    good = pickle.dumps(make(), protocol=3)
    generator = np.random.default_rng(9)
    refused = (ValueError, TypeError, IndexError, EOFError, OverflowError, MemoryError, xe.XentrsError)

    def flipped(data: bytes) -> bytes:
        changed = bytearray(data)
        # Lengths and counts stand near the front.
        changed[int(len(data) * generator.random() ** 4)] = int(generator.integers(256))
        return bytes(changed)

    changes = [flipped] * 300 + [lambda data: data[: int(generator.integers(len(data)))]] * 30
    changes += [
        lambda data: data + b"x",
        lambda _: b"",
        lambda data: b"\xff" * len(data),
        lambda data: data * 2,
    ]
    for change in changes:
        with contextlib.suppress(*refused):
            restored = pickle.loads(with_payload(good, change))
            with contextlib.suppress(*refused):
                restored.merge_state(make())
            restored.compute()
    for change in (lambda data: data[:-1], lambda _: b"", lambda data: data + b"x"):
        with pytest.raises(refused):
            pickle.loads(with_payload(good, change))


def test_a_state_merged_with_itself_gives_its_columns_twice() -> None:
    state = xe.RowStatsState(7, rows=2)
    state.update(rows(2, 3), 0)
    with pytest.raises(xe.ShapeError):
        state.merge_state(state)


def test_totals_merged_with_themselves() -> None:
    """Doubled, or refused by an error of this package; no bare borrow error."""
    totals, times = half_full_totals(), 2
    try:
        totals.merge_state(totals)
    except xe.XentrsError:
        times = 1
    assert totals.compute().token_count == 3 * times
