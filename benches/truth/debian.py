"""Text of Debian packages: a larger pool than the examples, as the release of the machine has it.

In: apt, which downloads packages by name; nothing is installed. Out: texts without markup: fortunes, a dictionary of
computing, the manual pages of Perl.
"""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("fortunes", "fortunes-min", "dict-foldoc", "dict-devil", "dict-jargon", "perl-doc")


def debian_texts(folder: Path) -> Iterator[str]:
    """Download and unpack into `folder`, once, then read."""
    for name in PACKAGES:
        if not (folder / name).is_dir():
            subprocess.run(
                ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name], cwd=folder, check=True
            )
            (package,) = folder.glob(f"{name}_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, folder / f"{name}.partial"], check=True)
            (folder / f"{name}.partial").rename(folder / name)
    for name in PACKAGES:
        for path in sorted((folder / name).rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield from _read(path)


def _read(path: Path) -> Iterator[str]:
    if path.suffix == ".pod":
        yield without_pod(path.read_text(encoding="utf-8", errors="replace"))
    elif path.suffix == ".dz":
        yield gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    elif path.parent.name == "fortunes" and not path.suffix:
        entries = path.read_text(encoding="utf-8", errors="replace").replace("\x08", "")
        yield re.sub(r"^%$", "\n", entries, flags=re.MULTILINE)


def without_pod(text: str) -> str:
    """Paragraphs of prose: commands and verbatim ones go, of formatting codes what they hold stays."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if not re.match(r"[=\s]", part)]
    joined = "\n\n".join(re.sub(r"\s*\n\s*", " ", part) for part in paragraphs)
    for _ in range(3):  # codes within codes
        joined = re.sub(r"[A-Z]<+\s?([^<>]*?)\s?>+", r"\1", joined)
    return joined
