"""llama-perplexity for score.py: a program and a GGUF, its speed by its own clock, its perplexity."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from score_peers import Entry

STAMP = r"(\d+)\.(\d+)\.(\d+)\.(\d+) I"  # minutes, seconds, ms, us since its start
BEGIN = re.compile(STAMP + r" perplexity: calculating perplexity over (\d+) chunks, n_ctx=(\d+)")
END = re.compile(STAMP + r" Final estimate: PPL = ([0-9.]+)")


@dataclass(frozen=True)
class Outcome:
    """What one run printed. `tokens` it took in; half of them have a score."""

    perplexity: float
    tokens: int
    seconds: float  # from the loaded model and the tokenised text to the perplexity


@dataclass(frozen=True)
class Llama:
    """llama-perplexity and a model for it. `options` stand behind its own defaults."""

    program: str
    gguf: str
    threads: int
    options: tuple[str, ...] = ()

    def version(self) -> str:
        """What the program says of itself."""
        done = subprocess.run([self.program, "--version"], capture_output=True, text=True, check=False)
        match = re.search(r"version: (.+)", done.stdout + done.stderr)
        return match[1] if match else "unknown"

    def run(self, text: str, context: int) -> Outcome:
        """Perplexity of a text in windows of `context` tokens; raises SystemExit where the program fails."""
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", newline="") as file:
            file.write(text + "\n")  # it takes one newline away
            file.flush()
            command = [self.program, "-m", self.gguf, "-f", file.name, "-c", str(context), "--no-escape"]
            command += ["-t", str(self.threads), "-tb", str(self.threads), "--log-prefix", "--log-timestamps"]
            command += [*_no_repack(), *self.options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        begin, end = BEGIN.search(said), END.search(said)
        if done.returncode or begin is None or end is None:
            raise SystemExit(f"{' '.join(command)} failed:\n{said[-2000:]}")
        return Outcome(float(end[5]), int(begin[5]) * int(begin[6]), _seconds(end) - _seconds(begin))


def _no_repack() -> list[str]:
    """Its AMX path stops with an illegal instruction (seen with the llama.cpp of llama-cpp-python 0.3.36)."""
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    return ["--no-repack"] if " amx_tile" in flags else []


def _seconds(stamp: re.Match[str]) -> float:
    minutes, seconds, milliseconds, microseconds = (int(stamp[group]) for group in range(1, 5))
    return 60 * minutes + seconds + milliseconds / 1e3 + microseconds / 1e6


def llama_entry(llama: Llama, text: str, context: int) -> Entry:
    """llama-perplexity on one text."""

    def turn() -> float:
        outcome = llama.run(text, context)
        entry.tokens = outcome.tokens
        return outcome.seconds

    entry = Entry(f"llama-perplexity -c {context}", "as GGUF", 0, turn, note=Path(llama.gguf).name, is_outside=True)
    return entry
