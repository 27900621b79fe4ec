"""Files that are either there whole or not at all.

In: a folder, a name, bytes. Out: the file on disk: written under another name, synced, renamed, and the
folder synced.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

TEMPORARY_MARK = ".tmp-"


def write_atomic(folder: Path, name: str, data: bytes) -> None:
    """Make `folder/name` hold `data`; a crash at any moment leaves the old content or the new."""
    with open_atomic(folder, name) as file:
        file.write(data)


@contextmanager
def open_atomic(folder: Path, name: str) -> Iterator[IO[bytes]]:
    """A file to write that becomes `folder/name` when the block ends, and vanishes when it ends in an error."""
    temporary = folder / f"{name}{TEMPORARY_MARK}{os.getpid()}"
    # O_EXCL and O_NOFOLLOW: never write through a link somebody put there.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(folder)


def append_line(path: Path, line: bytes) -> None:
    """Append `line` and sync; a crash leaves at most a torn last line."""
    with path.open("ab") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Make the content of a file, or the renames in a folder, durable."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left behind."""
    for path in folder.glob(f"*{TEMPORARY_MARK}*"):
        path.unlink(missing_ok=True)


def sha256_hex(data: bytes) -> str:
    """SHA-256 as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
