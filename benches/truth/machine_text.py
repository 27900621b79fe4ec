"""Text that the default model wrote, against how people went on from the same words.

In: documents. Out: checks: scores for machine text tell the two apart, and what the entropy tests promise of a model's
own text holds: the deviation of the nll from the entropy has mean 0 and the variance that the model says.

A prompt is the first tokens of a document, the human text what follows in it, the machine text as many tokens drawn at
temperature 1 from the whole distribution. Both have the prompt before them when they are scored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xentrs as xe
from checks import Findings, area_of, interval_of
from scored import detect, write_jsonl
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM
from xentrs.detect import DocumentTokens, evaluate, score_documents

BOUND = "entropy-test-bound"
PROMPT_TOKENS, FEWEST_TOKENS, MOST_TOKENS = 30, 25, 48
ASSERTED = ("fast-detectgpt",)  # the default model knows some of the texts by heart: their ranks are low


def machine_text_is_told(findings: Findings, model: Path, texts: Sequence[str], work: Path, seed: int) -> None:
    """Sample, score and check."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    encoded = [tokenizer.encode(text).ids for text in texts]
    human = [ids[: PROMPT_TOKENS + MOST_TOKENS] for ids in encoded if len(ids) >= PROMPT_TOKENS + FEWEST_TOKENS]
    body = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    machine = _sampled(body, human, seed)
    _own_text_is_calibrated(findings, body, machine)
    _scores_tell(findings, model, tokenizer, (human, machine), work)


@torch.no_grad()
def _sampled(body: torch.nn.Module, human: Sequence[list[int]], seed: int) -> list[list[int]]:
    """For each text the same prompt and as many tokens, drawn from the model."""
    torch.manual_seed(seed)
    prompts = torch.tensor([ids[:PROMPT_TOKENS] for ids in human])
    settings = {
        "do_sample": True,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    drawn = body.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=MOST_TOKENS, **settings)
    return [row[: len(ids)] for row, ids in zip(drawn.tolist(), human, strict=True)]


@torch.no_grad()
def _own_text_is_calibrated(findings: Findings, body: torch.nn.Module, machine: Sequence[list[int]]) -> None:
    """With S the sum of nll - H of a text and V that of the variances: E[S] = 0 and E[S^2 - V] = 0, at any length. Of
    its own texts the bound rejects no more than it says, of tokens drawn alike from the whole vocabulary every one.
    """
    own = _tokens(body, machine)
    deviations = np.add.reduceat(own.nll - own.entropy, own.offsets[:-1])
    surplus = deviations**2 - np.add.reduceat(own.varentropy, own.offsets[:-1])
    for name, values in (("mean of nll - H", deviations), ("variance of nll - H", surplus)):
        z = float(np.mean(values) / (np.std(values, ddof=1) / math.sqrt(len(values))))
        figure = f"{len(values)} texts, {z:+.2f} standard errors from what the model says, expected within 3.3"
        findings.check(f"own text at temperature 1, {name}", figure, abs(z) <= 3.3)
    p_values = score_documents(own, [BOUND]).values[BOUND]
    share, most = float((p_values <= 0.05).mean()), 0.05 + 2.0 * math.sqrt(0.05 * 0.95 / len(p_values))
    figure = f"{share:.3f} of the texts have p at most 0.05, expected at most {most:.3f}"
    findings.check(f"own text at temperature 1, {BOUND}", figure, np.isfinite(p_values).all() and share <= most)
    drawn = np.random.default_rng(0).integers(len(body.lm_head.weight), size=(len(machine), MOST_TOKENS)).tolist()
    random_text = [[*ids[:PROMPT_TOKENS], *tokens] for ids, tokens in zip(machine, drawn, strict=True)]
    p_values = score_documents(_tokens(body, random_text), [BOUND]).values[BOUND]
    figure = f"largest p {p_values.max():.1e}, expected below 0.001"
    findings.check(f"tokens drawn alike, {BOUND}", figure, bool((p_values < 0.001).all()))


@torch.no_grad()
def _tokens(body: torch.nn.Module, texts: Sequence[list[int]]) -> DocumentTokens:
    """What the model says of the tokens behind the prompts."""
    rows = []
    for ids in texts:
        hidden = body.model(torch.tensor([ids])).last_hidden_state[0, PROMPT_TOKENS - 1 : -1]
        rows.append(xe.linear_row_stats(hidden, body.lm_head.weight, torch.tensor(ids[PROMPT_TOKENS:])))
    columns = {name: np.concatenate([getattr(row, name) for row in rows]) for name in ("nll", "entropy", "varentropy")}
    return DocumentTokens(offsets=np.cumsum([0, *(len(row.nll) for row in rows)]), **columns)


def _scores_tell(
    findings: Findings, model: Path, tokenizer: Tokenizer, sides: tuple[list[list[int]], list[list[int]]], work: Path
) -> None:
    records = [
        {
            "id": f"{side}{place}",
            "prompt": tokenizer.decode(ids[:PROMPT_TOKENS]),
            "text": tokenizer.decode(ids[PROMPT_TOKENS:]),
        }
        for side, rows in zip(("human", "machine"), sides, strict=True)
        for place, ids in enumerate(rows)
    ]
    path = write_jsonl(work / "machine.jsonl", records)
    options = ("--context-key", "prompt", "--continuation-key", "text", "--scores", "machine", "--dtype", "float32")
    scored = detect(path, model, work / "machine", *options)
    labels = [int(name.startswith("machine")) for name in scored.places]
    found = evaluate(scored.values, labels).scores
    rows = [{"score": name, "AUROC": entry.auroc, "95 %": interval_of(entry)} for name, entry in found.items()]
    findings.table(f"{sum(labels)} texts of the default model against {len(labels) - sum(labels)} of people", rows)
    for name in ASSERTED:
        entry = found[name]
        findings.check(f"machine text, {name}", f"{area_of(entry)}, expected above 0.5", entry.interval.low > 0.5)
