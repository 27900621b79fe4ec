"""Which option of `xentrs score` makes which column of a RUN.

In: the name of a column. Out: the option, or an error that names it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from xentrs.corpus.aggregates import LABEL_PREFIX
from xentrs.corpus.columns import tempered_name
from xentrs.corpus.settings import Columns, TokenLevel
from xentrs.corpus.tables import tokens_schema
from xentrs.errors import MissingColumn

_LEVELS: tuple[TokenLevel, ...] = ("basic", "detect", "all")
_TEMPERED = re.compile(
    "|".join(tempered_name(what, 0).removesuffix("0") + "(.+)" for what in ("nll", "mean", "variance"))
)
_DOCUMENT_OPTIONS = {"text": "--keep-text", "recipe_mean_nll": "--protocol hf-strided"}


def option_of(column: str) -> str | None:
    """What `xentrs score` has to be given so that `column` is written; None for a column that it never writes."""
    if column in _DOCUMENT_OPTIONS:
        return _DOCUMENT_OPTIONS[column]
    if column.startswith(LABEL_PREFIX):
        return f"--by {column.removeprefix(LABEL_PREFIX)}"
    if (match := _TEMPERED.fullmatch(column)) is not None:
        return f"--tokens detect --inverse-temperatures {match[match.lastindex or 0]}"
    for level in _LEVELS:
        if column in tokens_schema(Columns(level)).names:
            return f"--tokens {level}"
    return None


def missing_column(run: str, column: str, held: Sequence[str]) -> MissingColumn:
    """The error that says what to do about it."""
    if (option := option_of(column)) is not None:
        return MissingColumn(f"{run} has no column {column}: score with {option}")
    near = difflib.get_close_matches(column, held, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(held)}"
    return MissingColumn(f"{run} has no column {column}{hint}")
