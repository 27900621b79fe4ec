"""Small language models, trained from scratch: the truth that detection is held to.

In: documents, canaries. Out: a model folder as transformers writes it, which `xentrs` loads like any other. The
tokenizer is a byte-level BPE of the whole pool, the same for all models: it has read both sides alike.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xentrs as xe
from texts import Canary
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCAB = 16_384  # as large as it has to be for the head to be work; the examples fill a third of it
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """How a model is made; the same for all of a run."""

    width: int = 192
    layers: int = 3
    context: int = 512
    epochs: int = 10
    batch: int = 8
    learning_rate: float = 1.5e-3
    seed: int = 0


def train_tokenizer(documents: Sequence[str]) -> Tokenizer:
    """A tokenizer of these documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def new_model(recipe: Recipe) -> Any:
    """A Llama with random weights, the same for a seed."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=recipe.width,
            intermediate_size=4 * recipe.width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.width // 64,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def train(
    model: Any,
    tokenizer: Tokenizer,
    documents: Sequence[str],
    canaries: Sequence[Canary],
    recipe: Recipe,
    after_epoch: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Train on every document once an epoch and on every canary `times_seen` times in all; returns losses of epochs."""
    rows = [tokenizer.encode(text).ids[: recipe.context] for text in documents]
    traps = [(tokenizer.encode(canary.text).ids, canary.times_seen) for canary in canaries]
    draw = random.Random(recipe.seed)
    exposures: list[list[list[int]]] = [[] for _ in range(recipe.epochs)]
    for ids, times in traps:
        for time in range(times):  # spread over the epochs, the first of them drawn
            exposures[(time * recipe.epochs // times + draw.randrange(recipe.epochs)) % recipe.epochs].append(ids)
    steps_per_epoch = -(-(len(rows) + max(map(len, exposures))) // recipe.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.epochs * steps_per_epoch, pct_start=0.1
    )
    losses = []
    for epoch in range(recipe.epochs):
        order = [*rows, *exposures[epoch]]
        draw.shuffle(order)
        batches = [order[first : first + recipe.batch] for first in range(0, len(order), recipe.batch)]
        found = [_step(model, batch, optimizer, schedule) for batch in batches]
        losses.append(sum(found) / len(found))
        after_epoch(epoch + 1)
    return losses


def _step(model: Any, batch: list[list[int]], optimizer: Any, schedule: Any) -> float:
    longest = max(map(len, batch))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
    targets = torch.tensor([row[1:] + [IGNORED] * (longest - len(row) + 1) for row in batch])
    hidden = model.model(
        input_ids=ids, use_cache=False
    ).last_hidden_state  # what pads stands behind: nobody looks at it
    loss = xe.linear_cross_entropy(hidden, model.lm_head.weight, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return float(loss.detach())


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> Path:
    """Write a folder that loads as any model does."""
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder
