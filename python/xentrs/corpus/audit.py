"""The same text and model under every plausible protocol: how far do the figures lie apart?

In: a model, sources, a sample size. Out: a line for each protocol, and findings. Prefix, window, stride and what is
dropped decide perplexity as much as models do; the audit shows by how much on one's own text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xentrs.corpus.batches import document_windows
from xentrs.corpus.documents import reader_of
from xentrs.corpus.parts import Part, PartReader
from xentrs.corpus.reading import Reading
from xentrs.corpus.run import score_parts
from xentrs.corpus.settings import Columns, Settings, resolve_settings
from xentrs.corpus.sources import Source
from xentrs.errors import ParamError
from xentrs.models import SplitRunner

SAMPLE_TOKENS = 20_000

_CANDIDATES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("xentrs default", {}),
    ("prefix none", {"prefix": "none"}),
    ("prefix bos", {"prefix": "bos"}),
    ("prefix eos", {"prefix": "eos"}),
    ("bos in every window", {"prefix": "bos", "prefix_every": "window"}),
    ("window 512", {"window": 512}),
    ("half-window stride", {"half": True}),
    ("lm-eval", {"protocol": "lm-eval"}),
    ("hf-strided", {"protocol": "hf-strided"}),
    ("llama.cpp", {"protocol": "llama.cpp"}),
    ("full", {"protocol": "full"}),
)


@dataclass(frozen=True)
class AuditLine:
    """One protocol; `same_as` names an earlier one that does the same with this text, and is not computed again."""

    name: str
    settings: Settings
    totals: dict[str, Any]
    same_as: str | None
    bits_per_byte_change: float | None  # relative to the first line


@dataclass(frozen=True)
class Audit:
    """What an audit found. `findings` are sentences for people."""

    documents: int
    tokens: int
    is_whole: bool  # the sample is the corpus
    lines: list[AuditLine]
    findings: list[str]


def audit(
    runner: SplitRunner,
    sources: Sequence[Source],
    reading: Reading,
    sample_tokens: int = SAMPLE_TOKENS,
    num_threads: int | None = None,
) -> Audit:
    """Score the first documents of about `sample_tokens` tokens under each protocol that the model allows."""
    reader = PartReader(reader_of(sources, reading), runner.encoder, runner.info.vocab_size, sample_tokens)
    part = reader.next_part()
    if part is None or not part.documents:
        raise ParamError("nothing to audit: the inputs hold no document")
    is_whole = reader.next_part() is None
    lines: list[AuditLine] = []
    done: dict[Any, AuditLine] = {}
    for name, settings in _protocols(runner, reading, num_threads):
        key = (settings.prefix.token_id, tuple(_placed(part, settings)))
        earlier = done.get(key)
        totals = score_parts([part], runner, settings) if earlier is None else earlier.totals
        first = lines[0].totals["bits_per_byte"] if lines else totals["bits_per_byte"]
        here = totals["bits_per_byte"]
        change = here / first - 1.0 if here is not None and first else None
        lines.append(AuditLine(name, settings, totals, earlier.name if earlier else None, change))
        done.setdefault(key, lines[-1])
    return Audit(len(part.documents), part.row_count, is_whole, lines, _findings(runner, part, lines))


def _protocols(runner: SplitRunner, reading: Reading, num_threads: int | None) -> Iterator[tuple[str, Settings]]:
    others: dict[str, Any] = {"reading": reading, "columns": Columns("none"), "num_threads": num_threads}
    window = resolve_settings(runner).windowing.window
    for name, asked in _CANDIDATES:
        options = dict(asked)
        if options.pop("half", False):
            options["stride"] = max(1, window // 2)
        try:
            yield name, resolve_settings(runner, **options, **others)
        except ParamError:
            continue  # no such token, or a model too short for it


def _placed(part: Part, settings: Settings) -> Iterator[Any]:
    for document in part.documents:
        yield document.number, tuple(document_windows(document, settings))


def _findings(runner: SplitRunner, part: Part, lines: Sequence[AuditLine]) -> list[str]:
    rates = [(line.totals["perplexity_per_token"], line.name) for line in lines if line.totals["perplexity_per_token"]]
    found = []
    if rates:
        (low, low_name), (high, high_name) = min(rates), max(rates)
        found.append(
            f"the same text and model: perplexity per token from {low:,.4f} ({low_name}) to {high:,.4f} ({high_name}), "
            f"{high / low - 1.0:.1%} apart by protocol alone"
        )
    bos_id = runner.encoder.bos_id
    doubled = sum(
        len(document.encoded.token_ids) > 0 and document.encoded.token_ids[0] == bos_id for document in part.documents
    )
    if bos_id is not None and doubled:
        found.append(f"{doubled:,} documents begin with the BOS token themselves; a BOS prefix would stand there twice")
    for line in lines:
        unscored = line.totals["unscored_tokens"]
        if line.same_as is None and unscored > 0.001 * line.totals["tokens"]:
            share = unscored / line.totals["tokens"]
            found.append(f"{line.name} leaves {unscored:,} of {line.totals['tokens']:,} tokens unscored ({share:.1%})")
    return found
