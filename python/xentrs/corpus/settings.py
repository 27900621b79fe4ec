"""The protocol of a run: prefix, window, stride, and what else decides the digits.

In: what the user asked for and the loaded model. Out: `Settings`, with every default resolved, and the
protocol block that stands in each result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import xentrs
from xentrs.corpus.reading import Reading
from xentrs.corpus.windows import Rule, Windowing
from xentrs.errors import ParamError
from xentrs.models import SplitRunner, TextEncoder

DEFAULT_WINDOW = 2048
LLAMA_CPP_WINDOW = 512
HF_STRIDE = 512
DEFAULT_BATCH_TOKENS = 1024  # larger batches pad more and were slower: docs/scoring.md, Speed
PART_TOKENS = 65_536

TokenLevel = Literal["none", "basic", "detect", "all"]
Protocol = Literal["lm-eval", "hf-strided", "llama.cpp", "full"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
RENYI_ORDERS = (0.5, 2.0)
"""Of the level `detect`; order 1 is `entropy`, order infinity is -top1_log_prob."""


@dataclass(frozen=True)
class Prefix:
    """The token that conditions a document and is never scored; `token_id` None: there is none."""

    requested: str
    resolved: str  # "none", "bos", "eos" or "id"
    token_id: int | None


@dataclass(frozen=True)
class Columns:
    """What is kept of each token: the level, and what the higher levels are asked for besides."""

    level: TokenLevel = "basic"
    inverse_temperatures: tuple[float, ...] = ()
    top_k: int = 5

    def __post_init__(self) -> None:
        values = self.inverse_temperatures
        if not all(0 <= value < math.inf for value in values) or len(set(values)) < len(values):
            shown = ", ".join(f"{value:g}" for value in values)
            raise ParamError(f"inverse temperatures {shown}: expected different numbers from 0 on")

    @property
    def has_details(self) -> bool:
        """Whether what detection needs is computed."""
        return self.level in ("detect", "all")

    def block(self) -> dict[str, Any]:
        """For the fingerprint of a RUN: what decides its columns."""
        top_k = self.top_k if self.level == "all" else 0
        return {"tokens": self.level, "inverse_temperatures": list(self.inverse_temperatures), "top_k": top_k}


@dataclass(frozen=True)
class Settings:
    """Everything besides model and inputs that decides the numbers of a run."""

    prefix: Prefix
    windowing: Windowing
    protocol: Protocol | None = None  # the preset that chose prefix and windows
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    part_tokens: int = PART_TOKENS
    reading: Reading = field(default_factory=Reading)
    columns: Columns = field(default_factory=Columns)
    keep_text: bool = False
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
    runner: SplitRunner,
    *,
    protocol: Protocol | None = None,
    prefix: str | None = None,
    prefix_every: Literal["document", "window"] | None = None,
    window: int | None = None,
    stride: int | None = None,
    min_context: int | None = None,
    batch_tokens: int | None = None,
    **others: Any,
) -> Settings:
    """Fill in the defaults: window = min(the model's maximum, 2048), stride = window, prefix auto, once per document.
    With `protocol` its own stand in their place, and only sizes of windows may be given besides. `min_context` is
    another way to say stride: window - min_context.

    Raises:
        ParamError: a value does not fit the model or the others.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise ParamError(f"--protocol {protocol}: expected {', '.join(PROTOCOLS)}")
    if prefix_every not in (None, "document", "window"):
        raise ParamError(f"--prefix-every {prefix_every}: expected document or window")
    if protocol is not None and (prefix is not None or prefix_every is not None):
        raise ParamError(f"--protocol {protocol} has its own prefix; --prefix and --prefix-every do not go with it")
    longest = runner.info.max_length
    if window is None:
        window = _default_window(protocol, longest)
    if window < 1 + (protocol == "llama.cpp"):
        raise ParamError(f"--window {window}: expected at least {1 + (protocol == 'llama.cpp')}")
    # llama.cpp's and the transformers recipe's windows hold their last target, which is no input.
    if longest is not None and window > longest:
        raise ParamError(f"--window {window}: the model was made for at most {longest} positions")
    stride = _stride(protocol, window, stride, min_context)
    encoder, vocab_size = runner.encoder, runner.info.vocab_size
    reading = others.get("reading", Reading())
    if reading.messages_key is not None and encoder.chat_template_sha256 is None:
        raise ParamError("--messages-key: this tokenizer has no chat template")
    resolved = _preset_prefix(protocol, encoder) or resolve_prefix(prefix or "auto", encoder, vocab_size)
    rules: dict[Any, Rule] = {"lm-eval": "backfilled", "hf-strided": "inside", "llama.cpp": "halves"}
    windowing = Windowing(window, stride, rules.get(protocol, "rolling"), prefix_every or "document")
    if batch_tokens is None:
        batch_tokens = DEFAULT_BATCH_TOKENS
    return Settings(resolved, windowing, protocol, batch_tokens=batch_tokens, **others)


def _default_window(protocol: Protocol | None, longest: int | None) -> int:
    if protocol == "llama.cpp":
        return LLAMA_CPP_WINDOW if longest is None else min(longest, LLAMA_CPP_WINDOW)
    if protocol is None:
        return DEFAULT_WINDOW if longest is None else min(longest, DEFAULT_WINDOW)
    return longest or DEFAULT_WINDOW


def _stride(protocol: Protocol | None, window: int, stride: int | None, min_context: int | None) -> int:
    if stride is not None and min_context is not None:
        raise ParamError("--stride and --min-context are two ways to say the same; give one")
    if protocol in ("llama.cpp", "lm-eval") and (stride or window) + (min_context or 0) != window:
        raise ParamError(f"--protocol {protocol}: windows do not overlap; --stride and --min-context do not go with it")
    if min_context is not None:
        if not 0 <= min_context < window:
            raise ParamError(f"--min-context {min_context}: expected 0 to less than the window, {window}")
        return window - min_context
    if stride is None:
        chosen = {"hf-strided": min(HF_STRIDE, window), "full": max(1, window // 2)}
        return chosen.get(protocol or "", window)
    if not 1 <= stride <= window:
        raise ParamError(f"--stride {stride}: expected 1 to the window, {window}")
    return stride


def _preset_prefix(protocol: Protocol | None, encoder: TextEncoder) -> Prefix | None:
    """The prefix by a preset's own rule; None where it is `auto`."""
    if protocol == "hf-strided":
        return Prefix("hf-strided", "none", None)
    if protocol != "lm-eval":
        return None
    # HFLM.prefix_token_id: BOS, else EOS, whether or not the tokenizer itself adds one.
    if encoder.bos_id is not None:
        return Prefix("lm-eval", "bos", encoder.bos_id)
    if encoder.eos_id is not None:
        return Prefix("lm-eval", "eos", encoder.eos_id)
    raise ParamError("--protocol lm-eval: this tokenizer has neither BOS nor EOS")


def protocol_block(runner: SplitRunner, settings: Settings) -> dict[str, Any]:
    """What a reader needs to reproduce or to compare the numbers."""
    info = runner.info
    return {
        "model": info.name,
        "model_revision": info.revision,
        "model_sha256": info.sha256,
        "model_note": info.note,
        "tokenizer_sha256": runner.encoder.sha256,
        "chat_template_sha256": runner.encoder.chat_template_sha256 if settings.reading.messages_key else None,
        "dtype": info.dtype,
        "device": info.device,
        "prefix": settings.prefix.resolved,
        "prefix_requested": settings.prefix.requested,
        "prefix_token_id": settings.prefix.token_id,
        "protocol": settings.protocol,
        "prefix_every": settings.windowing.prefix_every,
        "window": settings.windowing.window,
        "stride": settings.windowing.stride,
        "window_rule": settings.windowing.rule,
        "batch_tokens": settings.batch_tokens,
        "xentrs_version": xentrs.__version__,
        "numerics_version": xentrs.numerics_version,
        "isa": xentrs.isa() if runner.head is None else runner.head.isa,
        **{f"{name}_version": version for name, version in sorted(info.libraries.items())},
    }
