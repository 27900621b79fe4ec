"""`xentrs score`: documents and a model in; per-document and per-token likelihoods out.

In: files or stdin, and options. Out: a RUN folder with -o, else a table or one JSON object on stdout; totals
and the best and worst documents on stderr.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich_click as click

from xentrs.cli.exit_codes import DONE, FAILED, QUARANTINED, USAGE, CommandError
from xentrs.cli.extras import require, require_model
from xentrs.cli.score_options import (
    POSITIVE,
    ModelOptions,
    ProtocolOptions,
    ReadingOptions,
    load_runner,
    make_reading,
    model_options,
    open_inputs,
    parse_numbers,
    protocol_options,
    reading_options,
    take,
)
from xentrs.cli.stored import StoredOptions, check_stored, open_job, stored_options
from xentrs.models.catalog import DEFAULT_MODEL

DEFAULT_MODEL_LINE = (
    f"{DEFAULT_MODEL} (default; instruct-tuned, dequantised from 4 bits): not comparable with published SmolLM2 figures"
)
_SHOWN_QUARANTINE = 10
_UNSCORED_WARNING = 0.001
_MIN_BAD_RECORDS = 100


@dataclass(frozen=True)
class OutputOptions:
    """What comes out, and where."""

    output: str | None
    tokens: str | None
    inverse_temperatures: str | None
    top_k: int | None
    keep_text: bool
    max_bad_fraction: float
    as_plan: bool
    as_json: bool
    as_jsonl: bool
    strict: bool
    quiet: bool


@dataclass(frozen=True)
class ScoreOptions:
    """What the user typed."""

    inputs: tuple[str, ...]
    model: ModelOptions
    reading: ReadingOptions
    protocol: ProtocolOptions
    out: OutputOptions
    stored: StoredOptions


@click.command(name="score")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("-o", "--output", metavar="RUN", help="Write a RUN folder, or go on with one.")
@model_options
@reading_options
@protocol_options
@stored_options
@click.option(
    "--tokens",
    type=click.Choice(["none", "basic", "detect", "all"]),
    help="Columns of each token; detect: what detection needs; all: with the top k.  [default: basic]",
)
@click.option("--inverse-temperatures", metavar="B,B,...", help="With detect or all: nll, mean and variance at each.")
@click.option("--top-k", type=POSITIVE, help="With all: how many ids and log-probabilities.  [default: 5]")
@click.option("--keep-text", is_flag=True, help="Keep the texts in the RUN; else readers read the inputs again.")
@click.option(
    "--max-bad-fraction",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help=f"Exit code 1 if more of the records are bad, and more than {_MIN_BAD_RECORDS}.",
)
@click.option(
    "--plan", "as_plan", is_flag=True, help="Say what it would take, from a short calibration; score nothing."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout (with -o: the summary).")
@click.option("--jsonl", "as_jsonl", is_flag=True, help="A line of JSON for each document, as they are scored.")
@click.option("--strict", is_flag=True, help="Exit code 3 also for unscorable documents and unscored tokens.")
@click.option("--quiet", is_flag=True, help="No progress and no totals on stderr.")
def score_command(inputs: tuple[str, ...], **options: Any) -> int:
    """Exact per-token likelihoods of documents.

    INPUT is a .txt file (one document), a .jsonl file (one document per line), either with .gz or .zst behind it, a
    .parquet file (one document per row), a folder of such files, a pattern in quotes ('data/**/*.jsonl.gz') or - for
    stdin. Stored --logits or --hidden states are scored without a model.
    """
    kinds = (ModelOptions, ReadingOptions, ProtocolOptions, OutputOptions, StoredOptions)
    taken = ScoreOptions(inputs, *(take(kind, options) for kind in kinds))
    check_stored(taken.stored, inputs)
    return _score_stored(taken) if taken.stored.is_given else _score(taken)


def _score(options: ScoreOptions) -> int:
    out = options.out
    columns = _columns(out)
    if options.model.model is None:
        click.echo(DEFAULT_MODEL_LINE, err=True)
    require_model("score", options.model.model, options.model.runner)
    if out.output is not None or out.as_plan:
        require("score", ("pyarrow",))
    from xentrs.corpus.run import text_job

    sources = open_inputs(options.inputs, options.reading, make_reading(options.reading))
    runner, settings = prepare(options.model, options.reading, options.protocol, out.quiet, columns, out.keep_text)
    if out.as_plan:
        from xentrs.cli.plan import show_plan

        return show_plan(runner, sources, settings, out.as_json)
    return _run(out, text_job(runner, sources, settings))


def _score_stored(options: ScoreOptions) -> int:
    out = options.out
    columns = _columns(out)
    if out.output is not None:
        require("score", ("pyarrow",))
    return _run(out, open_job(options.stored, columns, options.model.threads, out.quiet))


def _run(out: OutputOptions, job: Any) -> int:
    """Run a job, and show what came out."""
    from xentrs.corpus.run import run_job
    from xentrs.report import Progress

    output = Path(out.output) if out.output is not None else None
    on_part = _print_lines if out.as_jsonl else None
    with Progress(sum(job.byte_counts), sys.stderr, out.quiet) as progress:
        result = run_job(job, output, progress, on_part)
    _show_data(out, result)
    _show_summary(out, result, output)
    return _exit_code(out, result.summary["totals"])


def _columns(out: OutputOptions) -> Any:
    """The `Columns` that were asked for; options that would do nothing are refused."""
    from xentrs.corpus.settings import Columns

    level = out.tokens or "basic"
    if out.as_json and out.as_jsonl:
        raise CommandError("--json and --jsonl exclude each other", USAGE)
    if out.inverse_temperatures is not None and level not in ("detect", "all"):
        raise CommandError("--inverse-temperatures needs --tokens detect or all", USAGE)
    if out.top_k is not None and level != "all":
        raise CommandError("--top-k needs --tokens all", USAGE)
    temperatures = parse_numbers(out.inverse_temperatures or "", "--inverse-temperatures")
    return Columns(level, temperatures, out.top_k or 5)  # type: ignore[arg-type]  # click has checked it


def prepare(
    model: ModelOptions, reading: ReadingOptions, protocol: ProtocolOptions, quiet: bool, columns: Any, keep_text: bool
) -> tuple[Any, Any]:
    """The loaded, checked model and the resolved settings."""
    from xentrs.corpus import resolve_settings
    from xentrs.corpus.settings import protocol_block
    from xentrs.report import protocol_text

    known = make_reading(reading)
    runner = load_runner(model)
    settings = resolve_settings(
        runner, **vars(protocol), reading=known, columns=columns, keep_text=keep_text, num_threads=model.threads
    )
    for notice in runner.notices:
        click.echo(notice, err=True)
    if not quiet:
        click.echo(protocol_text(protocol_block(runner, settings)), err=True)
        click.echo(f"dtype {runner.info.dtype}: {runner.info.dtype_reason}", err=True)
    return runner, settings


def _print_lines(part: Any, columns: Any) -> None:
    """A part's documents as lines of JSON on stdout."""
    from xentrs.corpus.aggregates import document_rows
    from xentrs.corpus.json_text import dump_line

    for row in document_rows(columns.documents):
        click.echo(dump_line(row).decode("utf-8"), nl=False)
    sys.stdout.flush()


