"""The parts of a summary beyond its totals: intervals, breakdowns, further means.

In: the totals block of a summary. Out: lines for people, each figure with its unit and denominator.
"""

from __future__ import annotations

from typing import Any

from xentrs.report.terminal import number, printable

_LINES = {
    "mean_nll": "nats per token",
    "perplexity_per_token": "perplexity per token",
    "bits_per_byte": "bits per byte",
}
_VALUE_WIDTH = 32
_SHOWN_VALUES = 20


def means_text(totals: dict[str, Any]) -> list[str]:
    """Means by other denominators than token and byte."""
    if totals["reason"] is not None:
        return []
    chars, words = f"{totals['scored_chars']:,} characters", f"{totals['scored_words']:,} words"
    lines = [
        f"bits/char    {number(totals['bits_per_char'])} over {chars}",
        f"per word     {number(totals['nats_per_word'])} nats, perplexity {number(totals['perplexity_per_word'])} "
        f"over {words} (split at {totals['word_splitter']})",
        f"by document  {number(totals['mean_nll_over_documents'])} nats per token, "
        f"{number(totals['bits_per_byte_over_documents'])} bits per byte: means over documents, each counting the same",
        f"top 1        {number(totals['top1_fraction'])} of the scored tokens are the likeliest one, "
        f"in {totals['greedy_documents']:,} documents all are",
    ]
    return lines + [f"no {name}: {reason}" for name, reason in totals["reasons"].items()]


def interval_text(totals: dict[str, Any]) -> list[str]:
    """The intervals, and how they were made."""
    interval = totals["confidence_interval"]
    found = [
        f"  {number(interval[name][0])} to {number(interval[name][1])} {unit}"
        for name, unit in _LINES.items()
        if interval[name] is not None
    ]
    title = f"interval     {interval['level']:.0%}, {interval['method']}"
    if not found:
        return [f"interval     none: {interval['reason']}"]
    return [f"{title} ({interval['resamples']:,} resamples, seed {interval['seed']})", *found]


def breakdown_text(column: str, block: dict[str, Any], shows_all: bool = False) -> list[str]:
    """One line for each value of a column, or for those with the most tokens."""
    values = block["values"]
    most = sorted(range(len(values)), key=lambda place: (-values[place]["scored_tokens"], place))
    shown = sorted(most if shows_all else most[:_SHOWN_VALUES])
    lines = [(_value_text(values[place]["value"]), values[place]) for place in shown]
    if block["rest"] is not None:
        lines.append(("(rest)", block["rest"]))
    width = max((len(name) for name, _ in lines), default=0)
    width = max(width, len(column))
    head = f"  {column.ljust(width)}  documents         tokens   nll/token    ppl/token  bits/byte"
    rows = [
        f"  {name.ljust(width)}  {line['documents']:>9,}  {line['scored_tokens']:>13,}  {number(line['mean_nll']):>10}"
        f"  {number(line['perplexity_per_token']):>11}  {number(line['bits_per_byte']):>9}"
        for name, line in lines
    ]
    notes = [] if block["note"] is None else [f"  {block['note']}"]
    if left_out := len(values) - len(shown):
        notes.insert(0, f"  and {left_out:,} more values with fewer tokens: --by {column} lists them")
    return [head, *rows, *notes]


def _value_text(value: str | None) -> str:
    if value is None:
        return "(none)"
    shown = printable(value)
    return shown if len(shown) <= _VALUE_WIDTH else "..." + shown[-(_VALUE_WIDTH - 3) :]
