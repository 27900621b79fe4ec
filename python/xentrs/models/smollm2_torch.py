"""The child process of `xentrs model import smollm2-135m`: GGUF in, checked model folder out.

In: `python -m xentrs.models.smollm2_torch GGUF FOLDER`. Out: config.json, model.safetensors (bfloat16),
tokenizer.json, tokenizer_config.json. transformers dequantises to float32; its tokenizer for this GGUF has
GPT-2's pre-tokenizer, which is wrong for SmolLM2 (digits are split one by one first), so the pre-tokenizer is
built here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors

_MEMORY_LIMIT_BYTES = 32 << 30
_CHECK_TEXT = "The capital of France is Paris, and the capital of Italy is Rome."
_CHECK_NLL = 4.0  # nats per token; a wrong permutation or a missing norm gives 8 and more
_CHECK_PIECES = {"a  1": ["a", "ĠĠ", "1"], "2024": ["2", "0", "2", "4"], " the end": ["Ġthe", "Ġend"]}


def main(gguf: Path, folder: Path) -> None:
    """Convert, write and check."""
    _limit_memory()
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    write_model(model, folder)
    source = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    write_tokenizer(source, int(model.config.max_position_embeddings), folder)
    check(folder)


def write_model(model: Any, folder: Path) -> None:
    """Save in bfloat16, without the entry that says the weights are quantised."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("is_quantized", "hf_quantizer", "quantization_method"):
        if hasattr(model, name):
            setattr(model, name, None)
    model.config._name_or_path = ""
    model.config.architectures = ["LlamaForCausalLM"]
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)


def write_tokenizer(source: Any, max_length: int, folder: Path) -> None:
    """Keep vocabulary, merges and special tokens; replace the pre-tokenizer."""
    tokenizer = Tokenizer.from_str(source.backend_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # trim_offsets=False: a token's range includes its leading space, so ranges cover the text without holes.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "bos_token": source.bos_token,
        "eos_token": source.eos_token,
        "unk_token": source.unk_token,
        "pad_token": source.pad_token,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": source.chat_template,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


@torch.inference_mode()
def check(folder: Path) -> None:
    """Load what was written and hold it to facts about SmolLM2; ends the process when one fails."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text, pieces in _CHECK_PIECES.items():
        if (found := tokenizer.tokenize(text)) != pieces:
            sys.exit(f"tokenizer check failed: {text!r} gives {found}, expected {pieces}")
    if (tokenizer.bos_token_id, tokenizer.eos_token_id) != (1, 2):
        sys.exit(
            f"tokenizer check failed: bos {tokenizer.bos_token_id} and eos {tokenizer.eos_token_id}, expected 1 and 2"
        )
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    if model.get_output_embeddings().weight.data_ptr() != model.get_input_embeddings().weight.data_ptr():
        sys.exit("model check failed: input and output embeddings are not tied")
    ids = torch.tensor([tokenizer(_CHECK_TEXT)["input_ids"]])
    nll = float(model(input_ids=ids, labels=ids).loss)
    if not nll < _CHECK_NLL:
        sys.exit(f"model check failed: {nll:.2f} nats per token on plain English, expected below {_CHECK_NLL}")


def _limit_memory() -> None:
    """Bound what a damaged file can make the readers allocate."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = _MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MEMORY_LIMIT_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
