"""What commands with a single result share: where it goes, and which records it lacks.

In: a page of plain data, lines for people. Out: a file, stdout, stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from xentrs.cli.exit_codes import USAGE, CommandError

_SHOWN_REJECTED = 10


def check_output_file(output: str | None) -> None:
    """Refuse, before anything is computed, a file that cannot be written."""
    if output is None:
        return
    if not Path(output).parent.is_dir():
        raise CommandError(f"-o {output}: no such folder", USAGE)
    if Path(output).is_dir():
        raise CommandError(f"-o {output}: is a folder, expected a file", USAGE)


def show_page(
    page: dict[str, Any], lines: Sequence[str], notes: Sequence[str], output: str | None, as_json: bool
) -> None:
    """Write the page where a file is wanted; the page or its lines to stdout, notes to stderr."""
    from xentrs.corpus.json_text import dump_page
    from xentrs.durable import write_atomic

    data = dump_page(page)
    if output is not None:
        write_atomic(Path(output).parent, Path(output).name, data)
    click.echo(data.decode("utf-8") if as_json else "\n".join(lines) + "\n", nl=False)
    sys.stdout.flush()
    for note in notes:
        click.echo(note, err=True)


def say_rejected(rejected: Sequence[Any]) -> None:
    """Name the first records that could not be read, and count the others."""
    from xentrs.report.terminal import printable

    for entry in rejected[:_SHOWN_REJECTED]:
        click.echo(f"left out {printable(entry.source)}:{entry.line}: {printable(entry.reason)}", err=True)
    if len(rejected) > _SHOWN_REJECTED:
        click.echo(f"... and {len(rejected) - _SHOWN_REJECTED:,} more", err=True)
