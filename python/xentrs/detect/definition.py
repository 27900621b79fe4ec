"""What the registry holds of one score, and a request for it with parameters.

In: a row of the table, a text such as `min-k:k=0.1`. Out: `Score`, `Request`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from xentrs.detect.checked_inputs import FloatColumn
from xentrs.errors import ParamError

Task = Literal["membership", "machine"]
Published = Literal["higher", "lower"]
Columns = FloatColumn | dict[str, FloatColumn]


@dataclass(frozen=True)
class Parameter:
    """A number that a score depends on: above `low` (or from it, where `has_low`), at most `high`."""

    name: str
    default: float
    meaning: str
    low: float = 0.0
    high: float = math.inf
    has_low: bool = False
    is_integer: bool = False

    def checked(self, value: float) -> float:
        """The value, an int where it has to be one.

        Raises:
            ParamError: it is outside the range.
        """
        is_in = (self.low <= value if self.has_low else self.low < value) and value <= self.high
        if not is_in or (self.is_integer and value != math.floor(value)):
            raise ParamError(f"{self.name} = {value:g}, expected {self.range_text}")
        return int(value) if self.is_integer else value

    @property
    def range_text(self) -> str:
        """For messages and documentation."""
        start = f"{'[' if self.has_low else '('}{self.low:g}"
        end = "inf)" if math.isinf(self.high) else f"{self.high:g}]"
        return f"{'an integer' if self.is_integer else 'a number'} in {start}, {end}"


@dataclass(frozen=True)
class Score:
    """One row of the table."""

    name: str
    task: Task
    formula: str
    source: str
    published: Published
    """Whether higher or lower values of `compute` mean member or machine, as the source has it."""
    needs: tuple[str, ...]
    """What `DocumentTokens` has to hold: columns of the tokens table and other fields."""
    compute: Callable[..., Columns]
    """One value for each document, or several by label, as published."""
    parameters: tuple[Parameter, ...] = ()
    mode_of: str | None = None
    """The score that this is a named variant of."""
    note: str = ""
    """Where sources disagree, and what holds here."""


@dataclass(frozen=True)
class Request:
    """A score with values for its parameters."""

    score: Score
    parameters: dict[str, Any]
    column: str
    """Its name with the parameters that were given."""


def parse_request(text: str, scores: dict[str, Score]) -> Request:
    """Read `NAME` or `NAME:PARAMETER=VALUE:...`.

    Raises:
        ParamError: there is no such score or parameter, or a value is outside its range.
    """
    name, *given = text.split(":")
    if name not in scores:
        raise ParamError(f"there is no score {name!r}; there are {', '.join(scores)}")
    score = scores[name]
    known = {parameter.name: parameter for parameter in score.parameters}
    values: dict[str, Any] = {parameter.name: parameter.default for parameter in score.parameters}
    for entry in given:
        key, _, number = entry.partition("=")
        if key not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ParamError(f"score {name} has no parameter {key!r}; {takes}")
        values[key] = known[key].checked(_number(number, f"{name}:{key}"))
    return Request(score, values, ":".join([name, *given]))


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ParamError(f"{what} = {text!r}, expected a number") from None
