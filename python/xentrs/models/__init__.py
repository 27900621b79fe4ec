"""Language models as runners: token ids in, hidden states and rows of logits out.

In: an imported name, a folder or a Hub id (`load_model`). Out: a `Runner`. Importing this package imports
neither torch nor transformers; `load_model` does.
"""

from __future__ import annotations

from xentrs.models.catalog import DEFAULT_MODEL, ImportedModel, cache_folder, imported_models
from xentrs.models.runner import EncodedText, ModelError, ModelInfo, Runner, TextEncoder

__all__ = [
    "DEFAULT_MODEL",
    "EncodedText",
    "ImportedModel",
    "ModelError",
    "ModelInfo",
    "Runner",
    "TextEncoder",
    "cache_folder",
    "imported_models",
    "load_model",
    "set_threads",
]


def load_model(name_or_path: str, revision: str | None = None, dtype: str = "auto", device: str = "cpu") -> Runner:
    """Load a causal language model with transformers.

    `name_or_path` is an imported name (`xentrs model list`), a folder or a Hub id; `dtype` is "auto",
    "float32", "bfloat16" or "float16". Code that comes with a model is never run.

    Raises:
        ModelError: the model is missing, incomplete or not a causal language model.
    """
    from xentrs.models.hf import load_transformers_model

    return load_transformers_model(name_or_path, revision=revision, dtype=dtype, device=device)


def set_threads(count: int) -> None:
    """How many threads the bodies of models use, in this process."""
    from xentrs.models.hf import set_torch_threads

    set_torch_threads(count)
