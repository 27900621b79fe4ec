"""What transformers makes of a model's files other than its weights: where they lie, the configuration, the tokenizer.

In: a name. Out: `ModelFiles`, transformers' own objects, a `ModelTokenizer`; or a `ModelError`. Nothing here needs
torch; transformers imports it for its configurations where it is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from xentrs.models.catalog import ModelSource, resolve_model
from xentrs.models.runner import ModelError, ModelTokenizer
from xentrs.models.tokenizer import FastTextEncoder


@dataclass(frozen=True)
class ModelFiles:
    """Where the files of a model are."""

    name: str
    folder: Path
    """Of a Hub id the folder of the snapshot, which may lack what nobody has asked for yet."""
    commit: str | None
    """Of a Hub id."""
    is_local: bool

    @property
    def location(self) -> str:
        """What transformers takes as a name."""
        return str(self.folder) if self.is_local else self.name

    @property
    def options(self) -> dict[str, Any]:
        """For each `from_pretrained`: nothing is fetched for a folder, and all of a Hub id is of one commit."""
        return {"local_files_only": self.is_local, "revision": self.commit}


def load_transformers_tokenizer(name: str, revision: str | None) -> ModelTokenizer:
    """The tokenizer of `name`; see `xentrs.models.load_tokenizer`."""
    with quiet_transformers():
        files = locate(resolve_model(name), revision)
        config, tokenizer = load_config(files), load_tokenizer(files)
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    if not isinstance(vocab_size, int):
        raise ModelError(f"model {name}: config.json does not say how large the vocabulary is")
    return ModelTokenizer(FastTextEncoder(tokenizer, name, files.folder), vocab_size)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and warnings of transformers while loading; what matters is checked and said by us."""
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def locate(source: ModelSource, revision: str | None) -> ModelFiles:
    """The folder, or the commit a Hub id resolves to.

    Raises:
        ModelError: a revision of a folder; a Hub id that is not to be had.
    """
    if source.folder is not None:
        if revision is not None:
            raise ModelError(f"model {source.name}: --revision is for Hub ids; this is a folder")
        return ModelFiles(source.name, source.folder, None, is_local=True)
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(source.name, "config.json", revision=revision))
    except Exception as error:  # the Hub client raises many kinds; all mean that the model cannot be had
        at = f" at revision {revision}" if revision else ""
        raise ModelError(
            f"model {source.name}{at}: no imported model, no folder, "
            f"and not to be had from the Hub ({first_line(error)})"
        ) from None
    return ModelFiles(source.name, path.parent, path.parent.name, is_local=False)


def load_config(files: ModelFiles) -> Any:
    """The configuration.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return transformers.AutoConfig.from_pretrained(files.location, **files.options)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {files.name}: {first_line(error)}") from None


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer, as transformers has it.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return transformers.AutoTokenizer.from_pretrained(files.location, **files.options)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"model {files.name}: its tokenizer cannot be loaded: {first_line(error)}") from None


def first_line(error: BaseException) -> str:
    """Of what other libraries say, for a message of ours."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
