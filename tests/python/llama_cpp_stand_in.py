"""A module with those functions of llama-cpp-python 0.3.36 that models/gguf.py calls: one token for each byte, logits
from a small table. Pointers are ctypes pointers and handles numbers, as there; what llama.cpp would refuse fails.
"""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np

__version__ = "0.3.36"
VOCAB = 260  # bytes, <s>, </s>, <|turn|> and a token of 80 spaces
BOS, EOS, TURN, SPACES = 256, 257, 258, 259
_SPECIAL = {b"<s>": BOS, b"</s>": EOS, b"<|turn|>": TURN}
TABLE = np.random.default_rng(20250101).normal(0, 2, (VOCAB, VOCAB)).astype(np.float32)
TEMPLATE = b"chat"
LLAMA_FLASH_ATTN_TYPE_DISABLED = 0
_MODEL, _VOCAB, _CONTEXT, _MEMORY = 11, 12, 13, 14

state: dict[str, Any] = {}


def reset(**changes: Any) -> None:
    """A library that nothing has been asked of yet; `changes` say how it differs from the usual one."""
    state.clear()
    state.update(
        {"calls": [], "contexts": [], "freed": [], "tokens": [], "space": b"", "add_bos": False, "pre": b"smollm"}
    )
    state.update({"encoder": False, "loads": True, "template": TEMPLATE, "decode": 0, **changes})


def llama_backend_init() -> None:
    """Called before anything else."""
    state["calls"].append("backend_init")


def llama_model_default_params() -> Any:
    """Options of loading."""
    return SimpleNamespace()


def llama_model_load_from_file(path: bytes, params: Any) -> int | None:
    """A handle, None for a file that cannot be loaded."""
    assert state["calls"] == ["backend_init"]
    assert isinstance(path, bytes)
    return _MODEL if state["loads"] else None


def llama_model_free(model: int) -> None:
    """After its context."""
    assert model == _MODEL
    state["freed"].append("model")


def llama_model_get_vocab(model: int) -> int:
    """A handle."""
    assert model == _MODEL
    return _VOCAB


def llama_vocab_n_tokens(vocab: int) -> int:
    """Columns of the logits."""
    assert vocab == _VOCAB
    return VOCAB


def llama_model_has_encoder(model: int) -> bool:
    """As of T5."""
    return bool(state["encoder"])


def llama_model_n_ctx_train(model: int) -> int:
    """Positions."""
    return 1024


def llama_vocab_bos(vocab: int) -> int:
    """Token of the beginning."""
    return BOS


def llama_vocab_eos(vocab: int) -> int:
    """None in this file."""
    return -1


def llama_vocab_get_add_bos(vocab: int) -> bool:
    """What the file says."""
    return bool(state["add_bos"])


def llama_vocab_is_control(vocab: int, token: int) -> bool:
    """Control tokens."""
    return token in (BOS, EOS, TURN)


def llama_vocab_is_eog(vocab: int, token: int) -> bool:
    """Tokens that end."""
    return token == EOS


def llama_vocab_get_text(vocab: int, token: int) -> bytes:
    """As in the file."""
    return _piece(token)


def llama_model_desc(model: int, buffer: Any, size: int) -> int:
    """Kind and quantisation."""
    buffer.value = b"llama 1K Q4_1"
    return len(buffer.value)


def llama_model_meta_val_str(model: int, key: bytes, buffer: Any, size: int) -> int:
    """A single value; -1 and an empty text for a missing one."""
    found = {b"tokenizer.ggml.model": b"gpt2", b"tokenizer.ggml.pre": state["pre"]}[key]
    buffer.value = found
    return len(found) if found else -1


def llama_model_chat_template(model: int, name: bytes | None) -> bytes | None:
    """The file's template."""
    assert name is None
    return state["template"]  # type: ignore[no-any-return]


def _piece(token: int) -> bytes:
    special = {value: text for text, value in _SPECIAL.items()}
    return special.get(token) or (b" " * 80 if token == SPACES else bytes([token]))


