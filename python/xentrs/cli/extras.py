"""Which optional packages are there, without importing them.

In: package names. Out: nothing, or a refusal that says how to get what is missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from xentrs.cli.exit_codes import FAILED, CommandError

OPTIONAL_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "gguf",
    "pyarrow",
    "ml_dtypes",
    "scipy",
    "scikit-learn",
    "llama-cpp-python",
)
_OF_DETECT = {"scipy": "scipy", "sklearn": "scikit-learn", "lz4": "lz4"}
"""Packages of the extra `detect` by the names that are imported."""


def require(command: str, packages: Iterable[str]) -> None:
    """Refuse with the one command that helps when a package of the extra `score` or `detect` is missing."""
    for package in packages:
        if importlib.util.find_spec(package) is not None:
            continue
        if package in _OF_DETECT:
            needed = _OF_DETECT[package]
            raise CommandError(f"xentrs {command} needs {needed}: pip install 'xentrs[detect,score]'", FAILED)
        raise CommandError(
            f"xentrs {command} needs {package}: pip install 'xentrs[score]' "
            "(an installed CPU build of torch is used as it is)",
            FAILED,
        )


def require_model(command: str, model: str | None, runner: str | None) -> None:
    """Refuse where the packages of the transformers runner are missing and it is that which is asked for."""
    if runner is None and not (model or "").endswith(".gguf"):
        require(command, ("torch", "transformers", "tokenizers", "safetensors"))


def require_tokenizer(command: str, model: str | None, runner: str | None) -> None:
    """The same for what needs no weights."""
    if runner is None and not (model or "").endswith(".gguf"):
        require(command, ("transformers", "tokenizers"))


def installed_versions() -> dict[str, str | None]:
    """Versions of the optional packages; None where one is not installed."""
    import importlib.metadata  # slow to load, and only this needs it

    versions: dict[str, str | None] = {}
    for package in OPTIONAL_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions
