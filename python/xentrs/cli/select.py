"""`xentrs select`: which records of a corpus resemble a target, by how well they compress together.

In: candidates and a target. Out: the chosen records as lines of JSON, with all their fields and `alignment`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich_click as click

from xentrs.cli.exit_codes import DONE, QUARANTINED, USAGE, CommandError
from xentrs.cli.extras import require
from xentrs.cli.results import check_output_file, say_rejected
from xentrs.cli.score_options import POSITIVE, make_reading, open_inputs, take, take_records, text_options

_NEED_PYARROW = (".parquet", ".pq", ".zst")


@dataclass(frozen=True)
class SelectOptions:
    """What is compared with what, and what of it is written."""

    target: tuple[str, ...]
    target_text_key: str | None
    count: int | None
    scores_only: bool
    score_key: str
    method: str
    level: int | None
    threads: int | None
    output: str | None
    quiet: bool


@click.command(name="select")
@click.argument("inputs", nargs=-1, required=True, metavar="CANDIDATES...")
@click.option("--target", multiple=True, required=True, metavar="TARGET", help="Texts to resemble; repeatable.")
@click.option("--target-text-key", metavar="KEY", help="Field of a target's text.  [default: --text-key]")
@click.option("-n", "--count", type=POSITIVE, metavar="N", help="How many records.")
@click.option("--scores-only", is_flag=True, help="Choose none: a line with id and alignment for each candidate.")
@click.option("--score-key", default="alignment", show_default=True, metavar="KEY", help="The field that is added.")
@click.option("--method", type=click.Choice(["gzip", "lz4", "zlib"]), default="gzip", show_default=True)
@click.option(
    "--level", type=click.IntRange(min=0), help="Of compression.  [default: gzip 9, zlib 6, lz4 0, as the libraries]"
)
@click.option("--threads", type=POSITIVE, help="Of the compressors.  [default: cores within affinity and cgroup quota]")
@click.option("-o", "--output", metavar="FILE", help="Write a file, whole or not at all, instead of stdout.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
@text_options
def select_command(inputs: tuple[str, ...], **options: Any) -> int:
    """The records that resemble a target most (ZIP-FIT), best first; no model runs.

    CANDIDATES and TARGET are read as INPUT of `xentrs score`. Candidates are streamed; only the chosen ones are kept.
    """
    taken, reading = take(SelectOptions, options), take_records(options)
    if (taken.count is None) != taken.scores_only:
        raise CommandError("select needs either -n N or --scores-only", USAGE)
    require("select", ("lz4",) if taken.method == "lz4" else ())
    require("select", ("pyarrow",) if any(name.endswith(_NEED_PYARROW) for name in (*inputs, *taken.target)) else ())
    check_output_file(taken.output)
    from xentrs.corpus.originals import require_absent
    from xentrs.corpus.reading import Reading
    from xentrs.detect.candidates import Counted, align_records, best_of, read_targets
    from xentrs.report import Progress

    known = make_reading(reading)
    target_reading = Reading(text_key=taken.target_text_key or reading.text_key)
    targets = read_targets(open_inputs(taken.target, reading, target_reading), target_reading)
    sources = open_inputs(inputs, reading, known)
    if not taken.scores_only:
        require_absent(sources, known, taken.score_key)
    counted = Counted()
    compression = {"method": taken.method, "level": taken.level, "num_threads": taken.threads}
    with Progress(sum(source.byte_count for source in sources), sys.stderr, taken.quiet, "records") as progress:
        candidates = align_records(sources, known, targets, counted, progress, **compression)
        if taken.scores_only:
            chosen = _write(_score_lines(candidates, sources), taken.output)
        else:
            chosen = _write(
                _record_lines(best_of(candidates, taken.count or 0), sources, taken.score_key), taken.output
            )
    say_rejected(counted.rejected)
    if not taken.quiet:
        click.echo("\n".join(_notes(counted, len(targets), chosen, taken)), err=True)
    return QUARANTINED if counted.rejected else DONE


def _score_lines(candidates: Iterable[Any], sources: Any) -> Iterator[bytes]:
    from xentrs.corpus.json_text import dump_line

    for entry in candidates:
        page = {"id": entry.id, "source": sources[entry.source].name, "line": entry.line, "alignment": entry.alignment}
        yield dump_line({"document": entry.number, **page})


def _record_lines(chosen: list[Any], sources: Any, key: str) -> Iterator[bytes]:
    """The chosen records, read again with all their fields, in the order of `chosen`."""
    from xentrs.corpus.originals import lines_with

    by_source: dict[int, dict[int, float]] = {}
    for entry in chosen:
        by_source.setdefault(entry.source, {})[entry.line] = entry.alignment
    lines = {
        (place, line): record
        for place, values in by_source.items()
        for line, record in lines_with(sources[place], values, key)
    }
    return (lines[entry.source, entry.line] for entry in chosen)


def _write(lines: Iterable[bytes], output: str | None) -> int:
    """To a file or to stdout; how many there were."""
    from xentrs.durable import open_atomic

    count = 0
    if output is None:
        for line in lines:
            click.echo(line.decode("utf-8"), nl=False)
            count += 1
        sys.stdout.flush()
        return count
    with open_atomic(Path(output).parent, Path(output).name) as file:
        for line in lines:
            file.write(line)
            count += 1
    return count


def _notes(counted: Any, target_count: int, written: int, options: SelectOptions) -> list[str]:
    to = "" if options.output is None else f" to {options.output}"
    notes = [
        f"{counted.candidates:,} candidates against {target_count:,} texts of the target by {options.method}: "
        f"{written:,} written{to}"
    ]
    if counted.in_target:
        notes.append(f"warning: {counted.in_target:,} candidates are texts of the target themselves")
    if counted.empty:
        notes.append(f"{counted.empty:,} candidates have no text: alignment 0")
    if options.count is not None and written < options.count:
        notes.append(f"there are fewer than {options.count:,} candidates: all are written")
    return notes