def llama_tokenize(
    vocab: int, text: bytes, text_len: int, tokens: Any, capacity: int, add_special: bool, parse_special: bool
) -> int:
    """How many; minus the number needed where they do not fit."""
    assert text_len == len(text)
    assert not add_special
    ids, place = [], 0
    data = state["space"] + text
    while place < len(data):
        special = next((name for name in _SPECIAL if parse_special and data.startswith(name, place)), None)
        token = _SPECIAL[special] if special else SPACES if data.startswith(b" " * 80, place) else data[place]
        ids.append(token)
        place += len(_piece(token))
    if len(ids) > capacity:
        return -len(ids)
    tokens[: len(ids)] = ids
    return len(ids)


def llama_token_to_piece(vocab: int, token: int, buffer: Any, size: int, lstrip: int, special: bool) -> int:
    """How many bytes; minus the number needed where they do not fit."""
    assert (lstrip, special) == (0, True)
    piece = _piece(token)
    if len(piece) > size:
        return -len(piece)
    buffer[: len(piece)] = piece
    return len(piece)


def llama_context_default_params() -> Any:
    """The options that are set, with values that are not those wanted."""
    options = SimpleNamespace(n_ctx=0, n_batch=0, n_ubatch=0, n_threads=0, n_threads_batch=0)
    return SimpleNamespace(**vars(options), flash_attn_type=-1, type_k=1, type_v=1)


def llama_init_from_model(model: int, options: Any) -> int:
    """A context."""
    assert (options.type_k, options.type_v, options.flash_attn_type) == (0, 0, 0)
    assert options.n_threads == options.n_threads_batch > 0
    state["contexts"].append(options)
    return _CONTEXT


def llama_free(context: int) -> None:
    """A context, once."""
    state["freed"].append("context")


def llama_get_memory(context: int) -> int:
    """Keys and values."""
    return _MEMORY


def llama_memory_clear(memory: int, data: bool) -> None:
    """Begins a sequence anew."""
    assert (memory, data) == (_MEMORY, True)
    state["tokens"] = []


def llama_batch_init(count: int, embedding: int, sequences: int) -> Any:
    """Room for `count` tokens."""
    return SimpleNamespace(
        n_tokens=0,
        token=(ctypes.c_int32 * count)(),
        pos=(ctypes.c_int32 * count)(),
        n_seq_id=(ctypes.c_int32 * count)(),
        seq_id=[(ctypes.c_int32 * sequences)() for _ in range(count)],
        logits=(ctypes.c_int8 * count)(),
    )


def llama_batch_free(batch: Any) -> None:
    """Its memory."""
    state["freed"].append("batch")


def llama_decode(context: int, batch: Any) -> int:
    """0, or what went wrong; positions go on from those that the cache holds."""
    options = state["contexts"][-1]
    assert batch.n_tokens <= options.n_batch
    assert list(batch.pos) == list(range(len(state["tokens"]), len(state["tokens"]) + batch.n_tokens))
    assert len(state["tokens"]) + batch.n_tokens <= options.n_ctx
    assert list(batch.logits) == [1] * batch.n_tokens == list(batch.n_seq_id)
    assert all(entry[0] == 0 for entry in batch.seq_id)
    state["tokens"] = state["tokens"] + list(batch.token)
    state["rows"] = expected_logits(state["tokens"])[-batch.n_tokens :]
    return int(state["decode"])


def expected_logits(ids: list[int]) -> Any:
    """Of each position: its token and, half as much, the one before."""
    rows = TABLE[ids].copy()
    rows[1:] += 0.5 * TABLE[ids[:-1]]
    return rows


def llama_get_logits_ith(context: int, place: int) -> Any:
    """A row of the last step."""
    return np.ascontiguousarray(state["rows"][place]).ctypes.data_as(ctypes.POINTER(ctypes.c_float))
