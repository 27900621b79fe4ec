"""What a `Scorer` is asked: options checked, records brought into the shape that readers know.

In: arguments of Python. Out: `Columns`, a loaded runner, records, and what becomes of bad ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from xentrs.corpus.documents import Cursor, ReadItems, Rejected
from xentrs.corpus.reading import Reading, parse_shard
from xentrs.corpus.settings import Columns, Settings, TokenLevel, resolve_settings
from xentrs.corpus.sources import InputError
from xentrs.errors import ParamError
from xentrs.models import SplitRunner, as_split_runner, load_model, set_threads

OnBad: TypeAlias = Literal["raise", "skip"] | Callable[[Rejected], object]
"""What becomes of a record that is no document: an `InputError`, left out, or handed to a function and left out."""

_OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)")


def open_model(
    model: Any, revision: str | None, dtype: str, device: str, runner: str | None, num_threads: int | None
) -> SplitRunner:
    """The runner of a name, or of an object that is one.

    Raises:
        ModelError: there is none.
        ParamError: options of loading come with a model that is loaded already.
    """
    if num_threads is not None:
        if num_threads < 1:
            raise ParamError(f"num_threads {num_threads}: expected at least 1")
        set_threads(num_threads)
    if isinstance(model, str | Path):
        return load_model(str(model), revision, dtype, device, runner)
    if (revision, dtype, device, runner) != (None, "auto", "cpu", None):
        raise ParamError("revision, dtype, device and runner go with the name of a model; this one is loaded already")
    return as_split_runner(model)


def check_columns(level: TokenLevel, inverse_temperatures: Sequence[float], top_k: int) -> Columns:
    """What is kept of each token.

    Raises:
        ParamError: no such level, or options that it does not have.
    """
    if level not in get_args(TokenLevel):
        raise ParamError(f"tokens {level!r}: expected {', '.join(get_args(TokenLevel))}")
    values = tuple(float(value) for value in inverse_temperatures)
    if values and level not in ("detect", "all"):
        raise ParamError("inverse_temperatures need tokens 'detect' or 'all'")
    if top_k < 1:
        raise ParamError(f"top_k {top_k}: expected at least 1")
    return Columns(level, values, top_k)


def make_settings(runner: SplitRunner, **options: Any) -> Settings:
    """`resolve_settings`, its messages in the words of Python."""
    try:
        return resolve_settings(runner, **options)
    except ParamError as error:
        raise python_words(error) from None


def python_words(error: ParamError) -> ParamError:
    """A message that names options of the command, naming arguments."""
    return ParamError(_OPTION.sub(lambda found: found[1].replace("-", "_"), str(error)))


def corpus_reading(reading: Reading, shard: str | None, **changes: Any) -> Reading:
    """`reading` with what a call asks for besides; `shard` is "1/8"."""
    try:
        number, count = (0, 1) if shard is None else parse_shard(shard)
        return replace(reading, shard=number, shard_count=count, **changes)
    except ParamError as error:
        raise python_words(error) from None


def refusal(on_bad: OnBad, rejected: list[Rejected] | None = None) -> Callable[[Rejected], object]:
    """What is called for each bad record; those that are skipped go into `rejected` where there is such a list."""
    if on_bad == "raise":
        return _raise
    if on_bad == "skip":
        return _forget if rejected is None else rejected.append
    if not callable(on_bad):
        raise ParamError(f"on_bad {on_bad!r}: expected 'raise', 'skip' or a function")
    return on_bad


def _raise(rejected: Rejected) -> None:
    raise InputError(f"{rejected.source}, record {rejected.line}: {rejected.reason}")


def _forget(rejected: Rejected) -> None:
    pass


def check_early(read: ReadItems, data: Any, on_bad: OnBad) -> None:
    """The records of a sequence before the first is scored: a bad one at the end should not cost the work before it."""
    if on_bad == "raise" and isinstance(data, Sequence):
        for item, _ in read(Cursor()):
            if isinstance(item, Rejected):
                _raise(item)
