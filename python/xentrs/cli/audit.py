"""`xentrs audit`: how far the figures of one text and model lie apart by protocol alone.

In: inputs and a model. Out: a table of protocols and findings, or one JSON object.
"""

from __future__ import annotations

import sys
from typing import Any

import rich_click as click

from xentrs.cli.exit_codes import DONE
from xentrs.cli.extras import require_model
from xentrs.cli.score_options import (
    POSITIVE,
    ModelOptions,
    ReadingOptions,
    load_runner,
    make_reading,
    model_options,
    open_inputs,
    reading_options,
    take,
)

_HEADER = ("protocol", "prefix", "window", "stride", "scored", "unscored", "perplexity/token", "bits/byte", "change")


@click.command(name="audit")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@model_options
@reading_options
@click.option("--sample-tokens", type=POSITIVE, default=20_000, show_default=True, help="How much of the input.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def audit_command(inputs: tuple[str, ...], sample_tokens: int, as_json: bool, **options: Any) -> int:
    """Score a sample under every plausible protocol and show how far they differ.

    The sample are the first documents of the inputs (--skip begins later).
    """
    model, reading = take(ModelOptions, options), take(ReadingOptions, options)
    require_model("audit", model.model, model.runner)
    from xentrs.corpus.audit import audit

    known = make_reading(reading)
    sources = open_inputs(inputs, reading, known)
    result = audit(load_runner(model), sources, known, sample_tokens, model.threads)
    if as_json:
        from xentrs.corpus.json_text import dump_page

        click.echo(dump_page(_page(result)).decode("utf-8"), nl=False)
        return DONE
    _show(result)
    return DONE


def _page(result: Any) -> dict[str, Any]:
    lines = [
        {
            "name": line.name,
            "prefix": line.settings.prefix.resolved,
            **vars(line.settings.windowing),
            "same_as": line.same_as,
            "bits_per_byte_change": line.bits_per_byte_change,
            "totals": line.totals,
        }
        for line in result.lines
    ]
    whole = {"documents": result.documents, "tokens": result.tokens, "is_whole": result.is_whole}
    return {**whole, "protocols": lines, "findings": result.findings}


def _show(result: Any) -> None:
    from xentrs.report.terminal import aligned, number

    of = "all" if result.is_whole else "the first"
    click.echo(f"{of} {result.documents:,} documents, {result.tokens:,} tokens", err=True)
    rows = [_HEADER]
    for line in result.lines:
        windowing, totals = line.settings.windowing, line.totals
        change = "-" if line.bits_per_byte_change is None else f"{line.bits_per_byte_change:+.2%}"
        rows.append(
            (
                line.name,
                line.settings.prefix.resolved,
                f"{windowing.window:,}",
                f"{windowing.stride:,}",
                f"{totals['scored_tokens']:,}",
                f"{totals['unscored_tokens']:,}",
                number(totals["perplexity_per_token"]),
                number(totals["bits_per_byte"]),
                change if line.same_as is None else f"{change}  as {line.same_as}",
            )
        )
    for text in aligned(rows):
        print(text, file=sys.stdout)
    for finding in result.findings:
        click.echo(f"- {finding}")
