"""What a `Scorer` gives back: documents, their tokens, and a table of them.

In: the columns of scored parts. Out: frozen, picklable data. Likelihoods are in nats unless a name says otherwise; what
cannot be said of a document (nothing of it was scored) is None.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from xentrs.report.terminal import number, printable, protocol_text
from xentrs.results import Flag

if TYPE_CHECKING:
    from xentrs.corpus import Rejected, Settings
    from xentrs.corpus.parts import Part
    from xentrs.corpus.score import PartColumns

_SHOWN_ROWS = 20
_HEADINGS = ("id", "tokens", "scored", "bytes", "mean nll (nats)", "perplexity/token", "bits/byte", "status")
_MISSING_PYARROW = "tables of Arrow need pyarrow: pip install 'xentrs[score]'"


@dataclass(frozen=True, eq=False)
class TokenScores:
    """The tokens of one document that are to be scored, arrays of shape `(token_count,)`. A token without anything
    before it, the first of a text without a prefix, has NaN and the flag IGNORED.
    """

    position: npt.NDArray[np.int32]
    """Place among all tokens of the document, the context of a pair included."""
    token_id: npt.NDArray[np.int32]
    """Column of the vocabulary."""
    byte_start: npt.NDArray[np.int64]
    """Where the token begins in the UTF-8 of what was encoded; 0 where the runner gives no ranges."""
    byte_end: npt.NDArray[np.int64]
    """Where it ends."""
    nll: npt.NDArray[np.float64]
    """Negative log-likelihood."""
    entropy: npt.NDArray[np.float64]
    """Entropy of the prediction."""
    varentropy: npt.NDArray[np.float64]
    """Variance of the log-probability under the prediction."""
    rank: npt.NDArray[np.int32]
    """1 + number of tokens that were likelier."""
    ties: npt.NDArray[np.int32]
    """Other tokens that were as likely."""
    top1_id: npt.NDArray[np.int32]
    """The likeliest token."""
    top1_log_prob: npt.NDArray[np.float64]
    """Its log-probability."""
    flags: npt.NDArray[np.uint8]
    """What is unusual, see `Flag`."""
    details: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Columns of the levels `detect` and `all` by name; `top_ids` and `top_log_probs` are `(token_count, top_k)`."""

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """Which tokens have figures."""
        ignored: npt.NDArray[np.bool_] = (self.flags & int(Flag.IGNORED)).astype(np.bool_)
        return ~ignored

    def __len__(self) -> int:
        return len(self.nll)

    def __repr__(self) -> str:
        """Says how many; the arrays are a field away."""
        return f"TokenScores({len(self)} tokens, {int(self.scored.sum())} scored)"


@dataclass(frozen=True)
class DocumentScore:
    """How likely a document is. Two are equal when their figures are; tokens are not compared."""

    id: str
    """Its own, or the name of the data and its number, from 1."""
    token_count: int
    """Tokens to be scored."""
    scored_count: int
    """Tokens that were: all but those with nothing before them."""
    byte_count: int
    """Bytes of UTF-8 of what is to be scored."""
    nll_sum: float
    """Negative log-likelihood of all scored tokens, an exact sum rounded once."""
    mean_nll: float | None
    """`nll_sum / scored_count`."""
    perplexity: float | None
    """e to the mean, per token."""
    bits_per_byte: float | None
    """`nll_sum` in bits by the bytes of the scored tokens."""
    greedy_match: bool | None
    """Whether every scored token was the likeliest."""
    status: str
    """"scored" or "unscorable"."""
    reason: str | None
    """Why it is unscorable: "no_tokens", "one_token", "shorter_than_the_windows_need"."""
    tokens: TokenScores | None = field(compare=False, repr=False)
    """Its tokens; None with `tokens="none"`."""


@dataclass(frozen=True)
class PairScore(DocumentScore):
    """How likely a continuation is after its context; all figures are of the continuation."""

    context_count: int
    """Tokens of the context."""
    dropped_context_count: int
    """Of these, how many no window had room for."""


Score = TypeVar("Score", bound=DocumentScore)


def document_scores(part: Part, columns: PartColumns, has_tokens: bool, kind: type[Score]) -> Iterator[Score]:
    """The documents of a part in their order; arrays are copies, so that one document does not keep a part alive."""
    names = [name for name in kind.__dataclass_fields__ if name != "tokens"]
    first = 0
    for place, document in enumerate(part.documents):
        rows = slice(first, first + len(document.wanted))
        first = rows.stop
        fields = {name: columns.documents[name][place] for name in names}
        yield kind(**fields, tokens=_token_scores(columns.tokens, rows) if has_tokens else None)


