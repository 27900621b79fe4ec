"""How far a run is: a bar with tokens per second on a terminal, a plain line every ten seconds elsewhere.

In: the calls of `corpus.run.Listener`. Out: text on a stream (stderr). How many tokens a corpus has is not
known before it is read, so the bar counts bytes of input; within a part they advance with its tokens.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import IO, Any

_LINE_SECONDS = 10.0


class Progress:
    """A `Listener`; use as a context manager. `quiet` shows nothing; `unit` is what is counted besides bytes."""

    def __init__(self, byte_total: int, stream: IO[str], quiet: bool = False, unit: str = "tokens") -> None:
        self._byte_total = byte_total
        self._stream = stream
        self._quiet = quiet
        self._unit = unit
        self._bar: Any = None
        self._task: Any = None
        self._bytes = 0.0
        self._bytes_per_token = 0.0
        self._tokens = 0
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if not self._quiet and self._stream.isatty():
            self._bar = _make_bar(self._stream)
            self._task = self._bar.add_task("scoring", total=max(self._byte_total, 1), rate="")
            self._bar.start()
        self._started = self._last_line = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def part_started(self, byte_position: int, byte_count: int, token_count: int) -> None:
        self._bytes = byte_position
        self._bytes_per_token = byte_count / token_count if token_count else 0.0

    def tokens_scored(self, token_count: int) -> None:
        self._tokens += token_count
        self._bytes += token_count * self._bytes_per_token
        self._show()

    def part_finished(self, byte_position: int) -> None:
        self._bytes = byte_position
        self._show()

    def _show(self) -> None:
        now = time.monotonic()
        rate = f"{self._tokens / max(now - self._started, 1e-9):,.0f} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=self._bytes, rate=rate)
        elif not self._quiet and now - self._last_line >= _LINE_SECONDS:
            self._last_line = now
            share = self._bytes / self._byte_total if self._byte_total else 1.0
            print(
                f"scored {self._tokens:,} {self._unit}, {share:.0%} of the input, {rate}",
                file=self._stream,
                flush=True,
            )


def _make_bar(stream: IO[str]) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    return RichProgress(*columns, console=Console(file=stream), transient=True)
