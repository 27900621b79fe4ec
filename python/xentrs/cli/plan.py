"""`xentrs score --plan`: what a run would take.

In: a loaded model, sources, settings. Out: lines, or one JSON object.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import rich_click as click

from xentrs.cli.exit_codes import DONE, QUARANTINED


def show_plan(runner: Any, sources: Any, settings: Any, as_json: bool) -> int:
    """Forecast and print; the exit code tells whether there are bad records."""
    from xentrs.corpus.forecast import forecast
    from xentrs.corpus.json_text import dump_page

    found = forecast(runner, sources, settings)
    if as_json:
        click.echo(dump_page(asdict(found)).decode("utf-8"), nl=False)
    else:
        about = "" if found.is_exact else "about "
        lines = [
            f"documents    {found.documents:,} ({found.bad_records:,} bad records), {found.text_bytes:,} bytes of text",
            f"tokens       {about}{found.tokens:,} in {about}{found.windows:,} windows of {found.inputs:,} inputs",
            f"speed        {found.inputs_per_second:,.0f} inputs/s over {found.calibrated_inputs:,} inputs just scored",
            f"time         about {_duration(found.seconds)}",
            f"memory       {found.peak_memory_bytes / 2**20:,.0f} MiB at most so far, model included; it does not grow",
            f"RUN folder   about {found.output_bytes / 2**20:,.1f} MiB with --tokens {settings.columns.level}",
        ]
        click.echo("\n".join(lines))
    return QUARANTINED if found.bad_records else DONE


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
