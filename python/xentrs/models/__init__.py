"""Language models as runners: token ids in, hidden states and rows of logits out.

In: an imported name, a folder, a Hub id, a GGUF file, or what another back end calls its model (`load_model`). Out: a
`SplitRunner`. Importing this package imports neither torch nor transformers; `load_model` does where they are needed.
"""

from __future__ import annotations

import sys
from typing import Any

from xentrs.models.catalog import DEFAULT_MODEL, ImportedModel, cache_folder, imported_models
from xentrs.models.runner import EncodedText, ModelError, ModelInfo, ModelTokenizer, Runner, SplitRunner, TextEncoder

__all__ = [
    "DEFAULT_MODEL",
    "EncodedText",
    "ImportedModel",
    "ModelError",
    "ModelInfo",
    "ModelTokenizer",
    "Runner",
    "SplitRunner",
    "TextEncoder",
    "as_split_runner",
    "cache_folder",
    "imported_models",
    "load_model",
    "load_tokenizer",
    "set_threads",
]

RUNNER_GROUP = "xentrs.runners"
_HF_MODULE = "xentrs.models.hf"
_threads: int | None = None


def load_model(
    name_or_path: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    runner: str | None = None,
) -> SplitRunner:
    """Load a causal language model: a name that ends in .gguf with llama-cpp-python, any other with transformers,
    or with the back end called `runner`: "transformers", "gguf" or an entry point of the group `xentrs.runners`, a
    callable `(name, *, revision, dtype, device) -> Runner`.

    `name_or_path` is an imported name (`xentrs model list`), a folder, a Hub id or a file; `dtype` is "auto",
    "float32", "bfloat16" or "float16". Code that comes with a model is never run.

    Raises:
        ModelError: the model is missing, incomplete or not a causal language model, or there is no such back end.
    """
    options: dict[str, Any] = {"revision": revision, "dtype": dtype, "device": device}
    if runner == "gguf" or (runner is None and name_or_path.lower().endswith(".gguf")):
        from xentrs.models.gguf import load_gguf_runner

        return as_split_runner(load_gguf_runner(name_or_path, num_threads=_threads, **options))
    if runner is None or runner == "transformers":
        is_first = _HF_MODULE not in sys.modules
        from xentrs.models.hf import load_transformers_model, set_torch_threads

        if is_first and _threads is not None:
            set_torch_threads(_threads)
        return load_transformers_model(name_or_path, **options)
    import importlib.metadata  # slow to load, and only this needs it

    points = {point.name: point for point in importlib.metadata.entry_points(group=RUNNER_GROUP)}
    if runner not in points:
        raise ModelError(
            f"runner {runner}: not installed; there are {', '.join(sorted({'transformers', 'gguf', *points}))}"
        )
    try:
        factory = points[runner].load()
    except Exception as error:  # whatever another package raises when it is imported
        raise ModelError(f"runner {runner}: {points[runner].value} cannot be imported: {error}") from None
    return as_split_runner(factory(name_or_path, **options))


def load_tokenizer(name_or_path: str, revision: str | None = None, runner: str | None = None) -> ModelTokenizer:
    """The tokenizer of a model, and the size of the model's vocabulary. With transformers no weights are needed;
    another back end knows its tokenizer only with the model, which is loaded whole.

    Arguments and errors are those of `load_model`; that there are weights is not checked.
    """
    if runner == "transformers" or (runner is None and not name_or_path.lower().endswith(".gguf")):
        from xentrs.models.hf_files import load_transformers_tokenizer

        return load_transformers_tokenizer(name_or_path, revision)
    model = load_model(name_or_path, revision, runner=runner)
    return ModelTokenizer(model.encoder, model.info.vocab_size)


def as_split_runner(runner: Any) -> SplitRunner:
    """A `Runner` of two methods as the corpus needs it; one that has a body and a head stays what it is.

    Raises:
        ModelError: it is neither.
    """
    if hasattr(runner, "hidden_states") and hasattr(runner, "encoder"):
        split: SplitRunner = runner
        return split
    from xentrs.models.logits_runner import LogitsRunner

    return LogitsRunner(runner)


def set_threads(count: int) -> None:
    """How many threads the bodies of models use, in this process. Torch is told at once where it is loaded for a model,
    else when it is; files of llama.cpp when they are opened.
    """
    global _threads
    _threads = count
    if _HF_MODULE in sys.modules:
        from xentrs.models.hf import set_torch_threads

        set_torch_threads(count)
