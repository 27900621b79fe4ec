"""`xentrs freq`: how often each token occurs in a corpus, for DC-PDD.

In: inputs and a model, whose tokenizer counts; or tables. Out: one table, a file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import rich_click as click

from xentrs.cli.exit_codes import DONE, QUARANTINED, USAGE, CommandError
from xentrs.cli.extras import require_tokenizer
from xentrs.cli.score import DEFAULT_MODEL_LINE
from xentrs.cli.score_options import (
    ReadingOptions,
    TokenizerOptions,
    make_reading,
    open_inputs,
    reading_options,
    take,
    tokenizer_options,
)


@click.group(name="freq")
def freq_group() -> None:
    """Token counts of a corpus: what dc-pdd of `xentrs detect` compares with."""


@freq_group.command(name="build")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-o", "--output", metavar="FILE", required=True, help="The table; it is replaced when it is whole.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
@tokenizer_options
@reading_options
def build_command(inputs: tuple[str, ...], output: str, quiet: bool, **options: Any) -> int:
    """Count the tokens of INPUT as the model's tokenizer cuts it.

    Of a transformers model the tokenizer alone is loaded: no weights need be there. Shards (--shard) are added up by
    `freq merge`.
    """
    model, reading = take(TokenizerOptions, options), take(ReadingOptions, options)
    require_tokenizer("freq", model.model, model.runner)
    _check_folder(output)
    if model.model is None:
        click.echo(DEFAULT_MODEL_LINE, err=True)
    from xentrs.detect.counting import count_tokens
    from xentrs.report import Progress

    known = make_reading(reading)
    sources = open_inputs(inputs, reading, known)
    tokenizer = _load_tokenizer(model)
    with Progress(sum(source.byte_count for source in sources), sys.stderr, quiet) as progress:
        table, rejected = count_tokens(tokenizer, sources, known, progress)
    table.save(output)
    _say(table, output, quiet)
    for entry in rejected[:10]:
        click.echo(f"left out {entry.source}:{entry.line}: {entry.reason}", err=True)
    if len(rejected) > 10:
        click.echo(f"... and {len(rejected) - 10:,} more", err=True)
    return QUARANTINED if rejected else DONE


@freq_group.command(name="merge")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("-o", "--output", metavar="FILE", required=True, help="The table; it is replaced when it is whole.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
def merge_command(files: tuple[str, ...], output: str, quiet: bool) -> int:
    """Add up tables of one tokenizer: of shards, or of several corpora."""
    _check_folder(output)
    first, *others = [load_table(file) for file in files]
    for other in others:
        first.merge_state(other)
    first.save(output)
    _say(first, output, quiet)
    return DONE


def load_table(file: str) -> Any:
    """The table of a file; what is none is a usage error."""
    from xentrs.detect.frequency import TokenFrequencies
    from xentrs.errors import FormatError

    try:
        return TokenFrequencies.load(file)
    except FileNotFoundError:
        raise CommandError(f"{file}: no such file", USAGE) from None
    except FormatError as error:
        raise CommandError(str(error), USAGE) from None


def _load_tokenizer(options: TokenizerOptions) -> Any:
    from xentrs.models import DEFAULT_MODEL, ModelError, load_tokenizer

    try:
        return load_tokenizer(options.model or DEFAULT_MODEL, options.revision, options.runner)
    except ModelError as error:
        raise CommandError(str(error), USAGE) from None


def _check_folder(output: str) -> None:
    if not Path(output).parent.is_dir():
        raise CommandError(f"-o {output}: no such folder", USAGE)


def _say(table: Any, output: str, quiet: bool) -> None:
    if not quiet:
        counted = f"{table.token_count:,} tokens of {table.document_count:,} documents, vocabulary {table.vocab_size:,}"
        click.echo(f"{counted}, tokenizer {table.tokenizer_sha256[:12]}: written to {output}", err=True)
