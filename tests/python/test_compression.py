"""Compression distances and ZIP-FIT alignment: against the definitions with Python's own compressors."""

from __future__ import annotations

import doctest
import gzip
import json
import math
import sys
import threading
import zlib
from collections.abc import Callable
from typing import Any

import lz4.frame
import numpy as np
import pytest
from xentrs.detect import compression
from xentrs.detect.compression import (
    Compressor,
    compressed_size,
    ncd,
    ncd_matrix,
    select_top,
    zip_fit_alignment,
)
from xentrs.errors import DTypeError, ParamError, ShapeError

WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "lz4": lz4.frame.compress,
}
METHODS = sorted(WHOLE)


def words(seed: int, count: int) -> str:
    """Words of a small vocabulary, so that there is something to find again."""
    generator = np.random.default_rng(seed)
    vocabulary = ["".join(generator.choice(list("etaoinshrdlu"), size)) for size in generator.integers(2, 9, 400)]
    return " ".join(np.random.default_rng(seed + 1).choice(vocabulary, count))


def distance(first: bytes, second: bytes, method: str) -> float:
    sizes = [len(WHOLE[method](text)) for text in (first, second, first + second)]
    return (sizes[2] - min(sizes[:2])) / max(sizes[:2])


@pytest.mark.parametrize("method", METHODS)
def test_sizes_are_those_of_the_libraries(method: str) -> None:
    for text in ("", "a", "naïve 東京", words(0, 3000)):
        assert compressed_size(text, method=method) == len(WHOLE[method](text.encode()))
    assert compressed_size(b"\xff\x00" * 50, method=method) == len(WHOLE[method](b"\xff\x00" * 50))
    half_pair = "\ud800" * 3
    assert compressed_size(half_pair, method=method) == len(WHOLE[method](half_pair.encode("utf-8", "surrogatepass")))


@pytest.mark.parametrize("method", ["zlib", "gzip"])
@pytest.mark.parametrize("first_words", [0, 1, 40, 5000, 12_000], ids=lambda count: f"{count} words")
def test_a_copied_state_gives_the_size_of_the_whole(method: str, first_words: int) -> None:
    """Also past the window of 32 KiB and past one block of deflate."""
    first = words(1, first_words).encode()[: 0 if first_words == 0 else None]
    for level in (1, 3, 4, 6, 9):
        size_with = Compressor(method, level).after(first)
        for second_words in (1, 300, 8000, 1):
            second = words(2, second_words).encode()
            whole = zlib.compress if method == "zlib" else gzip.compress
            assert size_with(second) == len(whole(first + second, level))


@pytest.mark.parametrize("method", METHODS)
def test_distances_are_the_definition(method: str) -> None:
    firsts = [words(seed, 30 + 40 * seed) for seed in range(5)]
    seconds = [words(seed, 200 - 30 * seed).encode() for seed in range(3)]
    found = ncd_matrix(firsts, seconds, method=method)
    expected = [[distance(first.encode(), second, method) for second in seconds] for first in firsts]
    assert found.tolist() == expected
    assert ncd(firsts[1], seconds[2], method=method) == expected[1][2]
    square = ncd_matrix(firsts, method=method)
    assert square.tolist() == [[distance(a.encode(), b.encode(), method) for b in firsts] for a in firsts]


@pytest.mark.parametrize("method", METHODS)
def test_symmetric_distances_are_the_smaller_of_both_orders(method: str) -> None:
    firsts = [words(seed, 300 + 10 * seed) for seed in range(4)]
    seconds = [words(seed, 220 - 30 * seed) for seed in range(3)]
    plain, turned = ncd_matrix(firsts, seconds, method=method), ncd_matrix(seconds, firsts, method=method).T
    symmetric = ncd_matrix(firsts, seconds, method=method, symmetric=True)
    np.testing.assert_array_equal(symmetric, np.minimum(plain, turned))
    np.testing.assert_array_equal(symmetric.T, ncd_matrix(seconds, firsts, method=method, symmetric=True))
    square = ncd_matrix(firsts, method=method, symmetric=True)
    np.testing.assert_array_equal(square, square.T)
    assert ncd(firsts[0], seconds[0], method=method, symmetric=True) == symmetric[0, 0]


@pytest.mark.parametrize("method", METHODS)
def test_like_texts_are_near(method: str) -> None:
    text, other = words(3, 500), words(50, 500)
    assert ncd(text, text, method=method) < 0.25
    assert ncd(text, text + " more", method=method) < 0.3
    assert ncd(text, other, method=method) > 0.6


@pytest.mark.parametrize("method", METHODS)
def test_empty_texts_are_defined(method: str) -> None:
    found = ncd_matrix(["", "some text"], ["", "other"], method=method)
    assert found[0].tolist() == [0.0, 1.0]
    assert found[1, 0] == 1.0
    assert 0.0 < found[1, 1] < 1.5
    assert ncd_matrix([], method=method).shape == (0, 0)
    assert ncd_matrix([], ["a"], method=method).shape == (0, 1)
    assert ncd_matrix(["a"], [], method=method, symmetric=True).shape == (1, 0)
    for first in ("target", "source"):
        alignment = zip_fit_alignment(["", "a b c"], ["a b c d"], method=method, first=first)
        assert (alignment.values[0], alignment.empty_sources) == (0.0, 1)
        assert alignment.values[1] > 0.0
        assert zip_fit_alignment([], ["a"], method=method, first=first).values.shape == (0,)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", ["target", "source"])