def _show_data(options: OutputOptions, result: Any) -> None:
    """The result itself, to stdout."""
    from xentrs.corpus.json_text import dump_page
    from xentrs.report import document_table

    if options.as_json:
        page = result.summary
        if options.output is None:
            page = {**page, "documents": result.documents, "quarantine": result.quarantine}
        click.echo(dump_page(page).decode("utf-8"), nl=False)
    elif options.output is None and not options.as_jsonl:
        document_table(result.documents, sys.stdout)
    sys.stdout.flush()


def _show_summary(options: OutputOptions, result: Any, output: Path | None) -> None:
    """Totals and extremes for people, to stderr."""
    from xentrs.report import extremes_text, totals_text

    if options.quiet:
        return
    lines = _quarantine_lines(result, output)
    if result.already_finished:
        lines.append(f"{output} is finished already: nothing was computed")
    elif result.resumed_parts:
        lines.append(f"{output} was resumed: {result.resumed_parts} parts were there already")
    lines += totals_text(result.summary["totals"])
    lines += _unscored_lines(result.summary)
    if result.tokens_scored_now:
        rate = result.tokens_scored_now / max(result.seconds, 1e-9)
        lines.append(f"speed        {rate:,.0f} tokens/s, {result.seconds:.1f} s without loading")
    if result.summary["totals"]["scored_documents"] > 1 and result.summary["best_documents"]:
        lines += extremes_text("best documents (bits per byte)", result.summary["best_documents"])
        lines += extremes_text("worst documents (bits per byte)", result.summary["worst_documents"])
    if output is not None:
        lines.append(f"written to {output}")
    click.echo("\n".join(lines), err=True)


def _quarantine_lines(result: Any, output: Path | None) -> list[str]:
    count = result.summary["totals"]["quarantined"]
    shown = result.quarantine[:_SHOWN_QUARANTINE]
    lines = [f"quarantined {entry['source']}:{entry['line']}: {entry['reason']}" for entry in shown]
    if count and output is not None:
        lines.append(f"{count:,} records are in quarantine: {output}/quarantine.jsonl")
    elif count > len(shown):
        lines.append(f"... and {count - len(shown):,} more (--json lists all)")
    return lines


def _exit_code(options: OutputOptions, totals: dict[str, Any]) -> int:
    bad, records = totals["quarantined"], totals["quarantined"] + totals["documents"]
    if bad > _MIN_BAD_RECORDS and bad > options.max_bad_fraction * records:
        click.echo(f"Error: {bad:,} of {records:,} records are bad, more than --max-bad-fraction allows", err=True)
        return FAILED
    unscored = totals["unscored_tokens"] > _UNSCORED_WARNING * totals["tokens"]
    incomplete = bad > 0 or (options.strict and (unscored or totals["unscorable_documents"] > 0))
    return QUARANTINED if incomplete else DONE


def _unscored_lines(summary: dict[str, Any]) -> list[str]:
    """A warning where more than a thousandth of the tokens has no score, and what would change that."""
    totals, protocol = summary["totals"], summary["protocol"]
    if totals["unscored_tokens"] <= _UNSCORED_WARNING * totals["tokens"]:
        return []
    share = totals["unscored_tokens"] / totals["tokens"]
    why = "without a prefix nothing predicts a document's first token; --prefix bos or eos scores it"
    if protocol["window_rule"] == "halves":
        why = "llama.cpp scores the second half of each window and drops the last window that is not full"
    elif protocol["protocol"] == "hf-strided":
        why = "the transformers recipe has no prefix, so the first token of a document is never scored"
    elif protocol["prefix_token_id"] is not None:
        why = "see status and reason in the documents table"
    counted = f"{totals['unscored_tokens']:,} of {totals['tokens']:,} tokens"
    return [f"warning: {counted} ({share:.2%}) have no score: {why}"]
