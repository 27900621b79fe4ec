"""`xentrs detect`: was this text in the training data, was it written by a machine, and how sure is that?

In: inputs and a model, or RUNs whose tokens were kept; perhaps labels. Out: scores.parquet in the RUN or in a folder of
its own, with labels evaluation.json and, of documents that have none, decisions.parquet too; a table on stdout or one
JSON object.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich_click as click

from xentrs.cli.detect_report import judgement_lines, note_lines, table_lines
from xentrs.cli.exit_codes import DONE, USAGE, CommandError
from xentrs.cli.extras import require
from xentrs.cli.freq import load_table
from xentrs.cli.score_options import (
    ModelOptions,
    ProtocolOptions,
    ReadingOptions,
    given_beyond,
    model_options,
    protocol_options,
    reading_options,
    take,
)

_GO_WITH_RUNS = frozenset({"inputs", "output", "label_key", "scores", "frequencies", "as_json", "quiet"})
_LABELS = "1/0, true/false, member/nonmember or machine/human"


@dataclass(frozen=True)
class DetectOptions:
    """What is asked of the scores."""

    output: str | None
    label_key: str | None
    scores: str
    reference: str | None
    frequencies: str | None
    shots: str | None
    member_shots: str | None
    inverse_temperatures: str | None
    keep_text: bool
    as_json: bool
    quiet: bool


@click.command(name="detect")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-o", "--output", metavar="RUN", help="The RUN folder to write, or to go on with; of RUNs: where scores go."
)
@click.option(
    "--label-key", metavar="KEY", help=f"Field of the label: {_LABELS}; none: decided against known non-members."
)
@click.option(
    "--scores", default="all", show_default=True, metavar="all|membership|machine|NAME,...", help="Which scores."
)
@click.option("--reference", metavar="MODEL", help="A second model: ref-*, and with the same tokenizer binoculars etc.")
@click.option("--frequencies", metavar="FILE", help="Token counts of `xentrs freq build`: dc-pdd.")
@click.option("--shots", metavar="FILE", help="Texts that are no members and not among the inputs: recall.")
@click.option("--member-shots", metavar="FILE", help="Members besides, for con-recall.")
@click.option("--inverse-temperatures", metavar="B,B,...", help="For acmia; named without them: the paper's 52.")
@click.option("--keep-text", is_flag=True, help="Keep the texts in the RUN; else they are read again.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--quiet", is_flag=True, help="Nothing on stderr but errors.")
@model_options
@reading_options
@protocol_options
def detect_command(inputs: tuple[str, ...], **options: Any) -> int:
    """Membership and machine-text scores, and with labels how well they do.

    INPUT as for `xentrs score`, whose options mean the same; or RUNs of `xentrs score --tokens detect`, and then no
    model runs: one, or with -o several as one, such as shards. Larger always means member or machine.
    docs/detection.md says what a score proves.
    """
    kinds = (DetectOptions, ModelOptions, ReadingOptions, ProtocolOptions)
    detect, model, reading, protocol = (take(kind, options) for kind in kinds)
    require("detect", ("pyarrow", *(("scipy", "sklearn") if detect.label_key is not None else ())))
    from xentrs.detect.joining import score_runs
    from xentrs.runs.open_run import OpenRun

    names = [name.strip() for name in detect.scores.split(",")]
    frequencies = _frequencies(detect, names)
    code = DONE
    if any(map(_is_run, inputs)):
        from xentrs.detect.passes import opened_companions

        folder = _scores_folder(inputs, detect.output)
        given = [(OpenRun(name), opened_companions(Path(name))) for name in inputs]
    else:
        from xentrs.cli.detect_passes import make_run

        folder, companions, code = make_run(inputs, detect, (model, reading, protocol), names, frequencies)
        given = [(OpenRun(folder), companions)]
    documents, runs = score_runs(given, names, frequencies, detect.label_key)
    _finish(folder, runs, documents, detect)
    return code


def _finish(folder: Path, runs: Any, documents: Any, options: DetectOptions) -> None:
    """Judge, write, show."""
    from xentrs.corpus.json_text import dump_page
    from xentrs.detect.judgement import judge
    from xentrs.detect.output import EVALUATION_FILE, TABLES_KEY, missing_scores, page_of, write_results

    judgement = None if options.label_key is None else judge(documents)
    page = page_of(runs, documents, judgement, options.label_key)
    page = write_results(folder, runs, documents, judgement, page)
    if options.as_json:
        click.echo(dump_page(page).decode("utf-8"), nl=False)
    else:
        click.echo("\n".join(table_lines(documents) if judgement is None else judgement_lines(judgement)))
    sys.stdout.flush()
    if not options.quiet:
        notes = note_lines(documents, missing_scores(documents), runs[0].run.protocol["window"])
        written = [*page[TABLES_KEY], *([] if judgement is None else [EVALUATION_FILE])]
        notes.append(f"written to {folder}: {', '.join(written)}")
        click.echo("\n".join(notes), err=True)


def _is_run(name: str) -> bool:
    return Path(name, "manifest.jsonl").is_file()


def _scores_folder(inputs: tuple[str, ...], output: str | None) -> Path:
    """Where scores of these RUNs go."""
    run = next(filter(_is_run, inputs))
    for name in inputs:
        if not _is_run(name):
            raise CommandError(f"{run} is a RUN: it is taken alone or with other RUNs, and {name} is none", USAGE)
    if (option := given_beyond(_GO_WITH_RUNS)) is not None:
        raise CommandError(f"{option} does not go with {run}: that RUN is scored already", USAGE)
    if output is None and len(inputs) > 1:
        raise CommandError("several RUNs need -o OUT: a folder for their scores", USAGE)
    if output is not None and _is_run(output):
        raise CommandError(
            f"-o {output}: is a RUN; scores of RUNs go into one without -o, or into another folder", USAGE
        )
    if output is not None and Path(output).exists() and not Path(output).is_dir():
        raise CommandError(f"-o {output}: is no folder, expected one for scores", USAGE)
    if output is not None and Path(output, "evaluation.json").exists() and not Path(output, "scores.parquet").exists():
        raise CommandError(
            f"-o {output}: its evaluation.json is not of xentrs detect, expected another folder for scores", USAGE
        )
    return Path(run if output is None else output)


def _frequencies(options: DetectOptions, names: list[str]) -> Any:
    """The table of counts; and a first look at the names of scores."""
    from xentrs.detect.pipeline import wanted_needs

    named, grouped = wanted_needs(names)
    uses = {"reference": "reference", "frequencies": "frequencies", "shots": "nonmember_shots"}
    uses |= {"member_shots": "member_shots", "inverse_temperatures": "tempered"}
    for option, need in uses.items():
        is_used = need in named | grouped or (option == "reference" and "cross_entropy" in named | grouped)
        if getattr(options, option) is not None and not is_used:
            raise CommandError(f"no score of --scores {options.scores} uses --{option.replace('_', '-')}", USAGE)
    return None if options.frequencies is None else load_table(options.frequencies)
