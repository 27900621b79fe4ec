"""`xentrs score` as a whole, against the bare body of the model, lm-eval and llama-perplexity on the same documents.

Usage: python benches/score.py [INPUT ...] [--model smollm2-135m] [--dtype bfloat16 float32] [--threads N] [--repeats 5]
       [--window 2048] [--batch-tokens N ...] [--body-windows 1 2 4 8 16] [--tools body xentrs lm-eval llama]
       [--llama-perplexity PATH --gguf PATH [--llama-context 1024]] [--csv [PATH]]
       python benches/score.py --parity [...]            answers against those of the peers (score_parity.py)
       python benches/score.py --large-vocabulary [...]  speed and memory with 262,144 entries (score_large.py)

INPUT is what `xentrs score` takes; without any, examples/. Start-up and loading of the model do not count. All take the
documents by lm-eval's rule: BOS before each, windows of --window inputs that do not overlap, every token scored once.

- bare body: `model.base_model` of transformers alone over these windows, sorted by length, without a head. Each number
  of windows a batch runs once; those within 15 % of the fastest run in turn with the other tools.
- xentrs score: `score_corpus` into a fresh RUN folder: reading, tokenising, body, head with all statistics, tables.
- lm-eval: `HFLM(pretrained=FOLDER, dtype=..., batch_size=8).loglikelihood_rolling`. It gives one number a document.
- llama-perplexity: perplexity of all documents as one text, by its own clock from the loaded model and the tokenised
  text on. It takes in whole windows only and gives the second half of each a score; speed counts what it took in.

Each tool first runs once: its answer is checked and it is warm. Then all run in turn, repeat k of each before repeat
k + 1 of any, with as many threads each. tokens/s is by the median and counts the documents' own tokens. "/ body" is the
time for a token over that of the fastest bare body of the dtype in turn; "cores" is processor time over time: on a
machine that others use too it is less than --threads, and ratios swing; then compare the least processor time with
--threads 1 ("processor", in s; threads that wait in a loop count too). What is not there is skipped, with the reason.

--csv appends to PATH or to benches/results/<machine>/<date>-score.csv; the columns are those of the table.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import score_peers as peers
import xentrs as xe
from machine import append_csv, facts, print_facts, results_folder
from score_large import run_large
from score_llama import Llama, llama_entry
from score_parity import run_parity
from score_peers import Corpus, Entry
from xentrs.corpus import resolve_settings
from xentrs.models import load_model, set_threads

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
CLOSE = 1.15  # numbers of windows a batch whose first run is within so much of the fastest run in turn
MOST_OVER_BODY, TARGET_VOCAB = 0.20, 49_152  # what may come on top of the fastest body, with so many entries
# Of the nll of the whole corpus. bfloat16 hidden states depend on how a batch is put together; lm-eval rounds
# log-probabilities and their sum to the dtype of the model.
TOLERANCE = {"bfloat16": 2e-2, "float32": 1e-5}
COLUMNS = [
    *("work", "dtype", "model", "vocab", "tool", "window", "documents", "tokens", "repeats", "s_min", "s_median"),
    *(
        "s_max",
        "cores_busy",
        "tokens_per_s",
        "time_over_body",
        "body_s",
        "head_s",
        "rest_s",
        "peak_bytes",
        "added_bytes",
    ),
    *("model_bytes",),
    *("difference", "transformers", "lm_eval", "llama_cpp", "note"),
]
HEADER = (
    f"{'dtype':9}{'tool':34}{'tokens':>8}{'s min':>8}{'median':>8}{'max':>8}{'cores':>6}{'processor':>10}"
    f"{'tokens/s':>10}{'/ body':>8}"
)


def versions(llama: Llama | None) -> dict[str, str]:
    """Of the peers."""
    found = {"transformers": metadata.version("transformers"), "llama_cpp": llama.version() if llama else ""}
    return {**found, "lm_eval": "" if peers.lm_eval_missing() else metadata.version("lm_eval")}


def entries_of(options: argparse.Namespace, corpus: Corpus, dtype: str) -> tuple[Any, list[Entry]]:
    """The runner of a dtype and what is timed with it, each checked and warm."""
    runner = load_model(options.model, dtype=dtype)
    runner.prepare()
    tokens = peers.token_count(corpus, runner)
    shared = {"protocol": "lm-eval", "window": options.window, "num_threads": options.threads}
    settings = [resolve_settings(runner, **shared, batch_tokens=count) for count in options.batch_tokens]
    print(
        f"{options.model} {dtype}: {len(corpus.texts)} documents, {tokens:,} tokens, vocabulary "
        f"{runner.info.vocab_size:,}, window {settings[0].windowing.window}, prefix {settings[0].prefix.resolved}, "
        f"attention {runner.model.config._attn_implementation}, head {runner.head.isa}",
        flush=True,
    )
    entries = []
    if "body" in options.tools:
        bodies = {size: peers.body_entry(corpus, runner, settings[0], size, tokens) for size in options.body_windows}
        entries += close_ones(bodies, lambda size: peers.body_answer(corpus, runner, settings[0], size))
    if "xentrs" in options.tools:
        for one in settings:
            name = "xentrs score" if len(settings) == 1 else f"xentrs score, {one.batch_tokens} tokens a batch"
            entries.append(peers.xentrs_entry(corpus, runner, one, tokens, name))
    if "lm-eval" in options.tools:
        if reason := peers.lm_eval_missing():
            print(f"lm-eval: skipped, {reason}")
        else:
            harness = peers.load_lm_eval(options.model, dtype, options.window, options.lm_eval_batch)
            entries.append(peers.lm_eval_entry(harness, corpus, tokens))
    for entry in entries:
        if not entry.name.startswith("bare"):  # these are warm
            entry.warm()
    check(entries, dtype)
    return runner, entries


def close_ones(bodies: dict[int, Entry], answer: Callable[[int], Any]) -> list[Entry]:
    """The numbers of windows a batch that may be the fastest, by one run each; the fastest gets its answer."""
    first = {}
    next(iter(bodies.values())).warm()
    for size, body in bodies.items():
        first[size] = body.turn()
        print(f"    {body.name}: {body.tokens / first[size]:.0f} tokens/s in a first run, {body.note}", flush=True)
    fastest = min(first, key=lambda size: first[size])
    bodies[fastest].answer = answer(fastest)
    return [body for size, body in bodies.items() if first[size] <= CLOSE * first[fastest]]


def check(entries: list[Entry], dtype: str) -> None:
    """Holds the nll of the whole corpus against xentrs'; raises AssertionError."""
    expected = next((entry.answer for entry in entries if entry.name.startswith("xentrs")), None)
    for entry in entries:
        if expected is None or entry.answer is None:
            continue
        error = abs(entry.answer.sum() / expected.sum() - 1)
        print(f"    {entry.name}: nll {entry.answer.sum():.4f}, off by {error:.2g} of xentrs'", flush=True)
        if not error <= TOLERANCE[dtype]:
            raise AssertionError(f"{entry.name} is off by {error:.3g}, more than {TOLERANCE[dtype]:.3g}")


