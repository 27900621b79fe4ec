"""Speed and memory of scoring with a vocabulary of 262,144 entries: xentrs with all statistics against lm-eval.

Usage: python benches/score.py --large-vocabulary [--large-tokens 4096] [--threads N] [--repeats 5] [--csv [PATH]]
       [--tools body xentrs lm-eval]

The model has the shape of Gemma 3 270M (18 layers of width 640, 4 heads of 256 over one key, feed-forward 2,048, tied
embeddings) and random bfloat16 weights; its tokenizer knows a word for each entry. Documents have 512 words drawn at
random. Each tool runs in a fresh process, in turn: it loads the folder, scores one document to be warm, sets its peak
back to its resident size (as memory.py does) and scores all. Bare body: the transformers body over the same windows, as
many a batch as lm-eval takes.

Memory: `peak` is the largest resident size of the process while it scores (VmHWM), libraries, model and results in it;
`less model` that less the bytes of the weights; `added` that less what was resident before scoring.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import score_peers as peers
from memory import status_bytes
from score_peers import Entry

VOCAB, DOCUMENT_TOKENS, WINDOW = 262_144, 512, 2048
TOOLS = {"body": "bare body", "xentrs": "xentrs score", "lm-eval": "lm-eval HFLM"}
TOLERANCE = 2e-2  # of the nll of all: lm-eval rounds log-probabilities and their sums to bfloat16
MODEL, FIRST, ALL = "model", "first.jsonl", "all.jsonl"


def make_model(folder: Path) -> None:
    """Writes the model and its tokenizer; the seed is fixed."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256}
    config = transformers.Gemma3TextConfig(
        vocab_size=VOCAB,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        max_position_embeddings=WINDOW,
        **heads,
    )
    torch.manual_seed(0)
    transformers.Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    words = [*special.values(), *(f"w{number}" for number in range(len(special), VOCAB))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def make_documents(path: Path, count: int) -> None:
    """Writes documents of random words."""
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words = generator.integers(4, VOCAB, DOCUMENT_TOKENS)
            file.write(json.dumps({"text": " ".join(f"w{number}" for number in words)}) + "\n")


def make_entry(tool: str, folder: Path, threads: int, batch: int) -> tuple[Entry, int]:
    """A warm tool, and the bytes of its weights; lm-eval's process holds lm-eval's model alone."""
    from xentrs.corpus import resolve_settings
    from xentrs.models import load_model

    first, corpus = (peers.read_corpus([str(folder / name)]) for name in (FIRST, ALL))
    tokens, model = len(corpus.texts) * DOCUMENT_TOKENS, str(folder / MODEL)
    if tool == "lm-eval":
        harness = peers.load_lm_eval(model, "bfloat16", WINDOW, batch)
        peers.lm_eval_entry(harness, first, DOCUMENT_TOKENS).warm()
        return peers.lm_eval_entry(harness, corpus, tokens), peers.weight_bytes(harness.model)
    runner = load_model(model, dtype="bfloat16")
    runner.prepare()
    settings = resolve_settings(runner, protocol="lm-eval", window=WINDOW, num_threads=threads)
    if tool == "xentrs":
        peers.xentrs_entry(first, runner, settings, DOCUMENT_TOKENS).warm()
        return peers.xentrs_entry(corpus, runner, settings, tokens), peers.weight_bytes(runner.model)
    peers.body_entry(first, runner, settings, batch, DOCUMENT_TOKENS).warm()
    return peers.body_entry(corpus, runner, settings, batch, tokens), peers.weight_bytes(runner.model)


def measure_here(tool: str, folder: Path, threads: int, batch: int) -> dict[str, Any]:
    """Loads and scores in this process."""
    from xentrs.models import set_threads

    set_threads(threads)
    entry, model_bytes = make_entry(tool, folder, threads, batch)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = status_bytes("VmRSS")
    entry.take_turn()
    peak = status_bytes("VmHWM")
    return {
        "tokens": entry.tokens,
        "seconds": entry.seconds[0],
        "processor_seconds": entry.processor_seconds[0],
        "shares": {name: values[-1] for name, values in entry.shares.items()},
        "nll_sum": None if entry.answer is None else float(entry.answer.sum()),
        "peak_bytes": peak,
        "added_bytes": peak - before,
        "model_bytes": model_bytes,
    }


def measure_fresh(tool: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Scores in a fresh process."""
    more = ["--threads", str(options.threads), "--batch", str(options.lm_eval_batch)]
    command = [sys.executable, __file__, tool, str(folder), *more]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tool} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_large(options: argparse.Namespace) -> Iterator[list[tuple[Entry, dict[str, Any]]]]:
    """Measures the tools in turn and yields each with its columns of memory."""
    tools = [tool for tool in TOOLS if tool in options.tools]
    if "lm-eval" in tools and (reason := peers.lm_eval_missing()):
        print(f"lm-eval: skipped, {reason}")
        tools.remove("lm-eval")
    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), max(1, options.large_tokens // DOCUMENT_TOKENS)
        make_model(folder / MODEL)
        make_documents(folder / FIRST, 1)
        make_documents(folder / ALL, count)
        entries = {tool: Entry(TOOLS[tool], "bfloat16", count * DOCUMENT_TOKENS, lambda: 0.0) for tool in tools}
        found: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
        for _ in range(options.repeats):
            for tool in tools:
                measured = measure_fresh(tool, folder, options)
                found[tool].append(measured)
                entries[tool].seconds.append(measured["seconds"])
                entries[tool].processor_seconds.append(measured["processor_seconds"])
                for share, seconds in measured["shares"].items():
                    entries[tool].shares.setdefault(share, []).append(seconds)
    check(found)
    shared = {"work": "large", "model": "random, Gemma 3 270M's shape", "vocab": VOCAB, "window": WINDOW}
    shared |= {"documents": count}
    sizes = ("peak_bytes", "added_bytes", "model_bytes")
    largest = {tool: {size: max(one[size] for one in found[tool]) for size in sizes} for tool in tools}
    for tool in tools:
        peak, added, model = (largest[tool][size] / 2**20 for size in sizes)
        print(f"{TOOLS[tool]:20} MiB: peak {peak:8.0f}, less model {peak - model:8.0f}, added {added:8.0f}", flush=True)
    yield [(entries[tool], {**shared, **largest[tool]}) for tool in tools]


def check(found: dict[str, list[dict[str, Any]]]) -> None:
    """Holds the nll of all against xentrs'; raises AssertionError."""
    if "xentrs" not in found or "lm-eval" not in found:
        return
    expected, nll = found["xentrs"][0]["nll_sum"], found["lm-eval"][0]["nll_sum"]
    print(f"nll of all: xentrs {expected:.3f}, lm-eval {nll:.3f}")
    if not abs(nll / expected - 1) <= TOLERANCE:
        raise AssertionError(f"lm-eval's nll is {nll}, xentrs' {expected}")


def main() -> None:
    """Measures one tool and prints one JSON object."""
    parser = argparse.ArgumentParser(description="One tool on a folder that score.py made.")
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(measure_here(options.tool, options.folder, options.threads, options.batch)))


if __name__ == "__main__":
    main()
