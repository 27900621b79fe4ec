"""`xentrs detect`: was this text in the training data, was it written by a machine, and how sure is that?

In: inputs and a model, or a RUN whose tokens were kept; perhaps labels. Out: scores.parquet in the RUN, with labels
evaluation.json too; a table on stdout or one JSON object.
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

_GO_WITH_RUNS = frozenset({"inputs", "label_key", "scores", "frequencies", "as_json", "quiet"})
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
@click.option("-o", "--output", metavar="RUN", help="The RUN folder to write, or to go on with.")
@click.option("--label-key", metavar="KEY", help=f"Field of the label: {_LABELS}.")
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

    INPUT as for `xentrs score`, whose options mean the same; or one RUN of `xentrs score --tokens detect`, and then
    no model runs. Larger always means member or machine. docs/detection.md says what a score proves.
    """
    kinds = (DetectOptions, ModelOptions, ReadingOptions, ProtocolOptions)
    detect, model, reading, protocol = (take(kind, options) for kind in kinds)
    require("detect", ("pyarrow", *(("scipy", "sklearn") if detect.label_key is not None else ())))
    from xentrs.detect.pipeline import Extras, score_run
    from xentrs.runs.open_run import OpenRun

    names = [name.strip() for name in detect.scores.split(",")]
    frequencies = _frequencies(detect, names)
    code = DONE
    if runs := [name for name in inputs if Path(name, "manifest.jsonl").is_file()]:
        from xentrs.detect.passes import opened_companions

        if len(inputs) > 1:
            raise CommandError(f"{runs[0]} is a RUN: it is taken alone", USAGE)
        _check_goes_with_run(runs[0])
        folder = Path(runs[0])
        companions = opened_companions(folder)
    else:
        from xentrs.cli.detect_passes import make_run

        folder, companions, code = make_run(inputs, detect, (model, reading, protocol), names, frequencies)
    run = OpenRun(folder)
    documents = score_run(run, names, Extras(frequencies, companions), detect.label_key)
    _finish(run, documents, detect)
    return code


def _finish(run: Any, documents: Any, options: DetectOptions) -> None:
    """Judge, write, show."""
    from xentrs.corpus.json_text import dump_page
    from xentrs.detect.judgement import judge
    from xentrs.detect.output import EVALUATION_FILE, SCORES_FILE, missing_scores, page_of, write_results

    judgement = None if options.label_key is None else judge(documents)
    page = page_of(run, documents, judgement, options.label_key)
    write_results(run.path, documents, None if judgement is None else page)
    if options.as_json:
        click.echo(dump_page(page).decode("utf-8"), nl=False)
    else:
        click.echo("\n".join(table_lines(documents) if judgement is None else judgement_lines(judgement)))
    sys.stdout.flush()
    if not options.quiet:
        notes = note_lines(documents, missing_scores(documents), run.protocol["window"])
        written = [SCORES_FILE, *([] if judgement is None else [EVALUATION_FILE])]
        notes.append(f"written to {run.path}: {', '.join(written)}")
        click.echo("\n".join(notes), err=True)


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


def _check_goes_with_run(run: str) -> None:
    """Refuse options that would do nothing."""
    if (option := given_beyond(_GO_WITH_RUNS)) is not None:
        raise CommandError(f"{option} does not go with {run}: that RUN is scored already", USAGE)
