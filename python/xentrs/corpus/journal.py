"""The RUN folder: what is finished, and whether it may be gone on with.

In: a folder and a fingerprint. Out: `RunFolder`, which writes parts and knows the finished ones.
manifest.jsonl begins with the fingerprint, then has one line per finished part. A part exists if and only if
its line exists and the hashes of its files match; a torn last line is ignored. summary.json comes last:
without it a RUN is unfinished. Times stand in timings.json alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from xentrs.corpus.documents import Cursor
from xentrs.corpus.json_text import dump_line, dump_page
from xentrs.corpus.parts import Part
from xentrs.durable import append_line, remove_temporaries, sha256_hex, write_atomic
from xentrs.errors import ManifestMismatch

try:
    import fcntl
except ImportError:  # not on Windows: there a second process is not noticed
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.jsonl"
SUMMARY = "summary.json"
QUARANTINE = "quarantine.jsonl"
TIMINGS = "timings.json"
LOCK = ".lock"
FORMAT_VERSION = 2
_SHOWN = 5


class RunFolder:
    """An open RUN: locked against other processes, its finished parts verified."""

    def __init__(self, path: Path, fingerprint: dict[str, Any]) -> None:
        """Open or create `path`.

        Raises:
            ManifestMismatch: the folder is in use, is no RUN, or belongs to another fingerprint.
        """
        self.path = path
        self._fingerprint = json.loads(dump_line({"format": FORMAT_VERSION, **fingerprint}))
        self.parts: dict[int, dict[str, Any]] = {}
        self._lock: BinaryIO | None = None
        self._prepare_folder()
        self._lock = self._acquire_lock()
        try:
            self._open_manifest()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def finished_summary(self) -> dict[str, Any] | None:
        """summary.json of a finished RUN; None where it is missing, damaged, or counts other parts."""
        try:
            summary: dict[str, Any] = json.loads((self.path / SUMMARY).read_bytes())
            return summary if summary["parts"] == len(self.parts) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def end_of(self, number: int) -> Cursor:
        """Where finished part `number` ended in the inputs."""
        return Cursor(**self.parts[number]["end"])

    def documents_bytes(self, number: int) -> bytes:
        """The documents file of a finished part."""
        return (self.path / part_names(number)[0]).read_bytes()

    def write_part(self, part: Part, documents: bytes, tokens: bytes | None, nll_state: bytes) -> None:
        """Write a part's files, then its manifest line: from here on it exists. `nll_state` are its exact totals
        (`xentrs.Perplexity.to_bytes`), so that nobody needs the tokens to go on.
        """
        contents = zip(part_names(part.number), (documents, tokens), strict=True)
        files = {name: data for name, data in contents if data is not None}
        for name, data in files.items():
            write_atomic(self.path, name, data)
        line = {
            "part": part.number,
            "documents": len(part.documents),
            "tokens": part.row_count,
            "files": {name: {"bytes": len(data), "sha256": sha256_hex(data)} for name, data in files.items()},
            "start": vars(part.start),
            "end": vars(part.end),
            "nll_state": nll_state.hex(),
            "skipped_lines": part.skipped_lines,
            "quarantine": [vars(rejected) for rejected in part.rejected],
        }
        append_line(self.path / MANIFEST, dump_line(line))
        self.parts[part.number] = line

    def finish(self, summary: dict[str, Any], timings: dict[str, Any]) -> None:
        """Write what stands at the end: quarantine, canonical manifest, timings, last of all the summary."""
        rejected = [entry for number in sorted(self.parts) for entry in self.parts[number]["quarantine"]]
        if rejected:
            write_atomic(self.path, QUARANTINE, b"".join(dump_line(entry) for entry in rejected))
        self._rewrite_manifest()
        write_atomic(self.path, TIMINGS, dump_page(timings))
        write_atomic(self.path, SUMMARY, dump_page(summary))

    def _prepare_folder(self) -> None:
        path = self.path
        if path.exists() and not path.is_dir():
            raise ManifestMismatch(f"{path}: is a file; -o names a folder")
        if path.is_dir() and not (path / MANIFEST).exists():
            foreign = sorted(entry.name for entry in path.iterdir() if not _may_be_ours(entry.name))
            if foreign:
                raise ManifestMismatch(f"{path}: is not a RUN folder (no {MANIFEST}) and not empty: {foreign[0]}")
        path.mkdir(parents=True, exist_ok=True)

    def _acquire_lock(self) -> BinaryIO:
        lock = (self.path / LOCK).open("ab")
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                raise ManifestMismatch(f"{self.path}: another process is writing this RUN") from None
        return lock

    def _open_manifest(self) -> None:
        remove_temporaries(self.path)
        lines, clean = read_manifest(self.path / MANIFEST)
        if lines:
            if lines[0] != self._fingerprint:
                apart = difference(lines[0], self._fingerprint, "in the RUN", "now")
                raise ManifestMismatch(
                    f"{self.path}: this RUN was made with other settings, choose another folder: {apart}"
                )
            for line in lines[1:]:
                self.parts[line["part"]] = line
        damaged = [number for number, line in self.parts.items() if not self._is_intact(line)]
        for number in damaged:
            del self.parts[number]
        if damaged:
            (self.path / SUMMARY).unlink(missing_ok=True)
        if damaged or not clean or not lines:
            self._rewrite_manifest()

    def _is_intact(self, line: dict[str, Any]) -> bool:
        for name, expected in line["files"].items():
            path = self.path / name
            if not path.is_file() or sha256_hex(path.read_bytes()) != expected["sha256"]:
                return False
        return True

    def _rewrite_manifest(self) -> None:
        lines = [self._fingerprint, *(self.parts[number] for number in sorted(self.parts))]
        data = b"".join(dump_line(line) for line in lines)
        path = self.path / MANIFEST
        if not path.is_file() or path.read_bytes() != data:
            write_atomic(self.path, MANIFEST, data)


def part_names(number: int) -> tuple[str, str]:
    """File names of a part: never made from data."""
    return f"documents-{number:05d}.parquet", f"tokens-{number:05d}.parquet"


def _may_be_ours(name: str) -> bool:
    """What a run that was killed before its manifest existed can have left."""
    return name == LOCK or name.startswith(f"{MANIFEST}.tmp-")


def read_manifest(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """The manifest's lines, and whether it ends whole: a last line without its newline is torn and left out.

    Raises:
        ManifestMismatch: any other line is damaged.
    """
    if not path.exists():
        return [], True
    *whole, torn = path.read_bytes().split(b"\n")
    lines: list[dict[str, Any]] = []
    for number, raw in enumerate(whole, start=1):
        try:
            line = json.loads(raw)
        except ValueError:
            line = None
        expected = {"format", "protocol"} if number == 1 else {"part", "files", "start", "end", "quarantine"}
        if not isinstance(line, dict) or not expected <= line.keys():
            raise ManifestMismatch(f"{path}:{number}: damaged line; choose another folder")
        lines.append(line)
    if not lines:
        raise ManifestMismatch(f"{path}:1: damaged line; choose another folder")
    return lines, not torn


def difference(one: Any, other: Any, here: str, there: str) -> str | None:
    """Which entries of two blocks differ, with both values; None: none. `here` and `there` say where they stand."""
    old, new = _flatten(one), _flatten(other)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if not names:
        return None
    shown = "; ".join(f"{name}: {old.get(name)} {here}, {new.get(name)} {there}" for name in names[:_SHOWN])
    return shown + (f" (and {len(names) - _SHOWN} more)" if len(names) > _SHOWN else "")


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Nested data as one level of dotted names, to compare."""
    if isinstance(value, dict):
        entries = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, list):
        entries = [(str(index), entry) for index, entry in enumerate(value)]
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, entry in entries:
        flat.update(_flatten(entry, f"{name}.{key}" if name else key))
    return flat