def _token_scores(columns: dict[str, npt.NDArray[Any]], rows: slice) -> TokenScores:
    values = {name: column[rows].copy() for name, column in columns.items() if name != "document"}
    own = {name: values.pop(name) for name in TokenScores.__dataclass_fields__ if name in values}
    return TokenScores(**own, details=values)


@dataclass(frozen=True, eq=False, repr=False)
class ScoreResult(Sequence[DocumentScore]):
    """Scored documents in the order of the data: a sequence of `DocumentScore` with totals over them.

    In a notebook it is a table. Polars, pandas, duckdb and pyarrow take it as it is (`__arrow_c_stream__`).
    """

    documents: tuple[DocumentScore, ...]
    """The documents; indexing and iteration give these."""
    totals: dict[str, Any]
    """Counts, exact sums and rates over all of them, as in the summary of a RUN folder."""
    protocol: dict[str, Any]
    """What decides the figures: model, prefix, windows, kernel, versions."""
    quarantine: tuple[Rejected, ...]
    """Records that `on_bad="skip"` left out, and why."""
    _columns: dict[str, list[Any]]
    _settings: Settings

    @overload
    def __getitem__(self, index: int) -> DocumentScore: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[DocumentScore, ...]: ...
    def __getitem__(self, index: int | slice) -> DocumentScore | tuple[DocumentScore, ...]:
        return self.documents[index]

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def scored_count(self) -> int:
        """Tokens scored."""
        return int(self.totals["scored_tokens"])

    @property
    def nll_sum(self) -> float:
        """Negative log-likelihood of all scored tokens."""
        return float(self.totals["nll_sum"])

    @property
    def mean_nll(self) -> float | None:
        """Mean over all scored tokens."""
        return _optional(self.totals["mean_nll"])

    @property
    def perplexity(self) -> float | None:
        """e to the mean, per token."""
        return _optional(self.totals["perplexity_per_token"])

    @property
    def bits_per_byte(self) -> float | None:
        """Bits by the bytes of all scored tokens."""
        return _optional(self.totals["bits_per_byte"])

    def to_arrow(self) -> Any:
        """The documents as a `pyarrow.Table`, the columns of a RUN folder's documents table (docs/schema.md).

        Raises:
            ImportError: pyarrow is not installed.
        """
        try:
            import pyarrow as pa  # type: ignore[import-untyped]

            from xentrs.corpus.tables import documents_schema
        except ImportError:
            raise ImportError(_MISSING_PYARROW) from None
        return pa.Table.from_pydict(self._columns, schema=documents_schema(self._settings))

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The same for whatever reads Arrow's C stream interface."""
        stream: object = self.to_arrow().__arrow_c_stream__(requested_schema)
        return stream

    def __repr__(self) -> str:
        """Says the totals."""
        rates = {"perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        figures = ", ".join(f"{name}={'None' if rate is None else f'{rate:.6g}'}" for name, rate in rates.items())
        skipped = f", quarantined={len(self.quarantine)}" if self.quarantine else ""
        return f"ScoreResult(documents={len(self)}, scored_count={self.scored_count}, {figures}{skipped})"

    def _repr_html_(self) -> str:
        """A table of the first documents; ids come from data and are escaped."""
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in _HEADINGS)
        rows = "".join(_html_row(_cells(document)) for document in self.documents[:_SHOWN_ROWS])
        more = len(self) - _SHOWN_ROWS
        rest = f'<tr><td colspan="{len(_HEADINGS)}">and {more:,} more</td></tr>' if more > 0 else ""
        total = (
            f"{len(self):,} documents, {self.scored_count:,} tokens scored: mean nll {number(self.mean_nll)} nats, "
            f"perplexity {number(self.perplexity)} per token, {number(self.bits_per_byte)} bits per byte"
        )
        if self.quarantine:
            total = f"{total}; {len(self.quarantine):,} records quarantined"
        caption = f"{html.escape(total)}<br>{html.escape(protocol_text(self.protocol))}"
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}{rest}</tbody></table>"


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _cells(document: DocumentScore) -> tuple[str, ...]:
    return (
        printable(document.id),
        f"{document.token_count:,}",
        f"{document.scored_count:,}",
        f"{document.byte_count:,}",
        number(document.mean_nll),
        number(document.perplexity),
        number(document.bits_per_byte),
        document.status if document.reason is None else f"{document.status} ({document.reason})",
    )


def _html_row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
