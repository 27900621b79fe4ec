"""Results as text for a terminal or a pipe.

In: rows and blocks of a result. Out: strings. Ids and file names come from data, so control and direction
characters in them are shown as escapes and never reach the terminal.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from typing import IO, Any

_COLUMNS = ("id", "tokens", "scored", "bytes", "nll (nats)", "perplexity/token", "bits/byte", "status")
_ID_WIDTH = 48


def printable(text: str) -> str:
    """`text` with everything that is not printable as an escape."""
    return "".join(
        character
        if character == " " or unicodedata.category(character)[0] not in "CZ"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def number(value: float | None, digits: int = 4) -> str:
    """A figure for people; "-" where there is none."""
    if value is None:
        return "-"
    if math.isnan(value) or math.isinf(value):
        return str(value)
    return f"{value:,.{digits}f}" if abs(value) < 1e7 else f"{value:.6g}"


def document_table(rows: Sequence[dict[str, Any]], stream: IO[str]) -> None:
    """The documents of a result: a rich table on a terminal, aligned columns elsewhere."""
    cells = [_document_cells(row) for row in rows]
    if stream.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for place, name in enumerate(_COLUMNS):
            table.add_column(name, justify="right" if 0 < place < len(_COLUMNS) - 1 else "left")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=stream).print(table)
        return
    for line in aligned([_COLUMNS, *cells]):
        print(line, file=stream)


def _document_cells(row: dict[str, Any]) -> tuple[str, ...]:
    status = row["status"] if row["reason"] is None else f"{row['status']} ({row['reason']})"
    return (
        _shortened(printable(row["id"])),
        f"{row['token_count']:,}",
        f"{row['scored_count']:,}",
        f"{row['byte_count']:,}",
        number(row["nll_sum"]) if row["scored_count"] else "-",
        number(row["perplexity"]),
        number(row["bits_per_byte"]),
        status,
    )


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Lines of columns: the first and the last to the left, the others to the right."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    last = len(widths) - 1
    for row in rows:
        cells = [
            cell.ljust(width) if place in (0, last) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _shortened(text: str) -> str:
    return text if len(text) <= _ID_WIDTH else "..." + text[-(_ID_WIDTH - 3) :]


def protocol_text(protocol: dict[str, Any]) -> str:
    """The protocol in one line: what the figures depend on."""
    if protocol["window"] is None:
        return f"{printable(protocol['model'])}, {protocol['dtype']}, kernel {protocol['isa']}"
    prefix = protocol["prefix"]
    if protocol["prefix_token_id"] is not None:
        prefix = f"{prefix} (token {protocol['prefix_token_id']})"
    revision = f"@{protocol['model_revision'][:12]}" if protocol["model_revision"] else ""
    if protocol["prefix_every"] == "window":
        prefix = f"{prefix} in every window"
    preset = f"protocol {protocol['protocol']}: " if protocol["protocol"] else ""
    return (
        f"{printable(protocol['model'])}{revision}, {protocol['dtype']} on {protocol['device']}, {preset}"
        f"prefix {prefix}, window {protocol['window']}, stride {protocol['stride']}, kernel {protocol['isa']}"
    )


def totals_text(totals: dict[str, Any]) -> list[str]:
    """Totals, one line per subject, each rate with its unit and denominator."""
    lines = [
        f"documents    {totals['documents']:,} ({totals['unscorable_documents']:,} unscorable, "
        f"{totals['quarantined']:,} records quarantined, {totals['skipped_lines']:,} empty lines skipped)",
        f"tokens       {totals['tokens']:,}: {totals['scored_tokens']:,} scored, "
        f"{totals['unscored_tokens']:,} unscored",
    ]
    if totals["reason"] is not None:
        return [*lines, f"no figures   {totals['reason']}"]
    lines += [
        f"mean nll     {number(totals['mean_nll'])} nats per token",
        f"perplexity   {number(totals['perplexity_per_token'])} per token",
        f"bits/byte    {number(totals['bits_per_byte'])} over {totals['scored_bytes']:,} bytes of UTF-8",
    ]
    if totals["infinite_count"] or totals["nan_count"]:
        lines.append(f"not finite   {totals['infinite_count']:,} infinite, {totals['nan_count']:,} NaN token scores")
    return lines


def extremes_text(title: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Best or worst documents with their bits per byte."""
    return [
        title,
        *(f"  {number(row['bits_per_byte']):>9}  {_shortened(printable(row['id']))}" for row in rows),
    ]
