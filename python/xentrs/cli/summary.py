"""`xentrs summary`: what a RUN found, or several as one.

In: RUN folders. Out: totals, intervals, breakdowns and protocol on stdout, as text or one JSON object.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from xentrs.cli.extras import require

if TYPE_CHECKING:
    from xentrs.runs.open_run import OpenRun


@click.command(name="summary")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--by", metavar="COLUMN", help="This breakdown alone: source, or a KEY that was scored with --by KEY.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def summary_command(runs: tuple[str, ...], by: str | None, as_json: bool) -> None:
    """Totals, intervals, breakdowns and protocol of a RUN.

    Several RUNs are taken as one corpus: the shards of `xentrs score --shard`, or corpora scored with one protocol.
    """
    require("summary", ("pyarrow",))
    from xentrs.corpus.json_text import dump_page
    from xentrs.runs.open_run import OpenRun

    opened = [OpenRun(Path(run)) for run in runs]
    page = summary_of(opened)
    if by is not None:
        totals = page["totals"]
        page = {**page, "totals": {**totals, "breakdowns": _chosen(opened[0], totals["breakdowns"], by)}}
    if as_json:
        click.echo(dump_page(page).decode("utf-8"), nl=False)
    else:
        click.echo("\n".join(_lines(page, shows_all=by is not None)))


def summary_of(runs: list[OpenRun]) -> dict[str, Any]:
    """The summary of finished RUNs: of one as it stands there, of several made from their parts.

    Raises:
        ManifestMismatch: one is unfinished, or they do not go together.
    """
    from xentrs.corpus.json_text import without_nonfinite
    from xentrs.runs.merging import merged_totals

    names = [str(run.path) for run in runs]
    if len(runs) == 1:
        return {"runs": names, **runs[0].require_finished()}
    totals = merged_totals(runs)
    page: dict[str, Any] = without_nonfinite(
        {
            "runs": names,
            "protocol": runs[0].protocol,
            "parts": sum(len(run.parts) for run in runs),
            "totals": totals.block(),
            "best_documents": totals.best(),
            "worst_documents": totals.worst(),
        }
    )
    return page


def _chosen(run: OpenRun, breakdowns: dict[str, Any], by: str) -> dict[str, Any]:
    """The breakdown that was asked for; a single source has none."""
    column = by if by == "source" or by.startswith("by_") else f"by_{by}"
    if column != "source" and column not in breakdowns:
        run.require_columns([column])
    return {name: block for name, block in breakdowns.items() if name == column}


def _lines(page: dict[str, Any], shows_all: bool) -> list[str]:
    from xentrs.report import extremes_text, protocol_text, totals_text
    from xentrs.report.summaries import breakdown_text, interval_text, means_text
    from xentrs.report.terminal import printable

    totals = page["totals"]
    lines = [f"RUN          {', '.join(printable(name) for name in page['runs'])}", protocol_text(page["protocol"])]
    lines += [*totals_text(totals), *means_text(totals), *interval_text(totals)]
    for column, block in totals["breakdowns"].items():
        lines += breakdown_text(column, block, shows_all)
    if totals["scored_documents"] > 1:
        lines += extremes_text("best documents (bits per byte)", page["best_documents"])
        lines += extremes_text("worst documents (bits per byte)", page["worst_documents"])
    return lines
