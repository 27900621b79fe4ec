"""What the truth bench asserts: each with its figure, printed whether it holds or not."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Check:
    """One assertion."""

    name: str
    figure: str
    """What was found, and what was expected of it."""
    holds: bool


@dataclass
class Findings:
    """Assertions and tables of a run, printed as they come."""

    checks: list[Check] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def check(self, name: str, figure: str, holds: bool) -> None:
        """Hold one assertion."""
        self.checks.append(Check(name, figure, bool(holds)))
        print(f"  {'ok  ' if holds else 'FAIL'}  {name}: {figure}", flush=True)

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """Keep and print figures that are reported, not asserted; every row has the same keys."""
        self.tables[title] = rows
        cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{title}")
        for line in cells:
            first, *others = zip(line, widths, strict=True)
            print("  ".join(["", first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]), flush=True)
        print()

    def failed(self) -> list[Check]:
        """Those that do not hold."""
        return [check for check in self.checks if not check.holds]

    def block(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"checks": [asdict(check) for check in self.checks], "tables": self.tables}


def area_of(entry: Any) -> str:
    """AUROC and its interval, of an evaluated score, in a figure."""
    return f"AUROC {entry.auroc:.3f} [{entry.interval.low:.3f}, {entry.interval.high:.3f}]"


def interval_of(entry: Any) -> str:
    """The interval in a table."""
    return f"{entry.interval.low:.3f} - {entry.interval.high:.3f}"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
