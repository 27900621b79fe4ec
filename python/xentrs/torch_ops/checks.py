"""What is wrong with a call, in the words of `src/error.rs`; checked once, before any work."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xentrs.errors import NotNormalizedError, ParamError, ShapeError, TargetError

_RANGE = (1e-30, 1e30)


class Targets(NamedTuple):
    """Checked class ids."""

    counted: Tensor | None
    """Rows that count; None for all of them."""
    columns: Tensor
    """The target of each row that counts."""
    token_count: int


def check_targets(ids: Tensor, vocab: int, ignore_index: int) -> Targets:
    """Takes ids, each in `[0, vocab)` or equal to `ignore_index`. The one place where a call waits for the device."""
    values = ids.view(torch.int64)
    # As int64 a uint64 of 2^63 or more is negative; it is never ignored.
    is_huge = values < 0 if ids.dtype == torch.uint64 else torch.zeros_like(values, dtype=torch.bool)
    is_counted = (values != ignore_index) | is_huge
    is_outside = is_counted & ((values < 0) | (values >= vocab))
    outside, token_count = torch.stack([is_outside.sum(), is_counted.sum()]).tolist()
    if token_count and vocab == 0:
        raise ShapeError("logits have vocab 0, expected at least 1 column for a target")
    if outside:
        row = int(is_outside.nonzero()[0, 0])
        target = int(values[row]) % 2**64 if bool(is_huge[row]) else int(values[row])
        raise TargetError(f"targets[{row}] = {target} is outside [0, {vocab})")
    if token_count == len(values):
        return Targets(None, values, token_count)
    index = is_counted.nonzero()[:, 0]
    return Targets(index, values[index], token_count)


def check_rows(count: int, rows: int, name: str = "targets", of: str = "the rows of logits") -> None:
    """One of something for each row."""
    if count != rows:
        raise ShapeError(f"{name} has shape ({count},), expected ({rows},) as {of} has")


def check_settings(settings: dict[str, Any], vocab: int) -> tuple[int, float]:
    """The vocabulary without padding and the inverse temperature."""
    check_threads(settings["num_threads"])
    vocab = check_vocab(settings["vocab_size"], vocab)
    check_positive("temperature", settings["temperature"])
    if settings["softcap"] is not None:
        check_positive("softcap", settings["softcap"])
    return vocab, 1.0 / settings["temperature"]


def check_vocab(vocab_size: int | None, vocab: int) -> int:
    """The vocabulary without padding."""
    if vocab_size is None:
        return vocab
    if not 1 <= vocab_size <= vocab:
        raise ParamError(f"vocab_size = {vocab_size} is outside [1, {vocab}]")
    return vocab_size


def check_positive(name: str, value: float) -> None:
    """Positive, finite, and within the range in which float32 holds it and its inverse."""
    if not _RANGE[0] <= value <= _RANGE[1]:
        raise ParamError(f"{name} = {written(value)}, expected a number from 1e-30 to 1e30")


def check_threads(num_threads: int | None) -> None:
    """torch has threads of its own; a number that is none is an error all the same."""
    if num_threads is not None and not 0 <= num_threads <= 4096:
        raise ParamError(f"num_threads = {num_threads}, expected None, 0 or a number from 1 to 4096")


def check_list(name: str, values: list[float]) -> None:
    """Numbers from 0 to 1e30."""
    for value in values:
        if not 0 <= value <= _RANGE[1]:
            raise ParamError(f"{name} = {written(value)}, expected numbers from 0 to 1e30")


def check_between(name: str, value: float, most: float) -> None:
    """A number from 0 to `most`, which is 1 or 1e30."""
    if not 0 <= value <= most:
        raise ParamError(f"{name} = {written(value)}, expected a number from 0 to {'1' if most == 1 else '1e30'}")


def check_vocabulary(vocab: int, operation: str) -> None:
    """At least one column."""
    if vocab == 0:
        raise ShapeError(f"logits have vocab 0, expected at least 1 column for {operation}")


def check_weights(weight: Tensor, vocab: int) -> None:
    """One weight for each class, finite and at least 0."""
    if len(weight) != vocab:
        raise ShapeError(f"weight has shape ({len(weight)},), expected ({vocab},) as the vocabulary has")
    is_bad = ~((weight >= 0) & (weight <= _RANGE[1]))
    if bool(is_bad.any()):
        raise ParamError(f"weight = {written(float(weight[is_bad][0]))}, expected finite numbers from 0 to 1e30")


def not_normalized(what: str, row: int, total: float) -> NotNormalizedError:
    """The error for probabilities that do not sum to 1."""
    return NotNormalizedError(f"{what}[{row}] sums to {written(total)}, expected 1 within 1e-3")


def first_row(is_bad: Tensor) -> int | None:
    """The first row of which it is true."""
    return int(is_bad.nonzero()[0, 0]) if bool(is_bad.any()) else None


def written(value: float) -> str:
    """A number as the extension's messages have it."""
    return re.sub(r"e([+-]?)0*(\d)", lambda found: f"e{found[1].strip('+')}{found[2]}", repr(float(value))).replace(
        "nan", "NaN"
    )
