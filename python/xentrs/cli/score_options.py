"""The options of commands that score, as plain data.

In: what click parsed. Out: `ScoreOptions`, and from it the `Reading` and `Columns` of a run. Commands share these
decorators, so that an option means the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields
from functools import reduce
from typing import Any

import rich_click as click
from click import get_current_context
from click.core import ParameterSource

from xentrs.cli.exit_codes import USAGE, CommandError
from xentrs.models.catalog import DEFAULT_MODEL

POSITIVE = click.IntRange(min=1)


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and on what."""

    model: str | None
    revision: str | None
    dtype: str
    device: str
    runner: str | None
    threads: int | None


@dataclass(frozen=True)
class TokenizerOptions:
    """Whose tokenizer."""

    model: str | None
    revision: str | None
    runner: str | None


@dataclass(frozen=True)
class ReadingOptions:
    """Which records, and what of them."""

    text_key: str
    id_key: str
    context_key: str | None
    continuation_key: str | None
    messages_key: str | None
    by: tuple[str, ...]
    stdin_format: str
    skip: int
    limit: int | None
    shard: str | None


@dataclass(frozen=True)
class ProtocolOptions:
    """What conditions what."""

    protocol: str | None
    prefix: str | None
    prefix_every: str | None
    window: int | None
    stride: int | None
    min_context: int | None
    batch_tokens: int | None


def decorated(options: list[Callable[..., Any]]) -> Callable[..., Any]:
    """A decorator that gives a command these options."""
    return lambda command: reduce(lambda inner, option: option(inner), reversed(options), command)


_MODEL = click.option("--model", metavar="NAME", help=f"Imported name, folder or Hub id.  [default: {DEFAULT_MODEL}]")
_REVISION = click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub id.")
_RUNNER = click.option(
    "--runner", metavar="NAME", help="Back end: an installed entry point of xentrs.runners, or gguf."
)

tokenizer_options = decorated([_MODEL, _REVISION, _RUNNER])

model_options = decorated(
    [
        _MODEL,
        _REVISION,
        click.option(
            "--dtype",
            type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
            default="auto",
            show_default=True,
            help="auto: as stored, bfloat16 only where the CPU multiplies it.",
        ),
        click.option("--device", default="cpu", show_default=True, help="Where the model's body runs."),
        _RUNNER,
        click.option(
            "--threads",
            type=POSITIVE,
            help="Threads of torch and of the kernels.  [default: cores within affinity and cgroup quota]",
        ),
    ]
)

_TEXT_OPTIONS = [
    click.option("--text-key", default="text", show_default=True, help="Field of the text."),
    click.option("--id-key", default="id", show_default=True, help="Field of the id; without one: file#line."),
]
_FIELD_OPTIONS = [
    *_TEXT_OPTIONS,
    click.option("--context-key", metavar="KEY", help="Pairs: field of the context, which conditions only."),
    click.option("--continuation-key", metavar="KEY", help="Pairs: field of the continuation, which is scored."),
    click.option(
        "--messages-key",
        metavar="KEY",
        help="Chats: field of the messages; the tokenizer's template is applied, assistant turns are scored.",
    ),
]
_CHOICE_OPTIONS = [
    click.option("--stdin-format", type=click.Choice(["txt", "jsonl"]), default="txt", show_default=True),
    click.option("--skip", type=click.IntRange(min=0), default=0, help="Leave out so many records at the start."),
    click.option("--limit", type=POSITIVE, help="Read at most so many records."),
]

reading_options = decorated(
    [
        *_FIELD_OPTIONS,
        click.option("--by", multiple=True, metavar="KEY", help="Totals by the values of this field, too; repeatable."),
        *_CHOICE_OPTIONS,
        click.option(
            "--shard", metavar="I/N", help="Every N-th record from the I-th on: one process each, then merge."
        ),
    ]
)
record_options = decorated([*_FIELD_OPTIONS, *_CHOICE_OPTIONS])
"""For commands that take records as they come: nothing is grouped or spread over processes."""
text_options = decorated([*_TEXT_OPTIONS, *_CHOICE_OPTIONS])
"""For those that know texts alone."""

