"""Errors: the classes, what each message says, and that a refused call leaves everything as it was."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest
import xentrs as xe
import xentrs.errors
from test_edge_arrays import assert_same_stats
from test_edge_lse import noise
from xentrs import _xentrs

F32: Final = np.dtype(np.float32)
BASES: Final[dict[str, tuple[type[BaseException], ...]]] = {
    "ShapeError": (ValueError,),
    "DTypeError": (TypeError,),
    "TargetError": (IndexError,),
    "ParamError": (ValueError,),
    "NonFiniteError": (ValueError,),
    "NotNormalizedError": (ValueError,),
    "FormatError": (ValueError,),
    "TruncatedError": (EOFError, ValueError),
    "LimitError": (ValueError,),
    "InputChangedError": (OSError,),
    "ManifestMismatch": (ValueError,),
    "MissingColumn": (ValueError,),
    "IsaError": (RuntimeError,),
    "InternalError": (RuntimeError,),
}


@pytest.mark.parametrize(("name", "bases"), BASES.items(), ids=list(BASES))
def test_error_class(name: str, bases: tuple[type[BaseException], ...]) -> None:
    error = getattr(xentrs.errors, name)
    assert getattr(xe, name) is error
    assert issubclass(error, xe.XentrsError)
    assert all(issubclass(error, base) for base in bases)
    with pytest.raises(xe.XentrsError, match="what came"):
        raise error("what came")
    copy = pickle.loads(pickle.dumps(error("what came")))
    assert type(copy) is error
    assert str(copy) == "what came"


def test_file_errors_are_format_errors() -> None:
    assert issubclass(xe.TruncatedError, xe.FormatError)
    assert issubclass(xe.LimitError, xe.FormatError)
    assert issubclass(xe.XentrsError, Exception)


def rows(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def ids(*shape: int) -> Any:
    return np.zeros(shape, np.int64)


TEXT: Any = "average"
MESSAGES: Final[dict[str, tuple[Callable[[], Any], str, list[str]]]] = {
    "target": (
        lambda: xe.row_stats(rows(20, 50_257), np.array([0] * 17 + [50_300, 0, 0])),
        "TargetError",
        ["targets[17] = 50300 is outside [0, 50257)"],
    ),
    "target-of-ignored-neighbours": (
        lambda: xe.cross_entropy(rows(3, 7), np.array([-100, 7, -100])),
        "TargetError",
        ["targets[1] = 7 is outside [0, 7)"],
    ),
    "targets-shape": (lambda: xe.row_stats(rows(2, 7), ids(3)), "ShapeError", ["targets", "(3,)", "(2,)"]),
    "logits-0d": (lambda: xe.row_stats(rows()), "ShapeError", ["logits", "0-d"]),
    "kl-shape": (lambda: xe.kl_divergence(rows(2, 7), rows(2, 8)), "ShapeError", ["(2, 7)", "(2, 8)"]),
    "no-column": (lambda: xe.row_stats(rows(2, 0), ids(2)), "ShapeError", ["0"]),
    "dtype": (lambda: xe.row_stats(np.zeros((2, 7), np.int32)), "DTypeError", ["logits", "int32", "float32"]),
    "targets-dtype": (
        lambda: xe.row_stats(rows(2, 7), np.zeros(2)),
        "DTypeError",
        ["targets", "float64", "integer"],
    ),
    "masked": (
        lambda: xe.row_stats(np.ma.masked_array(rows(2, 7))),
        "DTypeError",
        ["masked"],
    ),
    "temperature": (
        lambda: xe.row_stats(rows(2, 7), temperature=-2.5),
        "ParamError",
        ["temperature", "-2.5"],
    ),
    "softcap": (lambda: xe.row_stats(rows(2, 7), softcap=-30.0), "ParamError", ["softcap", "-30"]),
    "top_k": (lambda: xe.row_stats(rows(2, 7), top_k=-3), "ParamError", ["top_k", "-3"]),
    "shift": (lambda: xe.row_stats(rows(2, 7), ids(2), shift=-1), "ParamError", ["shift", "-1"]),
    "vocab_size": (lambda: xe.row_stats(rows(2, 7), vocab_size=8), "ParamError", ["vocab_size", "8", "7"]),
    "reduction": (
        lambda: xe.cross_entropy(rows(2, 7), ids(2), reduction=TEXT),
        "ParamError",
        ["reduction", "average", "none", "sum", "mean"],
    ),
    "threads": (
        lambda: xe.row_stats(rows(2, 7), num_threads=5000),
        "ParamError",
        ["num_threads", "5000", "4096"],
    ),
    "state-rows": (
        lambda: xe.RowStatsState(7, rows=3).update(rows(2, 7), 0),
        "ShapeError",
        ["2", "3"],
    ),
    "state-beyond": (lambda: xe.RowStatsState(7).update(rows(2, 5), 4), "ShapeError", ["7"]),
}


@pytest.mark.parametrize(("call", "name", "parts"), MESSAGES.values(), ids=list(MESSAGES))
def test_message(call: Callable[[], Any], name: str, parts: list[str]) -> None:
    """What came, what was expected, and where."""
    with pytest.raises(getattr(xe, name)) as caught:
        call()
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, str(caught.value)


NUMBER: Any = 3
WRONG: Final[dict[str, tuple[Callable[[], Any], type[Exception]]]] = {
    "negative-rows": (lambda: xe.RowStatsState(7, rows=-1), ValueError),
    "huge-ignore_index": (lambda: xe.row_stats(rows(2, 7), ids(2), ignore_index=2**70), ValueError),
    "merge-with-a-number": (lambda: xe.Perplexity().merge_state(NUMBER), TypeError),
    "merge-state-with-a-number": (lambda: xe.RowStatsState(7, rows=2).merge_state(NUMBER), TypeError),
    "temperature-of-another-type": (lambda: xe.row_stats(rows(2, 7), temperature=TEXT), TypeError),
    "rows-of-another-type": (lambda: xe.RowStatsState(7, rows=TEXT), TypeError),
    "entropy-of-nothing": (lambda: xe.entropy(None), TypeError),
}


@pytest.mark.parametrize(("call", "error"), WRONG.values(), ids=list(WRONG))
def test_wrong_values_and_types(call: Callable[[], Any], error: type[Exception]) -> None:
    """conventions.md: wrong values raise a ValueError, wrong types a TypeError."""
    with pytest.raises(error):
        call()


def test_every_function_takes_lists_as_row_stats_does() -> None:
    values = [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    array = np.array(values)
    for function in (xe.logsumexp, xe.entropy):
        np.testing.assert_array_equal(function(values), function(array))
    np.testing.assert_array_equal(xe.row_stats(values, [1, 2]).nll, xe.row_stats(array, np.array([1, 2])).nll)
    assert xe.perplexity(values, [1, 2]) == xe.perplexity(array, np.array([1, 2]))
    np.testing.assert_array_equal(xe.kl_divergence(values, values[::-1]), xe.kl_divergence(array, array[::-1]))


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("threads", [1, 4])
def test_strict_names_the_first_offender(value: float, threads: int) -> None:
    """Row by row, then column by column, whatever thread finds it first; ignored rows are not read."""
    logits, targets = noise(9001, F32, 50), np.zeros(50, np.int64)
    targets[4] = -100
    for row, column in ((4, 2), (13, 8999), (13, 9000), (14, 0), (49, 5)):
        logits[row, column] = value
    with pytest.raises(xe.NonFiniteError, match=r"\b13\b.*\b8999\b"):
        xe.row_stats(logits, targets, strict=True, num_threads=threads)
    clean = noise(9001, F32, 50)
    assert_same_stats(xe.row_stats(clean, targets, strict=True), xe.row_stats(clean, targets))


def test_f18_a_panic_becomes_an_internal_error() -> None:
    """And the next call works."""
    logits = noise(5000, F32, 8)
    wanted = xe.row_stats(logits)
    for _ in range(3):
        with pytest.raises(xe.InternalError):
            _xentrs.panic_for_tests()
        assert_same_stats(xe.row_stats(logits), wanted)


def test_c10_nothing_is_counted_after_an_error() -> None:
    totals = xe.Perplexity()
    with pytest.raises(xe.TargetError):
        totals.update(rows(3, 7), np.array([0, 1, 7]))
    assert totals.compute().token_count == 0


def test_vocab_size_drops_padding() -> None:
    """Columns past vocab_size do not exist: the result is that of the slice."""
    logits, targets = noise(5000, F32, 4), np.arange(4)
    logits[:, 4500:] = np.nan
    assert_same_stats(xe.row_stats(logits, targets, vocab_size=4500), xe.row_stats(logits[:, :4500], targets))
    with pytest.raises(xe.TargetError, match=r"4500\)"):
        xe.row_stats(logits, np.array([0, 1, 4500, 2]), vocab_size=4500)


def test_c8_an_ignored_row_is_never_read() -> None:
    """Row 1 lies on a page without read permission: touching it would end the process."""
    from test_bindings_process import must_succeed

    must_succeed("""
        import ctypes, mmap
        size = mmap.PAGESIZE
        region = mmap.mmap(-1, 3 * size)
        logits = np.frombuffer(region, np.float32).reshape(3, -1)
        logits[...] = 1.0
        address = logits.ctypes.data
        assert address % size == 0
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), size, 0) == 0
        for threads in (1, 2):
            stats = xe.row_stats(logits, np.array([0, -100, 0]), top_k=2, strict=True, num_threads=threads)
            assert stats.flags.tolist() == [0, 16, 0] and stats.token_count == 2
            xe.cross_entropy(logits, np.array([0, -100, 0]), num_threads=threads)
        os._exit(0)
    """)
