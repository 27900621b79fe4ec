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

from xentrs.cli.exit_codes import DONE, QUARANTINED, USAGE, CommandError
from xentrs.cli.extras import require
from xentrs.models.catalog import DEFAULT_MODEL

_DEFAULT_MODEL_LINE = (
    f"{DEFAULT_MODEL} (default; instruct-tuned, dequantised from 4 bits): not comparable with published SmolLM2 figures"
)
_SHOWN_QUARANTINE = 10


@dataclass(frozen=True)
class ScoreOptions:
    """What the user typed."""

    inputs: tuple[str, ...]
    output: str | None
    model: str | None
    revision: str | None
    dtype: str
    device: str
    text_key: str
    id_key: str
    stdin_format: str
    prefix: str
    window: int | None
    stride: int | None
    batch_tokens: int | None
    threads: int | None
    limit: int | None
    as_json: bool
    strict: bool
    quiet: bool


_POSITIVE = click.IntRange(min=1)


@click.command(name="score")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="RUN", help="Write a RUN folder, or go on with one.")
@click.option("--model", metavar="NAME", help=f"Imported name, folder or Hub id.  [default: {DEFAULT_MODEL}]")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub id.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default="auto",
    show_default=True,
)
@click.option("--device", default="cpu", show_default=True, help="Where the model's body runs.")
@click.option("--text-key", default="text", show_default=True, help="Key of the text in .jsonl.")
@click.option("--id-key", default="id", show_default=True, help="Key of the id in .jsonl; without one: file#line.")
@click.option("--stdin-format", type=click.Choice(["txt", "jsonl"]), default="txt", show_default=True)
@click.option(
    "--prefix",
    default="auto",
    show_default=True,
    metavar="none|bos|eos|ID|auto",
    help="Token before each document; it conditions, is not scored. auto: BOS where the tokenizer adds it.",
)
@click.option("--window", type=_POSITIVE, help="Inputs per forward pass.  [default: min(model's maximum, 2048)]")
@click.option("--stride", type=_POSITIVE, help="Tokens each later window adds.  [default: the window]")
@click.option("--batch-tokens", type=_POSITIVE, help="Inputs per batch, padding included.  [default: 2048]")
@click.option("--threads", type=_POSITIVE, help="Threads of torch and of the kernels.  [default: their own choice]")
@click.option("--limit", type=_POSITIVE, help="Score at most so many documents.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout (with -o: the summary).")
@click.option("--strict", is_flag=True, help="Exit code 3 also for unscorable documents.")
@click.option("--quiet", is_flag=True, help="No progress and no totals on stderr.")
def score_command(**options: Any) -> int:
    """Exact per-token likelihoods of documents.

    INPUT is a .txt file (one document), a .jsonl file (one document per line), either with .gz or .zst behind it, a
    folder of such files, a pattern in quotes ('data/**/*.jsonl.gz') or - for stdin.
    """
    return _score(ScoreOptions(**options))


def _score(options: ScoreOptions) -> int:
    if options.model is None:
        click.echo(_DEFAULT_MODEL_LINE, err=True)
    require("score", ("torch", "transformers", "tokenizers", "safetensors"))
    if options.output is not None:
        require("score", ("pyarrow",))
    from xentrs.corpus import open_sources, score_corpus
    from xentrs.corpus.sources import InputError
    from xentrs.report import Progress

    try:
        sources, warnings = open_sources(options.inputs, options.stdin_format)
    except InputError as error:
        raise CommandError(str(error), USAGE) from None
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    runner, settings = _prepare(options)
    output = Path(options.output) if options.output is not None else None
    with Progress(sum(source.byte_count for source in sources), sys.stderr, options.quiet) as progress:
        result = score_corpus(runner, sources, settings, output, progress)
    _show_data(options, result)
    _show_summary(options, result, output)
    return _exit_code(options, result.summary["totals"])


def _prepare(options: ScoreOptions) -> tuple[Any, Any]:
    """The loaded, checked model and the resolved settings."""
    from xentrs.corpus import resolve_settings
    from xentrs.models import ModelError, load_model, set_threads
    from xentrs.report import protocol_text

    if options.threads is not None:
        set_threads(options.threads)
    try:
        runner = load_model(options.model or DEFAULT_MODEL, options.revision, options.dtype, options.device)
        runner.prepare()
    except ModelError as error:
        raise CommandError(str(error), USAGE) from None
    settings = resolve_settings(
        runner,
        prefix=options.prefix,
        window=options.window,
        stride=options.stride,
        batch_tokens=options.batch_tokens,
        text_key=options.text_key,
        id_key=options.id_key,
        limit=options.limit,
        num_threads=options.threads,
    )
    for notice in runner.notices:
        click.echo(notice, err=True)
    if not options.quiet:
        from xentrs.corpus.settings import protocol_block

        click.echo(protocol_text(protocol_block(runner, settings)), err=True)
        click.echo(f"dtype {runner.info.dtype}: {runner.info.dtype_reason}", err=True)
    return runner, settings


def _show_data(options: ScoreOptions, result: Any) -> None:
    """The result itself, to stdout."""
    from xentrs.corpus.json_text import dump_page
    from xentrs.report import document_table

    if options.as_json:
        page = result.summary
        if options.output is None:
            page = {**page, "documents": result.documents, "quarantine": result.quarantine}
        click.echo(dump_page(page).decode("utf-8"), nl=False)
    elif options.output is None:
        document_table(result.documents, sys.stdout)
    sys.stdout.flush()


def _show_summary(options: ScoreOptions, result: Any, output: Path | None) -> None:
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
    if result.tokens_scored_now:
        rate = result.tokens_scored_now / max(result.seconds, 1e-9)
        lines.append(f"speed        {rate:,.0f} tokens/s, {result.seconds:.1f} s without loading")
    if result.summary["totals"]["scored_documents"] > 1:
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


def _exit_code(options: ScoreOptions, totals: dict[str, Any]) -> int:
    incomplete = totals["quarantined"] > 0 or (options.strict and totals["unscorable_documents"] > 0)
    return QUARANTINED if incomplete else DONE