def take_turns(entries: list[Entry], repeats: int) -> None:
    """Runs all in turn."""
    for _ in range(repeats):
        for entry in entries:
            entry.take_turn()


def row_of(entry: Entry, body: Entry | None) -> dict[str, Any]:
    """The CSV columns of one tool."""
    row: dict[str, Any] = {"dtype": entry.dtype, "tool": entry.name, "tokens": entry.tokens, "note": entry.note}
    times = {"s_min": min(entry.seconds), "s_median": entry.median, "s_max": max(entry.seconds)}
    row |= {name: f"{seconds:.3f}" for name, seconds in times.items()}
    row |= {"repeats": len(entry.seconds), "tokens_per_s": f"{entry.tokens_per_second:.1f}"}
    if not entry.is_outside:
        row["processor_s_min"] = f"{min(entry.processor_seconds):.2f}"
        row["cores_busy"] = f"{np.median(np.divide(entry.processor_seconds, entry.seconds)):.2f}"
    for name in ("body", "head", "rest"):
        if values := entry.shares.get(name):
            row[f"{name}_s"] = f"{float(np.median(values)):.3f}"
    if body is not None:
        row["time_over_body"] = f"{body.tokens_per_second / entry.tokens_per_second:.3f}"
    return row


def print_row(row: dict[str, Any]) -> None:
    """Prints one line of the table."""
    times = "".join(f"{float(row[name]):8.2f}" for name in ("s_min", "s_median", "s_max"))
    processor = f"{row.get('cores_busy', ''):>6}{row.get('processor_s_min', ''):>10}"
    speed = f"{processor}{float(row['tokens_per_s']):10.1f}{row.get('time_over_body', ''):>8}"
    shares = ", ".join(
        f"{name} {float(row[name + '_s']):.2f} s" for name in ("body", "head", "rest") if f"{name}_s" in row
    )
    print(f"{row['dtype']:9}{row['tool']:34}{row['tokens']:8}{times}{speed}  {shares}".rstrip(), flush=True)