protocol_options = decorated(
    [
        click.option(
            "--protocol",
            type=click.Choice(["lm-eval", "hf-strided", "llama.cpp", "full"]),
            help="Prefix and windows as another tool has them; full: as much context as the model takes.",
        ),
        click.option(
            "--prefix",
            metavar="none|bos|eos|ID|auto",
            help="Token that conditions and is not scored. auto (default): BOS where the tokenizer adds it.",
        ),
        click.option(
            "--prefix-every", type=click.Choice(["document", "window"]), help="Where it stands.  [default: document]"
        ),
        click.option("--window", type=POSITIVE, help="Inputs per forward pass.  [default: min(model's maximum, 2048)]"),
        click.option("--stride", type=POSITIVE, help="Tokens each later window adds.  [default: the window]"),
        click.option(
            "--min-context", type=click.IntRange(min=0), help="The same as --stride: window less this many tokens."
        ),
        click.option("--batch-tokens", type=POSITIVE, help="Inputs per batch, padding included.  [default: 1024]"),
    ]
)


def take(kind: type[Any], options: dict[str, Any]) -> Any:
    """Moves the fields of `kind` out of what click parsed into one."""
    return kind(**{field.name: options.pop(field.name) for field in fields(kind)})


def take_records(options: dict[str, Any]) -> ReadingOptions:
    """What `record_options` or `text_options` gave."""
    for name in ("context_key", "continuation_key", "messages_key", "shard"):
        options.setdefault(name)
    options.setdefault("by", ())
    reading: ReadingOptions = take(ReadingOptions, options)
    return reading


def given_beyond(allowed: Collection[str]) -> str | None:
    """The first option or argument of the running command that was given and is not among `allowed`."""
    context = get_current_context()
    for parameter in context.command.params:
        is_default = context.get_parameter_source(str(parameter.name)) == ParameterSource.DEFAULT
        if not is_default and parameter.name not in allowed:
            return parameter.opts[-1]
    return None


def make_reading(options: ReadingOptions) -> Any:
    """The `Reading` that was asked for."""
    from xentrs.corpus.reading import Reading, parse_shard

    shard, shard_count = parse_shard(options.shard) if options.shard is not None else (0, 1)
    return Reading(
        text_key=options.text_key,
        id_key=options.id_key,
        context_key=options.context_key,
        continuation_key=options.continuation_key,
        messages_key=options.messages_key,
        by=options.by,
        skip=options.skip,
        limit=options.limit,
        shard=shard,
        shard_count=shard_count,
    )


def open_inputs(inputs: Iterable[str], reading: ReadingOptions, known: Any) -> Any:
    """The checked sources; warnings go to stderr."""
    from xentrs.corpus.sources import InputError, open_sources

    try:
        sources, warnings = open_sources(list(inputs), reading.stdin_format, known)
    except InputError as error:
        raise CommandError(str(error), USAGE) from None
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    return sources


def load_runner(options: ModelOptions) -> Any:
    """The loaded and checked model; torch and our kernels get the same threads."""
    import xentrs
    from xentrs.models import ModelError, load_model, set_threads

    try:
        set_threads(options.threads or xentrs.num_threads())
        runner = load_model(
            options.model or DEFAULT_MODEL, options.revision, options.dtype, options.device, options.runner
        )
        runner.prepare()
    except ModelError as error:
        raise CommandError(str(error), USAGE) from None
    return runner


def parse_numbers(text: str, option: str) -> tuple[float, ...]:
    """`"0.5,2"` to numbers."""
    try:
        return tuple(float(piece) for piece in text.split(",") if piece.strip())
    except ValueError:
        raise CommandError(f"{option} {text}: expected numbers with commas between", USAGE) from None
