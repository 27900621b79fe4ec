"""The machine and the versions behind a measurement: what stands above each table and in each row of the CSV files."""

from __future__ import annotations

import csv
import datetime
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import xentrs as xe

BENCHES = Path(__file__).resolve().parent
MEMORY_CAP_BYTES = 2 << 30


def cpu_model() -> str:
    """Returns the name the processor gives itself."""
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    return match[1].strip() if match else platform.processor()


def l3_bytes() -> int:
    """Returns the size of all level-3 caches together, as sysfs tells it; 32 MiB where it does not."""
    sizes: dict[str, int] = {}
    for cache in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        if (cache / "level").read_text().strip() == "3":
            size = (cache / "size").read_text().strip()
            sizes[(cache / "shared_cpu_list").read_text()] = int(size.rstrip("K")) << 10
    return sum(sizes.values()) or 32 << 20


def enough_rows(vocab: int, element_bytes: int) -> int:
    """Returns how many rows are four times the level-3 cache, but no more than two such inputs under the memory cap."""
    row_bytes = vocab * element_bytes
    rows = -(-4 * l3_bytes() // row_bytes)
    return min(-(-rows // 16) * 16, MEMORY_CAP_BYTES // (2 * row_bytes))


def _first_line(*command: str) -> str:
    """Returns what a program says first, or nothing where it is missing or fails."""
    try:
        done = subprocess.run(command, cwd=BENCHES, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().split("\n")[0]


def facts(threads: int) -> dict[str, Any]:
    """Returns the columns that every row of a run shares. The compiler is the one on PATH."""
    commit = _first_line("git", "rev-parse", "--short=12", "HEAD")
    changed = _first_line("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit + ("+changes" if changed else ""),
        "compiler": _first_line("rustc", "--version"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "l3_bytes": l3_bytes(),
        "isa": xe.isa(),
        "threads": threads,
        "xentrs": xe.__version__,
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
        "scipy": metadata.version("scipy"),
        "python": platform.python_version(),
    }


def print_facts(run: dict[str, Any]) -> None:
    """Prints what stands above a table."""
    print(f"{run['date']}, commit {run['commit']}, {run['compiler']}")
    print(f"{run['cpu']}, {run['cores']} cores, L3 {run['l3_bytes'] / 2**20:.0f} MiB")
    print(f"ISA {run['isa']}, threads {run['threads']} (torch the same)")
    print("versions: " + ", ".join(f"{name} {run[name]}" for name in ("xentrs", "torch", "numpy", "scipy", "python")))
    sys.stdout.flush()


def results_folder(run: dict[str, Any]) -> Path:
    """Returns benches/results/<machine>, the machine being the processor and its cores."""
    machine = re.sub(r"[^a-z0-9]+", "-", run["cpu"].lower()).strip("-") + f"-{run['cores']}-cores"
    return BENCHES / "results" / machine


def default_csv(run: dict[str, Any]) -> Path:
    """Returns benches/results/<machine>/<date>.csv."""
    return results_folder(run) / f"{run['date'][:10]}.csv"


def append_csv(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Appends rows; a new file gets the header first.

    Raises:
        ValueError: the file's header names other columns.
    """
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        if header not in (None, list(rows[0])):
            raise ValueError(f"{path} has columns {header}, expected {list(rows[0])}")
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if header is None:
            writer.writeheader()
        writer.writerows(rows)
