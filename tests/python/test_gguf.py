"""GGUF files, through a stand-in for llama-cpp-python: its logits, its tokens, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import llama_cpp_stand_in as stand_in
import numpy as np
import pytest
import xentrs
from xentrs.models import ModelError, gguf, load_model
from xentrs.models.gguf import byte_ranges


@pytest.fixture
def gguf_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that the stand-in loads."""
    stand_in.reset()
    monkeypatch.setitem(sys.modules, "llama_cpp", stand_in)
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF and more")
    return path


def test_gguf_gives_the_librarys_logits(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "STEP_BYTES", 4 * stand_in.VOCAB * 40)  # a window takes several steps
    text = "naïve 東京 and so on, with more than forty tokens in it" + " " * 80 + "end"
    with xentrs.Scorer(str(gguf_file)) as scorer:
        (document,) = scorer.score([text])
        tokens = document.tokens
        assert tokens is not None
        ids = tokens.token_id.tolist()
        assert stand_in.SPACES in ids
        stats = xentrs.row_stats(stand_in.expected_logits(ids)[:-1], np.array(ids[1:]))
        np.testing.assert_array_equal(tokens.nll[1:], stats.nll)
        data = text.encode()
        reached = np.concatenate([[0], np.maximum.accumulate(tokens.byte_end)])
        assert reached[-1] == len(data)
        for start, end in zip(tokens.byte_start, tokens.byte_end, strict=True):
            data[start:end].decode()  # whole characters
        info = scorer.model_info
        assert (info.dtype, info.vocab_size, info.max_length) == ("llama 1K Q4_1", stand_in.VOCAB, 1024)
        assert scorer.protocol["llama_cpp_python_version"] == "0.3.36"
        assert scorer.notices == []
        assert stand_in.state["contexts"][-1].n_batch == 40
    assert stand_in.state["freed"].count("context") == len(stand_in.state["contexts"]) == 1
    assert stand_in.state["freed"][-1] == "model"
    with pytest.raises(xentrs.ParamError, match="this scorer is closed"):
        scorer.score([text])


def test_gguf_context_grows_and_threads_are_those_set(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xentrs.models._threads", 3)
    runner: Any = load_model(str(gguf_file))
    short, long = np.full((2, 10), 65), np.full((1, 700), 66)
    first = runner.window_logits(short)
    runner.window_logits(long)
    np.testing.assert_array_equal(runner.window_logits(short), first)
    assert [(options.n_ctx, options.n_threads) for options in stand_in.state["contexts"]] == [(512, 3), (700, 3)]
    np.testing.assert_array_equal(first[0], stand_in.expected_logits([65] * 10))
    stand_in.state["decode"] = 1
    with pytest.raises(ModelError, match="llama_decode gave 1"):
        runner.window_logits(short)


def test_gguf_bos_follows_the_file(gguf_file: Path) -> None:
    assert xentrs.Scorer(str(gguf_file)).protocol["prefix"] == "none"
    stand_in.reset(add_bos=True)
    assert xentrs.Scorer(str(gguf_file)).protocol["prefix_token_id"] == stand_in.BOS
    stand_in.reset(space=b" ")  # as tokenizers of the SentencePiece kind do
    (document,) = xentrs.Scorer(str(gguf_file)).score(["ab"])
    assert document.tokens.byte_start.tolist() == [0, 0, 1]
    assert document.tokens.byte_end.tolist() == [0, 1, 2]


def test_gguf_identity_and_special_tokens(gguf_file: Path) -> None:
    runner: Any = load_model(str(gguf_file))
    assert runner.encoder.special_ids == {stand_in.BOS, stand_in.EOS, stand_in.TURN}
    assert runner.encoder.encode(["a<|turn|>"])[0].token_ids.tolist() == [97, stand_in.TURN]
    sha256 = runner.encoder.sha256
    assert len(sha256) == len(runner.info.sha256) == len(runner.encoder.chat_template_sha256) == 64
    stand_in.reset(pre=b"", template=None)
    other: Any = load_model(str(gguf_file))
    assert other.encoder.sha256 != sha256
    assert other.notices == [f"{gguf_file}: the file does not say how its tokenizer splits text; llama.cpp guesses"]
    assert other.encoder.chat_template_sha256 is None


def test_gguf_refusals(gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"no\.gguf: no such file"):
        load_model(str(tmp_path / "no.gguf"))
    with pytest.raises(ModelError, match=r"--dtype float32 does not go with a GGUF file"):
        load_model(str(gguf_file), dtype="float32")
    with pytest.raises(ModelError, match=r"--device cuda does not go with a GGUF file"):
        load_model(str(gguf_file), device="cuda")
    other = tmp_path / "other.GGUF"
    other.write_bytes(b"something")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        load_model(str(other))
    for changes, message in (({"loads": False}, "cannot load"), ({"encoder": True}, "not a causal language model")):
        stand_in.reset(**changes)
        with pytest.raises(ModelError, match=message):
            load_model(str(gguf_file))
    (tmp_path / "llama_cpp.py").write_text("import no_such_module")
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "llama_cpp")
        patch.syspath_prepend(tmp_path)
        with pytest.raises(ModelError, match="installed but cannot be imported: No module named 'no_such_module'"):
            load_model(str(gguf_file))
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ModelError, match=r"need llama-cpp-python .*\n  pip install 'xentrs\[gguf\]'"):
        load_model(str(gguf_file), runner="gguf")


def test_ranges_of_pieces() -> None:
    data = "aé☃b".encode()
    assert [part.tolist() for part in byte_ranges(data, [b"a\xc3", b"\xa9", b"\xe2\x98", b"\x83b"])] == [
        [0, 1, 3, 3],
        [3, 3, 6, 7],
    ]
    assert [part.tolist() for part in byte_ranges(b"ab", [b" a", b"b"])] == [[0, 1], [1, 2]]
    assert [part.tolist() for part in byte_ranges(b"ab", [b"A", b"b"])] == [[0, 0], [0, 0]]
    assert [part.tolist() for part in byte_ranges(b"", [])] == [[], []]
