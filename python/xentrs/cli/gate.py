"""`xentrs gate`: may a pipeline go on?

In: RUN folders and limits, perhaps a baseline. Out: a verdict on stdout and as the exit code, JUnit XML and Markdown
where asked for.
"""

from __future__ import annotations

import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from xentrs.cli.exit_codes import DONE, GATE_FAILED, USAGE, CommandError
from xentrs.cli.extras import require
from xentrs.cli.summary import summary_of

if TYPE_CHECKING:
    from xentrs.runs.criteria import Verdict

_STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


class _Number(click.ParamType):  # type: ignore[type-arg]  # older click has no argument
    """A number that is one: NaN would let everything pass or nothing."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


_NUMBER = _Number()
_COUNT = click.IntRange(min=0)


@click.command(name="gate")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--max-bits-per-byte", type=_NUMBER, metavar="X", help="Of the scored bytes.")
@click.option("--max-perplexity", type=_NUMBER, metavar="X", help="Per token.")
@click.option("--max-mean-nll", type=_NUMBER, metavar="X", help="Nats per token.")
@click.option("--max-unscored", type=click.FloatRange(0, 1), metavar="FRACTION", help="Unscored share of the tokens.")
@click.option("--max-quarantined", type=_COUNT, metavar="N", help="Records in quarantine.")
@click.option("--min-documents", type=_COUNT, metavar="N", help="Scored documents.")
@click.option("--baseline", metavar="RUN", help="An earlier run over the same documents.")
@click.option(
    "--max-increase",
    type=_NUMBER,
    metavar="PERCENT",
    help="Of bits per byte over --baseline, over the documents of equal id in both.",
)
@click.option("--junit", metavar="FILE", help="Write JUnit XML, a test case for each criterion.")
@click.option("--markdown", metavar="FILE", help="Write a Markdown table; - is stdout.")
@click.option("--github-summary", is_flag=True, help=f"Append the Markdown to ${_STEP_SUMMARY}.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def gate_command(runs: tuple[str, ...], **options: Any) -> int:
    """Hold a RUN against limits: exit code 0 if all are met, 4 if not.

    A figure that cannot be computed does not pass. Several RUNs are taken as one corpus, as in `xentrs summary`.
    """
    step_summary = _checked(options)
    require("gate", ("pyarrow",))
    verdict = _judge(runs, options)
    _write(verdict, options, step_summary)
    return DONE if verdict.passed else GATE_FAILED


def _checked(options: dict[str, Any]) -> str | None:
    """Refuses options that do not go together; returns the file of the step summary where it is wanted."""
    if (options["baseline"] is None) != (options["max_increase"] is None):
        raise CommandError("--baseline and --max-increase go together", USAGE)
    if options["as_json"] and options["markdown"] == "-":
        raise CommandError("--json and --markdown - both want stdout", USAGE)
    if not options["github_summary"]:
        return None
    if not os.environ.get(_STEP_SUMMARY):
        raise CommandError(f"--github-summary: ${_STEP_SUMMARY} is not set", USAGE)
    return os.environ[_STEP_SUMMARY]


def _judge(runs: tuple[str, ...], options: dict[str, Any]) -> Verdict:
    from xentrs.runs.criteria import Limits, judge
    from xentrs.runs.open_run import OpenRun
    from xentrs.runs.paired import paired_increase

    limits = Limits(**{field.name: options[field.name] for field in fields(Limits)})
    if limits.is_empty:
        names = ", ".join(f"--{field.name.replace('_', '-')}" for field in fields(Limits))
        raise CommandError(f"no criterion given; there are {names}", USAGE)
    opened = [OpenRun(Path(run)) for run in runs]
    totals = summary_of(opened)["totals"]
    increase = None
    if options["baseline"] is not None:
        baseline = OpenRun(Path(options["baseline"]))
        baseline.require_finished()
        increase = paired_increase(opened, baseline)
    return judge(limits, totals, increase, list(runs), options["baseline"])


def _write(verdict: Verdict, options: dict[str, Any], step_summary: str | None) -> None:
    from xentrs.corpus.json_text import dump_page
    from xentrs.report.pipelines import junit_xml, verdict_markdown, verdict_text

    markdown = verdict_markdown(verdict)
    if options["junit"] is not None:
        Path(options["junit"]).write_bytes(junit_xml(verdict))
    if options["markdown"] not in (None, "-"):
        Path(options["markdown"]).write_text(markdown, encoding="utf-8")
    if step_summary is not None:
        with Path(step_summary).open("a", encoding="utf-8") as file:
            file.write(markdown)
    is_taken = options["as_json"] or options["markdown"] == "-"
    click.echo("\n".join(verdict_text(verdict)), err=is_taken)
    if is_taken:
        page = dump_page(verdict.block()) if options["as_json"] else markdown.encode("utf-8")
        click.echo(page, nl=False)
    sys.stdout.flush()
