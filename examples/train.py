"""Trains a small language model on the example documents, with a loss of xentrs or that of torch.

Usage: python examples/train.py [--loss xentrs] [--steps 100] [--batch 16] [--length 128] [--vocab 32768]
       python examples/train.py --compare [the same options]

The three losses are one number and differ in what a step holds:

- `xentrs` takes hidden states and the head; the logits never exist, neither forward nor backward;
- `xentrs-logits` takes logits, and holds two arrays of their size: themselves and their gradient;
- `torch` takes logits, and holds three: the log-softmax and two gradients.

A run prints each step's loss and tokens per second, and at last the most memory that the process held. --compare runs
torch and xentrs, each in a process of its own with the same seed and the same batches, and prints how far their losses
and their memory are apart, and the size of the logits.

The tokenizer is a byte-level BPE of the same documents. They are too few to fill a vocabulary of 32,768; words that
never occur count all the same, as rare words do in a large model, and the model learns that they are unlikely.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import xentrs as xe
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn

EXAMPLES = Path(__file__).resolve().parent
HEADS = 4


class LanguageModel(nn.Module):
    """A causal transformer of two blocks that stops short of the logits."""

    def __init__(self, vocab: int, width: int, length: int) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(vocab, width), nn.Embedding(length, width)
        block = nn.TransformerEncoderLayer(width, HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states `(batch, length, width)` of tokens `(batch, length)`."""
        return self.blocks(self.words(tokens) + self.positions.weight, mask=self.mask, is_causal=True)


def loss_of(loss: str, hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of the next tokens, by one of the three ways."""
    if loss == "xentrs":
        return xe.linear_cross_entropy(hidden, head.weight, targets)
    logits = head(hidden)
    if loss == "xentrs-logits":
        return xe.cross_entropy(logits, targets)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def read_tokens(vocab: int) -> torch.Tensor:
    """The example documents, one after the other, as ids of a tokenizer trained on them."""
    documents = [path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.txt"))]
    for path in sorted(EXAMPLES.glob("*.jsonl")):
        documents += [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    end, alphabet = "<end>", pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=[end], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(documents, trainer)
    return torch.tensor(tokenizer.encode(end.join(documents)).ids)


def train(options: argparse.Namespace) -> list[float]:
    """Trains, prints each step and returns the losses."""
    tokens = read_tokens(options.vocab)
    torch.manual_seed(options.seed)  # the model and the batches depend on nothing else
    model = LanguageModel(options.vocab, options.width, options.length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    offsets = torch.arange(options.length + 1)
    losses = []
    for step in range(options.steps):
        start = time.perf_counter()
        starts = torch.randint(len(tokens) - options.length, (options.batch, 1))
        batch = tokens[starts + offsets]
        loss = loss_of(options.loss, model(batch[:, :-1]), model.head, batch[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        speed = options.batch * options.length / (time.perf_counter() - start)
        print(f"step {step + 1:4}  loss {losses[-1]:.6f}  {speed:8,.0f} tokens/s", flush=True)
    return losses


def peak_bytes() -> int:
    """The most memory this process held. The `ru_maxrss` of getrusage may be that of the process which started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def compare(arguments: list[str], logits_bytes: int) -> None:
    """Runs torch and xentrs in fresh processes and prints what differs."""
    runs = {}
    for loss in ("torch", "xentrs"):
        print(f"--loss {loss}", flush=True)
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            command = [sys.executable, __file__, *arguments, "--loss", loss, "--record", file.name]
            subprocess.run(command, check=True)
            runs[loss] = json.load(file)
    pairs = zip(runs["torch"]["losses"], runs["xentrs"]["losses"], strict=True)
    saved = runs["torch"]["peak_bytes"] - runs["xentrs"]["peak_bytes"]
    print(f"largest difference of the losses: {max(abs(a - b) for a, b in pairs):.2g}")
    print("peak memory: " + ", ".join(f"{loss} {run['peak_bytes'] / 2**20:,.0f} MiB" for loss, run in runs.items()))
    print(f"torch held {saved / 2**20:,.0f} MiB more; the logits of a batch are {logits_bytes / 2**20:,.0f} MiB")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Trains a small language model.")
    parser.add_argument("--loss", choices=("xentrs", "xentrs-logits", "torch"), default="xentrs")
    parser.add_argument("--compare", action="store_true", help="torch against xentrs")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--width", type=int, default=128, help=f"of the hidden states, a multiple of {HEADS}")
    parser.add_argument("--vocab", type=int, default=32_768)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="write losses and peak memory to this JSON file")
    options = parser.parse_args()
    if options.compare:
        arguments = [argument for argument in sys.argv[1:] if argument != "--compare"]
        compare(arguments, options.batch * options.length * options.vocab * 4)
        return
    run = {"losses": train(options), "peak_bytes": peak_bytes()}
    print(f"peak memory {run['peak_bytes'] / 2**20:,.0f} MiB")
    if options.record:
        options.record.write_text(json.dumps(run), encoding="utf-8")


if __name__ == "__main__":
    main()
