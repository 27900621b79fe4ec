"""Likeness of texts by how well they compress together; no model needed.

In: texts (str, taken as UTF-8, or bytes). Out: compressed sizes, normalised compression distances, ZIP-FIT alignments
of sources with targets, the best sources. Method lz4 needs the package lz4, of the extra `detect`.

With C the compressed size in bytes, header and checksum counted, and xy the texts one after the other:
NCD(x, y) = (C(xy) - min(C(x), C(y))) / max(C(x), C(y)) (Cilibrasi and Vitanyi, IEEE Trans. Inf. Theory 51, 2005).
The ZIP-FIT alignment of a source is the mean over the targets of 1 - NCD (Obbad et al., arXiv 2410.18194).

C(xy) of zlib and gzip is made from a compressor that has read x once and is copied for each y: the same number as from
the whole (tested), at the cost of y and of a copy of some 256 KiB, so that it pays where x is a few KB or more. lz4's
compressors cannot be copied: a pair is compressed as a whole. Both libraries release the GIL as they compress. Deflate
looks back 32 KiB and lz4 64 KiB: of a longer x only its end takes part. Results do not depend on threads.

Empty texts: two of them are at distance 0, an empty and another one at 1. An empty target is an error.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

import xentrs
from xentrs.detect.checked_inputs import FloatColumn, IntColumn, choice_of, column_of, count_of, optional_module
from xentrs.errors import DTypeError, ParamError

METHODS = ("zlib", "gzip", "lz4")
LEVELS = {"zlib": range(1, 10), "gzip": range(1, 10), "lz4": range(17)}
"""Levels of a method. Level 0 of zlib and gzip stores without compressing, which makes every distance meaningless."""
DEFAULT_LEVELS = {"zlib": 6, "gzip": 9, "lz4": 0}
"""Those of `zlib.compress`, `gzip.compress` and `lz4.frame.compress`."""
_WINDOW_BITS = {"zlib": 15, "gzip": 31}
_TASKS = 4  # for each thread, so that none waits long for the last

Text = str | bytes
Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Compressor:
    """A method and its level."""

    method: str
    level: int

    def size(self, data: bytes) -> int:
        """Compressed size of `data`."""
        if self.method == "lz4":
            return len(optional_module("lz4.frame").compress(data, compression_level=self.level))
        state = zlib.compressobj(self.level, zlib.DEFLATED, _WINDOW_BITS[self.method])
        return len(state.compress(data)) + len(state.flush())

    def after(self, first: bytes) -> Callable[[bytes], int]:
        """A function of y that gives the compressed size of `first` followed by y."""
        if self.method == "lz4":
            return lambda second: self.size(first + second)
        state = zlib.compressobj(self.level, zlib.DEFLATED, _WINDOW_BITS[self.method])
        written = len(state.compress(first))

        def size_with(second: bytes) -> int:
            copy = state.copy()
            return written + len(copy.compress(second)) + len(copy.flush())

        return size_with


@dataclass(frozen=True, eq=False)
class Alignment:
    """How well each source fits the targets, larger meaning better."""

    values: FloatColumn
    """Of each source: the mean of 1 - NCD over the targets; 0 for an empty one."""
    target_count: int
    empty_sources: int
    method: str
    level: int
    first: str
    """Which of a pair comes first: target or source."""

    def block(self) -> dict[str, Any]:
        """Plain data."""
        return vars(self) | {"values": self.values.tolist()}

    def __repr__(self) -> str:
        """Says sizes and method."""
        return (
            f"Alignment({len(self.values)} sources with {self.target_count} targets, {self.method} level {self.level}, "
            f"{self.first} first)"
        )


def compressed_size(text: Text, *, method: str = "zlib", level: int | None = None) -> int:
    """Bytes of a text after compression, header and checksum counted.

    Raises:
        ParamError: another method, or a level that it does not have.
        DTypeError: neither str nor bytes.

    >>> compressed_size("abc" * 100)
    15
    """
    return _compressor(method, level).size(_bytes_of(text, "text"))


def ncd(first: Text, second: Text, *, method: str = "zlib", level: int | None = None, symmetric: bool = False) -> float:
    """Normalised compression distance: near 0 for texts alike, near 1 (at times a little above) for unlike ones.

    Which text comes first makes a small difference, and a text is not quite at 0 from itself. With `symmetric` the
    smaller size of both orders counts: a compressed size is an upper bound of what it stands for.

    Raises:
        ParamError, DTypeError: as `compressed_size`.

    >>> ncd("a rose is a rose is a rose", "a rose is a rose") < ncd("a rose is a rose is a rose", "quick brown fox")
    True
    """
    distances = ncd_matrix([first], [second], method=method, level=level, symmetric=symmetric, num_threads=1)
    return float(distances[0, 0])


def ncd_matrix(
    firsts: Sequence[Text],
    seconds: Sequence[Text] | None = None,
    *,
    method: str = "zlib",
    level: int | None = None,
    symmetric: bool = False,
    num_threads: int | None = None,
) -> FloatColumn:
    """Distances `(firsts, seconds)`; without `seconds` of all pairs of `firsts`, each with itself too.

    Raises:
        ParamError, DTypeError: as `compressed_size`, naming the place of the text.
    """
    compressor, threads = _compressor(method, level), _threads(num_threads)
    rows = _all_bytes(firsts, "firsts")
    columns = rows if seconds is None else _all_bytes(seconds, "seconds")
    row_sizes = _sizes(compressor, rows, threads)
    column_sizes = row_sizes if seconds is None else _sizes(compressor, columns, threads)
    pair_sizes = _pair_table(compressor, rows, columns, threads)
    if symmetric:
        swapped = pair_sizes if seconds is None else _pair_table(compressor, columns, rows, threads)
        pair_sizes = np.minimum(pair_sizes, swapped.T)
    distances = _distances(pair_sizes, row_sizes[:, None], column_sizes)
    is_empty = (_are_empty(rows)[:, None], _are_empty(columns))
    return np.where(is_empty[0] | is_empty[1], np.where(is_empty[0] & is_empty[1], 0.0, 1.0), distances)


def zip_fit_alignment(
    sources: Sequence[Text],
    targets: Sequence[Text],
    *,
    method: str = "gzip",
    level: int | None = None,
    first: str = "target",
    num_threads: int | None = None,
) -> Alignment:
    """ZIP-FIT alignment of each source with the targets. Memory grows with the texts, not with the pairs.

    With `first="target"` each target is compressed once and sources are added to it; `first="source"` is the order of
    the authors' code, compresses each source once and adds the targets. The values differ by a few bytes' worth. Their
    code's default for gzip, level 0, compresses nothing and is not offered.

    Raises:
        ParamError: no target, an empty target; as `compressed_size`; `first` is another word.
        DTypeError: a text is neither str nor bytes.

    >>> alignment = zip_fit_alignment(["x = 1; y = 2", "once upon a time"], ["a = 1; b = 2; c = 3"])
    >>> select_top(alignment.values, 1).tolist()
    [0]
    """
    choice_of(first, "first", ("target", "source"))
    compressor, threads = _compressor(method, level), _threads(num_threads)
    source_bytes, target_bytes = _all_bytes(sources, "sources"), _all_bytes(targets, "targets")
    if not target_bytes:
        raise ParamError("targets is empty, expected at least one text")
    empty = np.flatnonzero(_are_empty(target_bytes))
    if len(empty):
        raise ParamError(f"targets[{empty[0]}] is empty, expected a text that sources can resemble")
    source_sizes, target_sizes = (_sizes(compressor, texts, threads) for texts in (source_bytes, target_bytes))
    total = np.zeros(len(source_bytes))
    if first == "target":
        for size, row in zip(target_sizes, _pair_sizes(compressor, target_bytes, source_bytes, threads), strict=True):
            total += 1.0 - _distances(row, size, source_sizes)
    else:
        for place, row in enumerate(_pair_sizes(compressor, source_bytes, target_bytes, threads)):
            total[place] = np.sum(1.0 - _distances(row, source_sizes[place], target_sizes))
    is_empty = _are_empty(source_bytes)
    values = np.where(is_empty, 0.0, total / len(target_bytes))
    return Alignment(values, len(target_bytes), int(is_empty.sum()), compressor.method, compressor.level, first)


def select_top(values: Any, count: int) -> IntColumn:
    """Places of the `count` largest values, best first, equal ones in their order; all of them if there are fewer.

    Raises:
        ParamError: a value is NaN; a count below 0.

    >>> select_top([0.2, 0.5, 0.5, 0.1], 2).tolist()
    [1, 2]
    """
    column = column_of(values, "values")
    wrong = np.flatnonzero(np.isnan(column))
    if len(wrong):
        raise ParamError(f"values[{wrong[0]}] = nan, expected a number: NaN has no place in an order")
    places: IntColumn = np.argsort(-column, kind="stable")[: count_of(count, "count", 0)].astype(np.int64)
    return places


def _compressor(method: str, level: int | None) -> Compressor:
    choice_of(method, "method", METHODS)
    used, levels = DEFAULT_LEVELS[method] if level is None else count_of(level, "level", 0), LEVELS[method]
    if used not in levels:
        raise ParamError(f"level = {used} is none of {method}'s, expected {levels.start} to {levels.stop - 1}")
    return Compressor(method, used)


def _threads(num_threads: int | None) -> int:
    return xentrs.num_threads() if num_threads is None else count_of(num_threads, "num_threads")


def _bytes_of(text: Any, name: str) -> bytes:
    if isinstance(text, str):
        # As they came, so that half a surrogate pair, which JSON can hold, is no error.
        return text.encode("utf-8", "surrogatepass")
    if not isinstance(text, bytes):
        raise DTypeError(f"{name} is a {type(text).__name__}, expected str or bytes")
    return text


def _all_bytes(texts: Sequence[Text], name: str) -> list[bytes]:
    if isinstance(texts, str | bytes):
        raise DTypeError(f"{name} is a {type(texts).__name__}, expected a sequence of texts")
    return [_bytes_of(text, f"{name}[{place}]") for place, text in enumerate(texts)]


def _are_empty(texts: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    return np.array([not text for text in texts], dtype=np.bool_)


def _distances(pair_sizes: IntColumn, first_sizes: Any, second_sizes: IntColumn) -> FloatColumn:
    distances: FloatColumn = (pair_sizes - np.minimum(first_sizes, second_sizes)) / np.maximum(
        first_sizes, second_sizes
    )
    return distances


def _sizes(compressor: Compressor, texts: Sequence[bytes], threads: int) -> IntColumn:
    step = max(1, len(texts) // (_TASKS * threads))
    tasks = (texts[start : start + step] for start in range(0, len(texts), step))
    pieces = _in_order(lambda task: [compressor.size(text) for text in task], tasks, threads)
    return np.array([size for piece in pieces for size in piece], dtype=np.int64)


def _pair_table(compressor: Compressor, firsts: list[bytes], seconds: list[bytes], threads: int) -> IntColumn:
    rows = list(_pair_sizes(compressor, firsts, seconds, threads))
    return np.array(rows, dtype=np.int64).reshape(len(firsts), len(seconds))


def _pair_sizes(compressor: Compressor, firsts: list[bytes], seconds: list[bytes], threads: int) -> Iterator[IntColumn]:
    """For each of `firsts` the compressed sizes with all `seconds`. A task is a row or, where rows are few, a part of
    one; each task compresses its first text anew.
    """
    parts = max(1, min(len(seconds), -(-_TASKS * threads // max(1, len(firsts)))))
    bounds = [len(seconds) * part // parts for part in range(parts + 1)]
    tasks = ((first, start, end) for first in firsts for start, end in itertools.pairwise(bounds))

    def sizes(task: tuple[bytes, int, int]) -> list[int]:
        first, start, end = task
        size_with = compressor.after(first)
        return [size_with(second) for second in seconds[start:end]]

    pieces = _in_order(sizes, tasks, threads)
    for _ in firsts:
        yield np.array([size for piece in itertools.islice(pieces, parts) for size in piece], dtype=np.int64)


def _in_order(function: Callable[[Task], Result], tasks: Iterable[Task], threads: int) -> Iterator[Result]:
    """Results in the order of the tasks, only so many of them ahead that every thread has work."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