def print_verdict(entries: list[Entry], body: Entry | None, vocab: int) -> None:
    """What xentrs takes beyond the body, and its speed against each peer's."""
    for entry in entries:
        if not entry.name.startswith("xentrs"):
            continue
        if body is not None:
            over = body.tokens_per_second / entry.tokens_per_second - 1
            verdict = f", at most {MOST_OVER_BODY:.0%}: {'met' if over <= MOST_OVER_BODY else 'MISSED'}"
            print(f"    {entry.name}: {over:.1%} beyond the fastest body{verdict if vocab <= TARGET_VOCAB else ''}")
        for peer in entries:
            if not peer.name.startswith(("xentrs", "bare")):
                print(f"    {entry.name}: {entry.tokens_per_second / peer.tokens_per_second:.2f} times {peer.name}")


def table(columns: list[tuple[Entry, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Prints tools that ran in turn and returns their CSV columns."""
    entries = [entry for entry, _ in columns]
    bodies = [entry for entry in entries if entry.name.startswith("bare")]
    body = min(bodies, key=lambda entry: entry.median, default=None)
    rows = [{**shared, **row_of(entry, body)} for entry, shared in columns]
    print(HEADER)
    for row in rows:
        print_row(row)
    print_verdict(entries, body, columns[0][1]["vocab"])
    return rows


def run_speed(options: argparse.Namespace, corpus: Corpus, llama: Llama | None) -> Iterator[list[dict[str, Any]]]:
    """Times all tools with each dtype and yields their CSV columns."""
    for dtype in options.dtype:
        runner, entries = entries_of(options, corpus, dtype)
        if llama is not None and "llama" in options.tools:
            entries.append(llama_entry(llama, corpus.joined, options.llama_context))
            entries[-1].warm()
        elif "llama" in options.tools:
            print("llama-perplexity: skipped, --llama-perplexity and --gguf are not given")
        take_turns(entries, options.repeats)
        shared = {"work": "score", "model": options.model, "vocab": runner.info.vocab_size}
        shared |= {"window": options.window, "documents": len(corpus.texts)}
        yield table([(entry, shared) for entry in entries])
        del runner, entries
        gc.collect()


def options_of_command_line() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="xentrs score against the bare body, lm-eval and llama-perplexity.")
    tools, dtypes = ["body", "xentrs", "lm-eval", "llama"], ["bfloat16", "float32"]
    parser.add_argument("inputs", nargs="*", metavar="INPUT")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=dtypes)
    parser.add_argument("--threads", type=int, default=xe.num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[None], help="of xentrs; default: its own")
    parser.add_argument("--body-windows", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--tools", nargs="+", choices=tools, default=tools)
    parser.add_argument("--lm-eval-batch", type=int, default=8)
    parser.add_argument("--llama-perplexity", metavar="PATH")
    parser.add_argument("--gguf", metavar="PATH")
    parser.add_argument("--llama-context", type=int, default=1024)
    parser.add_argument("--parity", action="store_true", help="compare answers with float32 weights, no times")
    parser.add_argument("--large-vocabulary", action="store_true", help="random weights, 262,144 entries")
    parser.add_argument("--large-tokens", type=int, default=4096)
    parser.add_argument("--csv", type=Path, nargs="?", const=Path(), help="append to PATH or to benches/results/...")
    options = parser.parse_args()
    if (options.llama_perplexity is None) != (options.gguf is None):
        parser.error("--llama-perplexity and --gguf go together")
    examples = [str(path) for pattern in ("*.txt", "*.jsonl") for path in sorted(EXAMPLES.glob(pattern))]
    options.inputs = options.inputs or examples
    return options


def main() -> None:
    """Prints the tables and keeps them if asked to."""
    options = options_of_command_line()
    set_threads(options.threads)
    llama = Llama(options.llama_perplexity, options.gguf, options.threads) if options.gguf else None
    run, peer_versions = facts(options.threads), versions(llama)
    print_facts(run)
    print(
        "peers: " + ", ".join(f"{name} {version or 'missing'}" for name, version in peer_versions.items()), flush=True
    )
    path = options.csv
    if path == Path():
        path = results_folder(run) / f"{run['date'][:10]}-score.csv"
    if options.large_vocabulary:
        works = map(table, run_large(options))
    else:
        works = (run_parity if options.parity else run_speed)(options, peers.read_corpus(options.inputs), llama)
    for rows in works:
        if path is not None:
            filled = ({name: {**row, **peer_versions}.get(name, "") for name in COLUMNS} for row in rows)
            append_csv(path, [{**run, **row} for row in filled])
    if path is not None:
        print(f"appended to {path}")


if __name__ == "__main__":
    main()
