"""The transformers runner: a model loaded from a folder, an import or the Hub.

In: a name and options. Out: a `SplitRunner` over torch. Weights are read from safetensors only, code that comes
with a model is never run, and nothing is fetched for a folder. A head that is understood (head_torch.py) is offered as
it is, so that no logits need exist; a model whose head is not understood runs whole, one window at a time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from xentrs.models.catalog import resolve_model
from xentrs.models.head_torch import Head, find_head
from xentrs.models.hf_files import ModelFiles, first_line, load_config, load_tokenizer, locate, quiet_transformers
from xentrs.models.identity import folder_sha256
from xentrs.models.runner import FloatArray, IntArray, LinearHead, ModelError, ModelInfo
from xentrs.models.tokenizer import FastTextEncoder

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LENGTH_NAMES = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "seq_length")
_PROBE_LENGTH = 6


def load_transformers_model(name: str, *, revision: str | None, dtype: str, device: str) -> TransformersRunner:
    """Load `name`; see `xentrs.models.load_model`."""
    source = resolve_model(name)
    with quiet_transformers():
        files = locate(source, revision)
        config = load_config(files)
        _require_causal(name, config)
        torch_dtype, dtype_reason = choose_dtype(dtype, config, device)
        model = _load_weights(files, config, torch_dtype)
        tokenizer = load_tokenizer(files)
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device {device}: {first_line(error)}") from None
    encoder = FastTextEncoder(tokenizer, name, files.folder)
    info = ModelInfo(
        name=name,
        revision=files.commit,
        sha256=folder_sha256(files.folder),
        dtype=str(torch_dtype).removeprefix("torch."),
        dtype_reason=dtype_reason,
        device=device,
        vocab_size=_vocab_size(model),
        max_length=_max_length(config, tokenizer),
        note=source.note,
        libraries={"torch": torch.__version__, "transformers": transformers.__version__},
    )
    return TransformersRunner(model, encoder, info)


class TransformersRunner:
    """`SplitRunner` over a transformers causal model."""

    def __init__(self, model: Any, encoder: FastTextEncoder, info: ModelInfo) -> None:
        self.model = model
        self.encoder = encoder
        self.info = info
        self.notices: list[str] = []
        self.max_batch_windows: int | None = None
        self.shares_contexts = False
        self._head: Head | None = None
        self._prepared = False

    @property
    def head(self) -> LinearHead | None:
        """The head where the kernels can read it: understood, and on the CPU."""
        return self._head if self._head is not None and self._head.on_cpu else None

    @torch.inference_mode()
    def prepare(self) -> None:
        """One short forward: the model must be causal, and the head must give the model's own logits."""
        if self._prepared:
            return
        ids = torch.arange(_PROBE_LENGTH, device=self.info.device).repeat(2, 1) % self.info.vocab_size
        ids[1, -1] = (ids[1, -1] + 1) % self.info.vocab_size
        expected = self.model(input_ids=ids, use_cache=False).logits
        self._check_causal(expected)
        is_split = self.model.base_model is not self.model
        hidden = getattr(self._body(ids), "last_hidden_state", None) if is_split else None
        if hidden is not None:
            self._head = find_head(self.model, hidden, expected)
            self.shares_contexts = self._head is not None and self._continues(ids, hidden)
        if self._head is None:
            self.max_batch_windows = 1
            self.notices.append(
                f"{self.info.name}: the head of {type(self.model).__name__} is not understood; "
                "full logits are computed, one window at a time (slower, more memory)"
            )
        self._prepared = True

    def _body(self, ids: torch.Tensor, **options: Any) -> Any:
        # Right padding needs no mask in a causal model; without one torch takes its faster causal attention.
        return self.model.base_model(input_ids=ids, use_cache=False, **options)

    def _continues(self, ids: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether the body goes on from keys and values it has kept as if it had read all at once."""
        half = _PROBE_LENGTH // 2
        try:
            found = self._continued(ids[:, half:], ids[0, :half])
        except Exception:  # a model without such a cache, or with one of its own kind: read contexts with each row
            return False
        tolerance = 1e-4 if expected.dtype == torch.float32 else 5e-2
        wanted = expected[:, half:].float()
        return bool((found.float() - wanted).abs().max() <= tolerance * wanted.abs().max())

    def _continued(self, ids: torch.Tensor, shared: torch.Tensor) -> torch.Tensor:
        """Hidden states of rows behind a context that is read once."""
        cache = self.model.base_model(input_ids=shared[None], use_cache=True).past_key_values
        cache.batch_repeat_interleave(len(ids))
        hidden: torch.Tensor = self.model.base_model(
            input_ids=ids, past_key_values=cache, use_cache=True
        ).last_hidden_state
        return hidden

    def _check_causal(self, logits: torch.Tensor) -> None:
        """Two inputs that differ in their last token alone: what was predicted before it has to agree."""
        first, second = logits[:, :-1].float()
        # Both rows ran in one batch, so they agree to the last bits whatever the dtype.
        tolerance = 1e-4 if logits.dtype == torch.float32 else 1e-2
        if float((first - second).abs().max()) > tolerance * float(first.abs().max()):
            raise ModelError(
                f"model {self.info.name}: a later token changes earlier predictions: not a causal language model"
            )

    @torch.inference_mode()
    def hidden_states(self, input_ids: IntArray, shared_ids: IntArray | None = None) -> torch.Tensor:
        """`(batch, length)` ids to `(batch, length, width)`, float64 for float32 models on the CPU (head_torch.py says
        why); full logits where the head is not understood.
        """
        self.prepare()
        ids = self._tensor(input_ids)
        if self._head is None:
            full: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
            return full
        if shared_ids is not None:
            return self._head.operand(self._continued(ids, self._tensor(shared_ids)))
        return self._head.operand(self._body(ids).last_hidden_state)

    def _tensor(self, ids: IntArray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(ids)).to(self.info.device)

    @torch.inference_mode()
    def logits(self, hidden_rows: torch.Tensor) -> FloatArray:
        """`(rows, width)` to `(rows, vocab)` float32 on the CPU; no need of it where there is a `head`."""
        self.prepare()
        logits = hidden_rows.float() if self._head is None else self._head.logits(hidden_rows)
        array: FloatArray = logits.cpu().numpy()
        return array


def set_torch_threads(count: int) -> None:
    """Threads of torch's operations."""
    torch.set_num_threads(count)


def choose_dtype(requested: str, config: Any, device: str) -> tuple[torch.dtype, str]:
    """The dtype to load in, and why. "auto" keeps bfloat16 weights where the CPU multiplies them natively."""
    if requested != "auto":
        if requested not in _DTYPES:
            raise ModelError(f"dtype {requested}: expected auto, {', '.join(_DTYPES)}")
        return _DTYPES[requested], "as asked"
    stored = getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)
    stored_name = str(stored).removeprefix("torch.")
    if device != "cpu" and stored_name in _DTYPES:
        return _DTYPES[stored_name], "as stored"
    if stored_name == "bfloat16":
        if cpu_has_fast_bfloat16():
            return torch.bfloat16, "as stored; this CPU has bfloat16 products"
        return torch.float32, "this CPU has no bfloat16 products"
    return torch.float32, "as stored" if stored_name == "float32" else f"stored as {stored_name}"


