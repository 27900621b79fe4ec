"""Whether `xentrs score --protocol` gives what the peers give: lm-eval's HFLM and llama-perplexity, float32 weights.

Usage: python benches/score.py --parity [INPUT ...] [--model smollm2-135m] [--window 2048] [--threads N]
       [--llama-perplexity PATH --gguf PATH [--llama-context 1024]] [--tools xentrs lm-eval llama] [--csv [PATH]]

Of each document the relative difference between the log-likelihood of `--protocol lm-eval` and HFLM's, as it is and
with `softmax_dtype` float64: torch's float32 log_softmax over a large vocabulary is off by more than all the rest.

Of all documents as one text the difference of ln PPL between `--protocol llama.cpp` and llama-perplexity, which prints
four decimals of PPL, for windows of 512 and of --llama-context tokens. The GGUF should hold the same weights in
float32; the program gets `-fa off -ctk f32 -ctv f32`, since it keeps keys and values in float16 else.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import score_peers as peers
import torch
from score_llama import Llama
from score_peers import Corpus
from xentrs.corpus import resolve_settings, score_corpus
from xentrs.models import load_model

LLAMA_WINDOW = 512  # its default
EXACT = ("-fa", "off", "-ctk", "f32", "-ctv", "f32")


def run_parity(options: argparse.Namespace, corpus: Corpus, llama: Llama | None) -> Iterator[list[dict[str, Any]]]:
    """Compares answers and yields CSV columns."""
    runner = load_model(options.model, dtype="float32")
    runner.prepare()
    shared = {"work": "parity", "dtype": "float32", "model": options.model, "vocab": runner.info.vocab_size}
    if "lm-eval" in options.tools:
        if reason := peers.lm_eval_missing():
            print(f"lm-eval: skipped, {reason}")
        else:
            yield from ([{**shared, **row}] for row in _lm_eval(options, corpus, runner))
    if "llama" in options.tools:
        if llama is None:
            print("llama-perplexity: skipped, --llama-perplexity and --gguf are not given")
            return
        for context in sorted({LLAMA_WINDOW, options.llama_context}):
            yield [{**shared, **_llama(options, corpus, runner, llama, context)}]


def _lm_eval(options: argparse.Namespace, corpus: Corpus, runner: Any) -> Iterator[dict[str, Any]]:
    settings = resolve_settings(runner, protocol="lm-eval", window=options.window, num_threads=options.threads)
    tokens = peers.token_count(corpus, runner)
    ours = _answer(peers.xentrs_entry(corpus, runner, settings, tokens))
    harness = peers.load_lm_eval(options.model, "float32", options.window, options.lm_eval_batch)
    for softmax_dtype in (None, torch.float64):
        harness.softmax_dtype = softmax_dtype
        theirs = _answer(peers.lm_eval_entry(harness, corpus, tokens))
        difference = np.abs(theirs / ours - 1)
        worst = int(difference.argmax())
        tool = "lm-eval HFLM" + (f", softmax_dtype={softmax_dtype}" if softmax_dtype else "")
        print(
            f"{tool}: log-likelihoods of {len(ours)} documents ({tokens:,} tokens) differ by at most "
            f"{difference[worst]:.2e} of themselves, median {np.median(difference):.1e} (document {worst}: "
            f"{-ours[worst]:.6f}, HFLM {-theirs[worst]:.6f}), their sums by {abs(theirs.sum() / ours.sum() - 1):.1e}",
            flush=True,
        )
        found = {"tool": tool, "documents": len(ours), "tokens": tokens, "window": options.window}
        yield {**found, "difference": f"{difference[worst]:.3e}", "note": "the largest, of itself"}


def _answer(entry: peers.Entry) -> peers.Values:
    entry.warm()
    assert entry.answer is not None
    return entry.answer


def _llama(options: argparse.Namespace, corpus: Corpus, runner: Any, llama: Llama, context: int) -> dict[str, Any]:
    settings = resolve_settings(runner, protocol="llama.cpp", window=context, num_threads=options.threads)
    with _text_corpus(corpus.joined) as joined:
        totals = score_corpus(runner, joined.sources, settings, None, peers.Silent()).summary["totals"]
    theirs = replace(llama, options=EXACT).run(corpus.joined, context).perplexity
    found, expected = totals["mean_nll"], math.log(theirs)
    print(
        f"llama-perplexity -c {context}: ln PPL {expected:.6f} (PPL {theirs:.4f}, so known to {5e-5 / theirs:.1e}), "
        f"xentrs {found:.6f} (PPL {math.exp(found):.4f}, {totals['scored_tokens']:,} tokens scored): "
        f"difference {abs(found - expected):.1e}",
        flush=True,
    )
    row = {"tool": f"llama-perplexity -c {context}", "documents": 1, "tokens": totals["scored_tokens"]}
    return {**row, "window": context, "difference": f"{abs(found - expected):.3e}", "note": "of ln PPL"}


@contextmanager
def _text_corpus(text: str) -> Iterator[Corpus]:
    """A corpus of one text file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(text.encode("utf-8"))
        yield peers.read_corpus([str(path)])
