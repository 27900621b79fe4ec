"""Back ends of one's own: two methods to exact scores, what is wrong with one said clearly, and how they are found."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xentrs
from xentrs.models import ModelError, as_split_runner, load_model, logits_runner

VOCAB = 256
TEXTS = ["The quick brown fox.", "a", "naïve café — 東京 🙂", "12 towns, 31 towns. " * 5]


class ByteRunner:
    """Tokens are bytes; logits of a position from a table, of its byte and the one before."""

    def __init__(self, dtype: Any = np.float64) -> None:
        self.table = np.random.default_rng(7).normal(0, 3, (VOCAB, VOCAB)).astype(dtype)
        self.calls: list[tuple[int, int]] = []

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def logits(self, input_ids: Any) -> Any:
        assert input_ids.dtype == np.int64
        self.calls.append(input_ids.shape)
        logits = self.table[input_ids]
        logits[:, 1:] += self.table[input_ids[:, :-1]] / 2
        return logits


def exact_nll(runner: Any, text: str) -> Any:
    """Float64 nll of each byte but the first, by log_softmax."""
    ids = np.array([list(text.encode())])
    logits = np.asarray(runner.logits(ids)[0, :-1], dtype=np.float64)
    largest = logits.max(axis=1)
    lse = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return lse - logits[np.arange(ids.shape[1] - 1), ids[0, 1:]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5), (np.float16, 1e-5)])
def test_two_methods_give_log_softmax(dtype: Any, tolerance: float) -> None:
    runner = ByteRunner(dtype)
    result = xentrs.Scorer(runner, batch_tokens=64).score(TEXTS)
    assert [document.status for document in result] == ["scored", "unscorable", "scored", "scored"]
    for text, document in zip(TEXTS, result, strict=True):
        tokens = document.tokens
        assert tokens is not None
        np.testing.assert_array_equal(tokens.token_id, list(text.encode()))
        assert np.isnan(tokens.nll[0])
        np.testing.assert_allclose(tokens.nll[1:], exact_nll(runner, text), rtol=0, atol=tolerance)
        assert not tokens.byte_start.any()
        assert not tokens.byte_end.any()
        if document.status == "scored":
            assert document.bits_per_byte == pytest.approx(document.nll_sum / np.log(2) / len(text.encode()), rel=1e-15)


@pytest.mark.parametrize("name", ["bfloat16", "float32"])
def test_torch_tensors_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    class TorchRunner(ByteRunner):
        def logits(self, input_ids: Any) -> Any:
            return torch.from_numpy(super().logits(input_ids)).to(getattr(torch, name)).requires_grad_()

    result = xentrs.Scorer(TorchRunner(np.float32)).score(TEXTS)
    reference = ByteRunner(np.float32)
    if name == "bfloat16":
        monkeypatch.setattr(reference, "logits", lambda ids: _rounded(ByteRunner.logits(reference, ids)))
    for text, document in zip(TEXTS, result, strict=True):
        np.testing.assert_allclose(document.tokens.nll[1:], exact_nll(reference, text), rtol=0, atol=1e-5)


def _rounded(logits: Any) -> Any:
    import torch

    return torch.from_numpy(logits).bfloat16().float().numpy()


def test_one_call_holds_as_much_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = ByteRunner()
    expected = xentrs.Scorer(usual, window=8, stride=4).score(TEXTS)
    for windows in (1, 3):
        monkeypatch.setattr(logits_runner, "CALL_BYTES", 4 * VOCAB * 8 * windows)
        monkeypatch.setattr("xentrs.corpus.score.BLOCK_BYTES", 4 * VOCAB * 11)  # blocks end inside of windows
        runner = ByteRunner()
        result = xentrs.Scorer(runner, window=8, stride=4).score(TEXTS)
        assert max(rows for rows, length in runner.calls if length == 8) == windows
        # No window runs twice though several blocks take rows from it.
        assert sum(rows for rows, length in runner.calls if length == 8) == sum(
            rows for rows, length in usual.calls if length == 8
        )
        for first, second in zip(expected, result, strict=True):
            np.testing.assert_array_equal(first.tokens.nll, second.tokens.nll)


def test_a_runner_says_of_itself_what_it_likes() -> None:
    runner: Any = ByteRunner(np.float32)
    split = as_split_runner(runner)
    info = split.info
    assert (info.name, info.vocab_size, info.dtype, info.device) == ("ByteRunner", VOCAB, "float32", "cpu")
    assert (info.max_length, info.revision, info.sha256, info.libraries) == (None, None, "unknown", {})
    assert (split.encoder.bos_id, split.encoder.eos_id, split.encoder.adds_bos) == (None, None, False)
    assert len(split.encoder.sha256) == 64
    assert (split.head, split.shares_contexts) == (None, False)
    said = {"name": "bytes", "bos_id": 1, "eos_id": 2, "adds_bos": True, "max_length": 32, "sha256": "ab"}
    said |= {"tokenizer_sha256": "cd", "special_ids": [2], "libraries": {"bytes": "1"}, "note": "random"}
    for name, value in said.items():
        setattr(runner, name, value)
    scorer = xentrs.Scorer(runner)
    assert scorer.model_info.name == "bytes"
    assert scorer.notices == ["bytes: random"]
    protocol = scorer.protocol
    assert (protocol["prefix"], protocol["prefix_token_id"], protocol["window"]) == ("bos", 1, 32)
    assert (protocol["model_sha256"], protocol["tokenizer_sha256"], protocol["bytes_version"]) == ("ab", "cd", "1")
    assert as_split_runner(split) is split


def bad(**methods: Any) -> Any:
    return type("BadRunner", (ByteRunner,), methods)(np.float32)


BAD_LOGITS = [
    (lambda self, ids: np.zeros((*ids.shape[:1], VOCAB)), r"logits of shape \(1, 256\), expected \(1, 2, vocab\)"),
    (lambda self, ids: np.zeros((1, 1, VOCAB)), r"logits of shape \(1, 1, 256\), expected \(1, 2, 256\)"),
    (lambda self, ids: np.zeros((*ids.shape, VOCAB), dtype=np.int32), "logits are int32, expected float16"),
    (lambda self, ids: [[0.0]], "logits are a list, expected an array of numpy or torch"),
    (lambda self, ids: np.full((*ids.shape, VOCAB), np.nan), r"logits are NaN for ids \[0, 1, 2, 3, 4, 5\]"),
    (lambda self, ids: np.repeat(ids[:, ::-1, None] * 1.0, VOCAB, axis=2), "a later token changes earlier predictions"),
]


@pytest.mark.parametrize(("logits", "message"), BAD_LOGITS)
def test_wrong_logits_are_refused_before_scoring(logits: Any, message: str) -> None:
    runner = bad(logits=logits)
    if message.startswith(r"logits of shape \(1, 1"):
        runner.vocab_size = VOCAB
    with pytest.raises(ModelError, match=f"runner BadRunner: {message}"):
        xentrs.Scorer(runner)


def test_wrong_shape_later_is_refused_too() -> None:
    runner = bad(logits=lambda self, ids: ByteRunner.logits(self, ids)[:, : 2 if len(ids) > 3 else None])
    scorer = xentrs.Scorer(runner)
    with pytest.raises(ModelError, match=r"logits of shape \(4, 2, 256\), expected \(4, \d+, 256\)"):
        scorer.score(["some text"] * 4)


BAD_TOKENS = [
    (lambda self, texts: [[1]], "encode gave 1 results for 4 texts"),
    (lambda self, texts: [[0.5]] * len(texts), "ids are float64 of shape"),
    (lambda self, texts: [[[1]]] * len(texts), r"of shape \(1, 1\), expected integers"),
    (lambda self, texts: [[-1]] * len(texts), "ids contain -1"),
    (
        lambda self, texts: [xentrs.EncodedText(np.array([1]), np.array([0]), np.array([9999]), 1) for _ in texts],
        "a byte range is outside the text",
    ),
    (
        lambda self, texts: [xentrs.EncodedText(np.array([1, 2]), np.array([0]), np.array([1]), 1) for _ in texts],
        "2 ids with 1 and 1 ends of byte ranges",
    ),
]


@pytest.mark.parametrize(("encode", "message"), BAD_TOKENS)
def test_wrong_tokens_are_refused(encode: Any, message: str) -> None:
    with pytest.raises(ModelError, match=f"runner BadRunner: .*{message}"):
        xentrs.Scorer(bad(encode=encode))


def test_what_is_no_runner() -> None:
    with pytest.raises(ModelError, match="runner object has no method encode"):
        xentrs.Scorer(object())  # type: ignore[arg-type]
    with pytest.raises(xentrs.ParamError, match="this one is loaded already"):
        xentrs.Scorer(ByteRunner(), dtype="float32")


def test_nan_in_a_row_stays_in_its_row() -> None:
    def logits(self: Any, ids: Any) -> Any:
        found = ByteRunner.logits(self, ids)
        found[ids == ord("z")] = np.nan
        return found

    scorer = xentrs.Scorer(bad(logits=logits))
    result = scorer.score(["abzcd", "abc"])
    assert np.isnan(result[0].tokens.nll).tolist() == [True, False, False, True, False]
    assert result[0].tokens.flags.tolist()[3] == int(xentrs.Flag.NAN)
    assert np.isfinite(result[1].nll_sum)
    assert scorer.notices == ["1 tokens have a nll of NaN: the model gave logits that are NaN"]


def test_a_stream_of_many_needs_no_more_memory() -> None:
    scorer = xentrs.Scorer(ByteRunner())
    peaks = []
    for document_count in (600, 1800):
        texts = (f"{number} towns along the river" for number in range(document_count))
        stream = scorer.iter_scores(texts, part_tokens=256)
        next(stream)
        tracemalloc.start()
        assert sum(1 for _ in stream) == document_count - 1
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_chats_need_a_template_and_ranges() -> None:
    chat = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]]
    with pytest.raises(ModelError, match="ByteRunner has no chat template"):
        xentrs.Scorer(ByteRunner()).score_chats(chat)

    def template(self: Any, messages: Any, asks: bool) -> str:
        return "".join(f"[{message['role'][0]}]{message['content']};" for message in messages) + "[a]" * asks

    with pytest.raises(ValueError, match="gives no byte ranges of tokens; chats need them"):
        xentrs.Scorer(bad(apply_chat_template=template)).score_chats(chat)

    def encode(self: Any, texts: Any) -> Any:
        sizes = [np.arange(len(text.encode()) + 1) for text in texts]
        return [
            xentrs.EncodedText(np.array(list(text.encode()), dtype=np.int64), places[:-1], places[1:], places[-1])
            for text, places in zip(texts, sizes, strict=True)
        ]

    scorer = xentrs.Scorer(bad(apply_chat_template=template, encode=encode, special_ids=[ord(";")]))
    (document,) = scorer.score_chats(chat)
    assert bytes(document.tokens.token_id.tolist()) == b"ho;"
    assert document.tokens.position.tolist() == [9, 10, 11]


def test_installed_back_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="runner nosuch: not installed; there are gguf, transformers"):
        load_model("m", runner="nosuch")
    asked = []

    def factory(name: str, **options: Any) -> Any:
        asked.append((name, options))
        return ByteRunner()

    sys.modules["byte_runner_module"] = type(sys)("byte_runner_module")
    sys.modules["byte_runner_module"].factory = factory  # type: ignore[attr-defined]
    points = [
        importlib.metadata.EntryPoint("bytes", "byte_runner_module:factory", "xentrs.runners"),
        importlib.metadata.EntryPoint("broken", "no_such_module:factory", "xentrs.runners"),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "xentrs.runners" else [])
    scorer = xentrs.Scorer("some name", runner="bytes", revision="r")
    assert asked == [("some name", {"revision": "r", "dtype": "auto", "device": "cpu"})]
    assert scorer.score(["ab"])[0].nll_sum == pytest.approx(exact_nll(ByteRunner(), "ab")[0], rel=1e-14)
    with pytest.raises(ModelError, match="there are broken, bytes, gguf, transformers"):
        load_model("m", runner="nosuch")
    with pytest.raises(ModelError, match="runner broken: no_such_module:factory cannot be imported"):
        load_model("m", runner="broken")


def test_threads_need_no_torch() -> None:
    code = (
        "import sys, xentrs.models as m\nm.set_threads(3)\nassert 'torch' not in sys.modules\n"
        "try: m.load_model('/no/such/folder')\nexcept m.ModelError: pass\n"
        "assert sys.modules['torch'].get_num_threads() == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