def test_alignment_is_the_mean_of_what_is_left_of_the_distance(method: str, first: str) -> None:
    sources = [words(seed, 20 + 30 * seed) for seed in range(9)]
    targets = [words(seed, 150).encode() for seed in (2, 5)]
    found = zip_fit_alignment(sources, targets, method=method, first=first)
    for source, value in zip(sources, found.values, strict=True):
        pairs = [(target, source.encode()) for target in targets]
        pairs = pairs if first == "target" else [pair[::-1] for pair in pairs]
        assert value == pytest.approx(np.mean([1 - distance(*pair, method) for pair in pairs]), rel=1e-14)
    assert (found.target_count, found.method, found.first) == (2, method, first)
    block = found.block()
    assert json.loads(json.dumps(block, allow_nan=False)) == block
    assert repr(found).startswith(f"Alignment(9 sources with 2 targets, {method} level")


@pytest.mark.parametrize("method", METHODS)
def test_selection_prefers_what_resembles_the_target(method: str) -> None:
    targets = [words(7, 300) for _ in range(2)]
    sources = [words(7 if number % 3 == 0 else 100 + number, 200) for number in range(12)]
    alignment = zip_fit_alignment(sources, targets, method=method)
    assert sorted(select_top(alignment.values, 4).tolist()) == [0, 3, 6, 9]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("source_count", "target_count"), [(40, 1), (1, 40), (13, 7)])
def test_threads_change_nothing(method: str, source_count: int, target_count: int) -> None:
    sources = [words(number, 20) for number in range(source_count)]
    targets = [words(number, 25) for number in range(target_count)]
    for first in ("target", "source"):
        values = [
            zip_fit_alignment(sources, targets, method=method, first=first, num_threads=count).values
            for count in (1, 2, 5, None)
        ]
        assert all(other.tobytes() == values[0].tobytes() for other in values[1:])
    tables = [ncd_matrix(sources, targets, method=method, num_threads=count) for count in (1, 3)]
    assert tables[0].tobytes() == tables[1].tobytes()


def test_the_gil_is_released() -> None:
    """Another thread makes steps while one long text is compressed; with an interval of switching this long it could
    not otherwise.
    """
    text = words(0, 400_000)
    interval = sys.getswitchinterval()
    steps_during: list[int] = []
    is_running, steps = threading.Event(), [0]

    def count() -> None:
        is_running.set()
        while is_running.is_set():
            steps[0] += 1
            threading.Event().wait(0.001)

    counter = threading.Thread(target=count)
    sys.setswitchinterval(1000.0)
    try:
        counter.start()
        is_running.wait()
        before = steps[0]
        compressed_size(text, method="gzip")
        steps_during.append(steps[0] - before)
    finally:
        sys.setswitchinterval(interval)
        is_running.clear()
        counter.join()
    assert steps_during[0] > 1


def test_selection_is_stable() -> None:
    values = [0.5, 0.9, 0.5, -math.inf, 0.9, math.inf]
    assert select_top(values, 6).tolist() == [5, 1, 4, 0, 2, 3]
    assert select_top(values, 3).tolist() == [5, 1, 4]
    assert select_top(values, 100).tolist() == [5, 1, 4, 0, 2, 3]
    assert select_top(values, 0).tolist() == []
    with pytest.raises(ParamError, match=r"values\[1\] = nan, expected a number"):
        select_top([1.0, math.nan], 1)
    with pytest.raises(ParamError, match="count = -1, expected at least 0"):
        select_top(values, -1)
    with pytest.raises(ShapeError, match=r"values has shape \(1, 2\)"):
        select_top([[1.0, 2.0]], 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ncd("a", "b", method="zip"), ParamError, "method = 'zip', expected one of zlib, gzip, lz4"),
        (lambda: ncd("a", "b", level=0), ParamError, "level = 0 is none of zlib's, expected 1 to 9"),
        (lambda: ncd("a", "b", method="lz4", level=17), ParamError, "level = 17 is none of lz4's, expected 0 to 16"),
        (lambda: ncd_matrix(["a", 1]), DTypeError, "firsts[1] is a int, expected str or bytes"),  # type: ignore[list-item]
        (lambda: ncd_matrix("ab"), DTypeError, "firsts is a str, expected a sequence of texts"),
        (lambda: ncd_matrix(["a"], num_threads=0), ParamError, "num_threads = 0, expected at least 1"),
        (lambda: zip_fit_alignment(["a"], []), ParamError, "targets is empty, expected at least one text"),
        (lambda: zip_fit_alignment(["a"], ["b", ""]), ParamError, "targets[1] is empty, expected a text that sources"),
        (lambda: zip_fit_alignment(["a"], ["b"], first="x"), ParamError, "first = 'x', expected one of target, source"),
    ],
)
def test_errors_say_place_and_numbers(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_examples() -> None:
    failed, tried = doctest.testmod(compression)
    assert (failed, tried) == (0, 5)
