"""`xentrs score --logits` and `--hidden`: the options of a run without a model.

In: what the user typed. Out: a `Job`, or a refusal of options that need a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rich_click as click

from xentrs.cli.exit_codes import USAGE, CommandError
from xentrs.cli.extras import require
from xentrs.cli.score_options import decorated, given_beyond


@dataclass(frozen=True)
class StoredOptions:
    """Which files of numbers."""

    logits: tuple[str, ...]
    hidden: tuple[str, ...]
    head: str | None
    head_bias: str | None
    targets: tuple[str, ...]
    shift: int | None
    mmap: bool

    @property
    def is_given(self) -> bool:
        """Whether there are rows to score."""
        return bool(self.logits or self.hidden)


_OPTIONS: list[Callable[..., Any]] = [
    click.option(
        "--logits",
        multiple=True,
        metavar="FILE",
        help="Instead of INPUT and a model: logits, (rows, vocab) or (documents, length, vocab), in .npy or "
        ".safetensors (FILE.safetensors:NAME); repeatable.",
    ),
    click.option(
        "--hidden", multiple=True, metavar="FILE", help="The same with hidden states, of a --head; repeatable."
    ),
    click.option("--head", metavar="FILE", help="Of --hidden: weights, (vocab, width)."),
    click.option("--head-bias", metavar="FILE", help="Of --head: one number for each row."),
    click.option(
        "--targets",
        multiple=True,
        metavar="FILE",
        help="Token ids, one file for each of --logits or --hidden; -100 is not scored.",
    ),
    click.option(
        "--shift",
        type=click.IntRange(0, 1),
        help="1: row i predicts target i + 1, as a model's logits do.  [default: 0]",
    ),
    click.option(
        "--mmap", is_flag=True, help="Map the files of rows: no copy, but a file cut meanwhile ends the process."
    ),
]
_GO_WITH_THEM = frozenset(
    {"inputs", "logits", "hidden", "head", "head_bias", "targets", "shift", "mmap", "threads", "output", "tokens"}
    | {"inverse_temperatures", "top_k", "max_bad_fraction", "as_json", "as_jsonl", "strict", "quiet"}
)


stored_options = decorated(_OPTIONS)


def check_stored(options: StoredOptions, inputs: tuple[str, ...]) -> None:
    """Refuse what does not go together: INPUT and stored rows, or an option that would do nothing."""
    rows = "--logits" if options.logits else "--hidden"
    given = [name for name, value in vars(options).items() if value not in (None, (), False)]
    if not options.is_given:
        if given:
            raise CommandError(f"--{given[0].replace('_', '-')} needs --logits or --hidden", USAGE)
        if not inputs:
            raise click.UsageError("Missing argument 'INPUT...'.")
        return
    if options.logits and options.hidden:
        raise CommandError("--logits and --hidden exclude each other", USAGE)
    if inputs:
        raise CommandError(f"{rows} takes the place of INPUT: {inputs[0]}; say {rows} again for each file", USAGE)
    if options.hidden and options.head is None:
        raise CommandError("--hidden needs --head", USAGE)
    if options.logits and (options.head or options.head_bias):
        raise CommandError("--head and --head-bias go with --hidden", USAGE)
    if (option := given_beyond(_GO_WITH_THEM)) is not None:
        raise CommandError(f"{option} does not go with {rows}: it needs a model or texts", USAGE)


def open_job(options: StoredOptions, columns: Any, threads: int | None, quiet: bool) -> Any:
    """The `Job` of the given files."""
    rows = options.logits or options.hidden
    if any(".safetensors" in name for name in (*rows, *options.targets, options.head or "", options.head_bias or "")):
        require("score", ("safetensors",))
    from xentrs.corpus.stored import stored_job
    from xentrs.errors import XentrsError

    try:
        job = stored_job(
            rows,
            options.targets,
            options.head,
            options.head_bias,
            shift=options.shift or 0,
            columns=columns,
            num_threads=threads,
            is_mapped=options.mmap,
        )
    except XentrsError as error:
        raise CommandError(str(error), USAGE) from None
    if not quiet:
        protocol = job.protocol
        click.echo(
            f"{protocol['model']}, {protocol['dtype']}, vocabulary {protocol['vocab_size']:,}, shift "
            f"{protocol['shift']}, kernel {protocol['isa']}",
            err=True,
        )
    return job
