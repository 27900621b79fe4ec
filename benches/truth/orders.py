"""A benchmark that one model read in its published order: does the order test find it, and nothing else?

In: words of the pool. Out: items; passages of them for training; checks by `xentrs order-test`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from checks import Findings
from scored import command, documents_file
from texts import Canary

ITEMS, ITEM_WORDS, SHARDS, SHUFFLES = 48, 6, 8, 30
PASSAGE_ITEMS, TIMES_SEEN = 12, 12  # a passage does not end where a shard does
SEPARATOR = "\n\n"
FOUND, CHANCE = 0.01, 0.001


def benchmark(words: Sequence[Canary]) -> list[str]:
    """Items in their published order, which nothing but a training text gives away."""
    drawn = [word for canary in words for word in canary.text.split()]
    return [" ".join(drawn[at * ITEM_WORDS : (at + 1) * ITEM_WORDS]) for at in range(ITEMS)]


def passages(items: Sequence[str]) -> list[Canary]:
    """What a model that was trained on the benchmark has read."""
    starts = range(0, ITEMS, PASSAGE_ITEMS)
    return [Canary(SEPARATOR.join(items[at : at + PASSAGE_ITEMS]), TIMES_SEEN) for at in starts]


def order_is_found(findings: Findings, items: Sequence[str], models: Mapping[str, Path], work: Path) -> None:
    """By the model that read it, `a`; not by the others."""
    path = documents_file(work / "benchmark.jsonl", {f"item{place}": text for place, text in enumerate(items)})
    sizes = ("--shards", str(SHARDS), "--shuffles", str(SHUFFLES))
    for name in ("a", "b", "untrained"):
        page = json.loads(command("order-test", path, "--model", models[name], *sizes, "--json", "--quiet"))
        p_value = page["test"]["permutation_p_value"]
        expected = f"at most {FOUND}" if name == "a" else f"above {CHANCE}"
        holds = p_value <= FOUND if name == "a" else p_value > CHANCE
        findings.check(f"order test, model {name}", f"permutation p {p_value:.4f}, expected {expected}", holds)