def cpu_has_fast_bfloat16() -> bool:
    """Whether the CPU has bfloat16 products (AVX512-BF16 or AMX); False where that cannot be told."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _require_causal(name: str, config: Any) -> None:
    mapping = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    declared = config.architectures or []
    known = {entry for value in mapping.values() for entry in ([value] if isinstance(value, str) else value)}
    causal = config.model_type in mapping and (not declared or any(entry in known for entry in declared))
    if config.is_encoder_decoder or not causal:
        what = ", ".join(declared) or config.model_type
        raise ModelError(f"model {name}: {what} is not a causal language model")


def _load_weights(files: ModelFiles, config: Any, dtype: torch.dtype) -> Any:
    name = files.name
    try:
        auto: Any = transformers.AutoModelForCausalLM
        model, loading = auto.from_pretrained(
            files.location,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **files.options,
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"model {name}: {first_line(error)}") from None
    except Exception as error:  # safetensors' own error class derives from Exception alone
        raise ModelError(f"model {name}: weights cannot be read: {first_line(error)}") from None
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(f"model {name}: {len(missing)} weights are missing, e.g. {missing[0]}")
    return model.eval()


def _vocab_size(model: Any) -> int:
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return int(weight.shape[0]) if weight is not None else int(model.config.get_text_config().vocab_size)


def _max_length(config: Any, tokenizer: Any) -> int | None:
    text_config = config.get_text_config()
    lengths = (getattr(text_config, name, None) for name in _LENGTH_NAMES)
    length = next((int(value) for value in lengths if isinstance(value, int) and value > 0), None)
    if length is None and tokenizer.model_max_length < 10**9:  # transformers writes 10**30 for "unknown"
        length = int(tokenizer.model_max_length)
    return length
