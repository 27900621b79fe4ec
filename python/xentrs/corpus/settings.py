"""The protocol of a run: prefix, window, stride, and what else decides the digits.

In: what the user asked for and the loaded model. Out: `Settings`, with every default resolved, and the
protocol block that stands in each result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import xentrs
from xentrs.errors import ParamError
from xentrs.models import Runner, TextEncoder

DEFAULT_WINDOW = 2048
DEFAULT_BATCH_TOKENS = 2048
PART_TOKENS = 65_536


@dataclass(frozen=True)
class Prefix:
    """The token that conditions a document and is never scored; `token_id` None: there is none."""

    requested: str
    resolved: str  # "none", "bos", "eos" or "id"
    token_id: int | None


@dataclass(frozen=True)
class Settings:
    """Everything besides model and inputs that decides the numbers of a run."""

    prefix: Prefix
    window: int
    stride: int
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    part_tokens: int = PART_TOKENS
    text_key: str = "text"
    id_key: str = "id"
    limit: int | None = None
    num_threads: int | None = None  # not part of the protocol: threads change no bit of the kernel


def resolve_prefix(requested: str, encoder: TextEncoder, vocab_size: int) -> Prefix:
    """`none`, `bos`, `eos`, a token id, or `auto`: BOS where the tokenizer itself adds one, else none.

    Raises:
        ParamError: the tokenizer has no such token, or the id is outside the vocabulary.
    """
    if requested == "none":
        return Prefix(requested, "none", None)
    if requested == "auto":
        return Prefix(requested, "bos", encoder.bos_id) if encoder.adds_bos else Prefix(requested, "none", None)
    if requested in ("bos", "eos"):
        token_id = encoder.bos_id if requested == "bos" else encoder.eos_id
        if token_id is None:
            raise ParamError(f"--prefix {requested}: this tokenizer has no {requested.upper()} token")
        return Prefix(requested, requested, token_id)
    if not (requested.isascii() and requested.isdigit()):
        raise ParamError(f"--prefix {requested}: expected none, bos, eos, auto or a token id")
    if not int(requested) < vocab_size:
        raise ParamError(f"--prefix {requested}: outside the vocabulary [0, {vocab_size})")
    return Prefix(requested, "id", int(requested))


def resolve_settings(
    runner: Runner,
    *,
    prefix: str = "auto",
    window: int | None = None,
    stride: int | None = None,
    batch_tokens: int | None = None,
    **others: Any,
) -> Settings:
    """Fill in the defaults: window = min(the model's maximum, 2048), stride = window.

    Raises:
        ParamError: a value does not fit the model or the others.
    """
    longest = runner.info.max_length
    if window is None:
        window = DEFAULT_WINDOW if longest is None else min(longest, DEFAULT_WINDOW)
    if window < 1:
        raise ParamError(f"--window {window}: expected at least 1")
    if longest is not None and window > longest:
        raise ParamError(f"--window {window}: the model was made for at most {longest} positions")
    if stride is None:
        stride = window
    if not 1 <= stride <= window:
        raise ParamError(f"--stride {stride}: expected 1 to the window, {window}")
    resolved = resolve_prefix(prefix, runner.encoder, runner.info.vocab_size)
    if batch_tokens is None:
        batch_tokens = DEFAULT_BATCH_TOKENS
    return Settings(prefix=resolved, window=window, stride=stride, batch_tokens=batch_tokens, **others)


def protocol_block(runner: Runner, settings: Settings) -> dict[str, Any]:
    """What a reader needs to reproduce or to compare the numbers."""
    info = runner.info
    return {
        "model": info.name,
        "model_revision": info.revision,
        "model_sha256": info.sha256,
        "model_note": info.note,
        "tokenizer_sha256": runner.encoder.sha256,
        "dtype": info.dtype,
        "device": info.device,
        "prefix": settings.prefix.resolved,
        "prefix_requested": settings.prefix.requested,
        "prefix_token_id": settings.prefix.token_id,
        "window": settings.window,
        "stride": settings.stride,
        "batch_tokens": settings.batch_tokens,
        "xentrs_version": xentrs.__version__,
        "numerics_version": xentrs.numerics_version,
        "isa": xentrs.isa() if runner.head is None else runner.head.isa,
        **{f"{name}_version": version for name, version in sorted(info.libraries.items())},
    }
