"""Documents for the truth bench: short pieces of real text, without duplicates, split by a hash.

In: examples/, or Debian packages (`debian.py`). Out: `Split`: documents of A, B and C, drawn from one pool by the hash
of their text alone, so that they differ in nothing else. A and B each train a model; nobody trains on C.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FEWEST_BYTES, MOST_BYTES = 80, 480  # of a document: enough to score, so short that a pool has many
GRAM_WORDS, MOST_OVERLAP = 13, 0.8  # as MIMIR counts near duplicates: of a document's word 13-grams
CANARY_WORDS = 16


@dataclass(frozen=True)
class Split:
    """Documents of one pool, by who reads them."""

    a: list[str]
    b: list[str]
    c: list[str]
    duplicates: int
    """Left out of the pool before it was split."""


@dataclass(frozen=True)
class Canary:
    """Words in an order that no text has, and how often a model gets to see it in its training."""

    text: str
    times_seen: int


def example_texts() -> Iterator[str]:
    """The example documents."""
    for path in sorted(EXAMPLES.glob("*.txt")):
        yield path.read_text(encoding="utf-8")
    for path in sorted(EXAMPLES.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)["text"]


def split_pool(texts: Iterable[str], seed: int, most: int | None = None) -> Split:
    """Cut texts into documents, leave out duplicates, then split; `most` documents, drawn by their hash."""
    documents = [document for text in texts for document in pieces(text)]
    pool = without_duplicates(documents)
    kept = sorted(pool, key=lambda text: digest(f"{seed} order", text))[:most]
    parts: tuple[list[str], ...] = ([], [], [])
    for document in kept:
        parts[digest(f"{seed} part", document) % len(parts)].append(document)
    return Split(*parts, duplicates=len(documents) - len(pool))


def pieces(text: str) -> Iterator[str]:
    """Paragraphs in NFC; long ones cut behind sentences, lines or words, short ones left out."""
    for paragraph in re.split(r"\n\s*\n", unicodedata.normalize("NFC", text)):
        rest = paragraph.strip()
        while len(rest.encode()) > MOST_BYTES:
            end = _cut(rest)
            yield rest[:end].strip()
            rest = rest[end:].strip()
        if len(rest.encode()) >= FEWEST_BYTES:
            yield rest


def _cut(text: str) -> int:
    """Where the first piece of a long text ends: within its first bytes, as late as may be."""
    longest = len(text.encode()[:MOST_BYTES].decode(errors="ignore"))
    for pattern in (r"[.!?;:][\"')]*\s", r"\n", r"\s"):
        ends = [found.end() for found in re.finditer(pattern, text[:longest])]
        if ends and len(text[: ends[-1]].encode()) >= FEWEST_BYTES:
            return ends[-1]
    return longest


def without_duplicates(documents: Iterable[str]) -> list[str]:
    """The documents whose words are not those of an earlier one, nor for the most part in earlier ones."""
    seen_texts: set[str] = set()
    seen_grams: set[int] = set()
    kept = []
    for document in documents:
        words = re.findall(r"\w+", document.lower())
        text = " ".join(words)
        grams = {hash(" ".join(words[at : at + GRAM_WORDS])) for at in range(len(words) - GRAM_WORDS + 1)}
        is_near = bool(grams) and len(grams & seen_grams) >= MOST_OVERLAP * len(grams)
        if text not in seen_texts and not is_near:
            kept.append(document)
        seen_texts.add(text)
        seen_grams |= grams
    return kept


def digest(purpose: str, text: str) -> int:
    """A number that follows from the text alone."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{text}".encode()).digest()[:8], "big")


def canaries(split: Split, times: Iterable[int], each: int, seed: int) -> list[Canary]:
    """`each` canaries for each number of times, of words of the pool drawn at random: as copyright traps are made."""
    words = sorted({word for text in (*split.a, *split.b, *split.c) for word in re.findall(r"\b[a-z]{3,9}\b", text)})
    draw = random.Random(seed)
    return [Canary(" ".join(draw.choices(words, k=CANARY_WORDS)), count) for count in times for _ in range(each)]
