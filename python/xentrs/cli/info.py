"""`xentrs info`: what this installation is and what it runs on.

In: nothing. Out: lines, or one JSON object.
"""

from __future__ import annotations

import json
import platform
from typing import Any

import rich_click as click

import xentrs
from xentrs import _xentrs
from xentrs.cli.extras import installed_versions
from xentrs.models.catalog import cache_folder, imported_models


@click.command(name="info")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def info_command(as_json: bool) -> None:
    """Version, instruction sets, threads, cache, optional packages."""
    facts = _facts()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            for package, version in value.items():
                click.echo(f"{package:<24}{version or 'not installed'}")
        else:
            shown = ", ".join(value) or "none" if isinstance(value, list) else value
            click.echo(f"{name.replace('_', ' '):<24}{shown}")


def _facts() -> dict[str, Any]:
    return {
        "xentrs": xentrs.__version__,
        "numerics_version": xentrs.numerics_version,
        "isa": xentrs.isa(),
        "isa_of_bfloat16_heads": _xentrs.head_isa(),
        "available_isas": list(xentrs.available_isas()),
        "threads": xentrs.num_threads(),
        "python": platform.python_version(),
        "cache": str(cache_folder()),
        "imported_models": [model.name for model in imported_models()],
        "packages": installed_versions(),
    }
