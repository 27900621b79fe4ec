"""Tiny models that have seen some texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from conftest import write_model

_WORDS = ("river", "town", "fox", "dog", "snow", "bar", "cafe", "lamp", "stone", "wheel")
ITEMS = [f"{first} {second}" for first, second in itertools.permutations(_WORDS, 2)]
_SHARD = 8


def train_model(folder: Path, sequences: Sequence[Sequence[int]], steps: int) -> Path:
    """Some steps on sequences of ids, in turn, in the place of the model in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the fixture one_thread, which fixtures of a module come before
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        ids = torch.tensor([list(sequences[step % len(sequences)])])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    torch.set_num_threads(threads)
    return folder


def train_on_items(folder: Path) -> tuple[Path, list[str]]:
    """A tiny model that has read 40 items in their order, eight at a time, empty lines between; and the items."""
    from xentrs.models import load_model

    write_model(folder, max_position_embeddings=256)
    items: list[str] = np.random.default_rng(3).permutation(ITEMS)[:40].tolist()
    encoder = load_model(str(folder), dtype="float32").encoder
    *pieces, between = [entry.token_ids.tolist() for entry in encoder.encode([*items, "\n\n"])]
    starts = range(0, len(items), _SHARD)
    shards = [[token for piece in pieces[start : start + _SHARD] for token in between + piece] for start in starts]
    return train_model(folder, shards, 60), items
