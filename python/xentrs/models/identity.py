"""Identity of a model folder or file, for fingerprints.

In: a folder or a file. Out: hexadecimal SHA-256. Weights of many gigabytes are not read whole: the hash covers the
configuration files and, for each weight file, its name, its size and its first and last mebibyte.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from xentrs.models.runner import ModelError

_EDGE_BYTES = 1 << 20
_CONFIGURATION = ("config.json", "model.safetensors.index.json")


def folder_sha256(folder: Path) -> str:
    """Identity of the model in `folder`; another file name, size, header or edge of the weights changes it.

    Raises:
        ModelError: the folder holds no safetensors file.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"model {folder}: the folder has no .safetensors file (pickled weights are not loaded)")
    digest = hashlib.sha256()
    for name in _CONFIGURATION:
        if (path := folder / name).is_file():
            digest.update(f"{name}\0".encode() + path.read_bytes())
    for path in weights:
        _add_edges(digest, path)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Identity of a model that is one file."""
    digest = hashlib.sha256()
    _add_edges(digest, path)
    return digest.hexdigest()


def _add_edges(digest: hashlib._Hash, path: Path) -> None:
    byte_count = path.stat().st_size
    digest.update(f"{path.name}\0{byte_count}\0".encode())
    with path.open("rb") as file:
        digest.update(file.read(_EDGE_BYTES))
        file.seek(max(0, byte_count - _EDGE_BYTES))
        digest.update(file.read(_EDGE_BYTES))
