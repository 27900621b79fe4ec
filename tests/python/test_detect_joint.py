"""`xentrs detect --reference`: one pass of either body, and the same bytes whichever way a part was scored."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandResult, write_model
from xentrs.corpus import settings
from xentrs.corpus.journal import RunFolder
from xentrs.models.hf import TransformersRunner

Command = Callable[..., CommandResult]
Calls = Callable[[], dict[str, int]]
NAMES = ("quick", "Brown", "lazy", "Zürich", "old", "NEW")
pytestmark = pytest.mark.usefixtures("one_thread", "parts")


@pytest.fixture(scope="module")
def reference_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another body behind the same tokenizer."""
    return write_model(tmp_path_factory.mktemp("reference"), hidden_size=48)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    texts = [f"the {name} fox {number} and its dog" for number, name in enumerate(NAMES)] * 2
    lines = [json.dumps({"text": text, "kind": place % 3}) for place, text in enumerate(texts)]
    path.write_text("\n".join([*lines[:4], '{"wrong": 1}', '{"text": "x", "kind": [1]}', *lines[4:], '{"text": ""}']))
    return path


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few documents."""
    resolve = settings.resolve_settings
    monkeypatch.setattr(
        "xentrs.corpus.resolve_settings", lambda *given, **options: resolve(*given, **options, part_tokens=60)
    )


@pytest.fixture
def body_calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """How often each body has run since the last question, by the model's folder."""
    counts: Counter[str] = Counter()
    hidden_states = TransformersRunner.hidden_states

    def counted(self: Any, *given: Any) -> Any:
        counts[Path(self.info.name).name] += 1
        return hidden_states(self, *given)

    def since() -> dict[str, int]:
        found = dict(counts)
        counts.clear()
        return found

    monkeypatch.setattr(TransformersRunner, "hidden_states", counted)
    return since


def files_of(run: Path) -> dict[str, bytes]:
    """What is the same whenever and however a RUN was made."""
    paths = [path for path in run.iterdir() if path.suffix in (".parquet", ".jsonl") or path.name == "summary.json"]
    return {path.name: path.read_bytes() for path in paths if path.name != "scores.parquet"}


@pytest.fixture
def detect(xentrs_command: Command, corpus: Path, tiny_model: Path, reference_model: Path) -> Callable[[Path], Path]:
    def run(folder: Path) -> Path:
        options = ("--scores", "binoculars,loss", "--by", "kind", "--batch-tokens", "40", "--dtype", "float32")
        model = ("--model", tiny_model, "--reference", reference_model)
        result = xentrs_command("detect", corpus, *model, *options, "-o", folder)
        assert result.code == 3, result.err  # a record is in quarantine
        return folder / "companions" / "cross"

    return run


@pytest.fixture
def score(xentrs_command: Command, corpus: Path, tiny_model: Path, tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """The RUN that the model alone gives."""

    def run() -> dict[str, bytes]:
        options = ("--by", "kind", "--batch-tokens", "40", "--dtype", "float32", "--tokens", "detect")
        assert xentrs_command("score", corpus, "--model", tiny_model, *options, "-o", tmp_path / "plain").code == 3
        return files_of(tmp_path / "plain")

    return run


@pytest.fixture
def plain(score: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    """The same, with the model as it is."""
    return score()


def test_each_body_runs_once_for_each_batch(
    plain: dict[str, bytes], detect: Callable[[Path], Path], body_calls: Calls, tiny_model: Path, tmp_path: Path
) -> None:
    """As often as for the model alone, which gives the same bytes; no more once all is there."""
    alone = tmp_path / "alone"
    cross = detect(tmp_path / "run")
    calls = body_calls()
    assert len(calls) == 2
    assert calls == dict.fromkeys(calls, calls[tiny_model.name])
    assert files_of(tmp_path / "run") == plain
    assert len([name for name in plain if name.startswith("tokens-")]) > 2
    detect(tmp_path / "run")
    assert body_calls() == {}

    # The pass over both alone, after the model's.
    (tmp_path / "run").rename(alone)
    joint = files_of(alone / "companions" / "cross")
    for path in (alone / "companions" / "cross").iterdir():
        path.unlink()
    assert files_of(detect(alone)) == joint
    assert body_calls() == calls
    assert cross.name == "cross"
    assert files_of(alone) == plain


@pytest.mark.parametrize("fatal", [1, 2, 3, 6])
def test_what_a_killed_pass_lacks_is_made_again_and_no_more(
    detect: Callable[[Path], Path],
    body_calls: Calls,
    tiny_model: Path,
    tmp_path: Path,
    fatal: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed before the part number `fatal` that either pass writes: the two take turns."""
    cross = detect(tmp_path / "whole")
    whole, crossed, calls = files_of(tmp_path / "whole"), files_of(cross), body_calls()
    write, written = RunFolder.write_part, []

    def write_or_die(self: RunFolder, part: Any, *contents: Any) -> None:
        written.append(self.path)
        if len(written) == fatal:
            raise KeyboardInterrupt
        write(self, part, *contents)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "write_part", write_or_die)
        with pytest.raises(AssertionError):  # exit code 130
            detect(tmp_path / "run")
    assert [path.name for path in written] == ["cross" if place % 2 == 0 else "run" for place in range(fatal)]
    first = body_calls()
    cross = detect(tmp_path / "run")
    assert files_of(tmp_path / "run") == whole
    assert files_of(cross) == crossed
    then = body_calls()
    # The part that only this pass has takes the model alone, the part that neither has takes both.
    again = {name: first[name] + then.get(name, 0) - count for name, count in calls.items()}
    lacks_own = fatal % 2 == 0
    assert again[tiny_model.name] > 0
    assert sum(again.values()) == again[tiny_model.name] * (1 if lacks_own else 2)


def test_models_that_do_not_take_the_same_batches(
    plain: dict[str, bytes],
    detect: Callable[[Path], Path],
    body_calls: Calls,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model's batches decide its bits, so it runs alone first; then both run in smaller ones."""
    from xentrs.models import hf

    find = hf.find_head
    monkeypatch.setattr(hf, "find_head", lambda model, *given: find(model, *given) if is_model(model) else None)
    detect(tmp_path / "run")
    assert files_of(tmp_path / "run") == plain
    calls = body_calls()
    (other,) = set(calls) - {tiny_model.name}
    assert calls[tiny_model.name] > calls[other] > 0


def is_model(model: Any) -> bool:
    return bool(model.config.hidden_size == 32)


@pytest.mark.parametrize("without", ["model", "reference", "both"])
def test_a_head_that_the_kernels_do_not_reach(
    detect: Callable[[Path], Path],
    score: Callable[[], dict[str, bytes]],
    tmp_path: Path,
    without: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logits in blocks, as on a GPU: still one pass, near the same numbers, and the RUN keeps its bits."""
    import pyarrow.parquet as pq
    from xentrs.models import hf

    with_heads = detect(tmp_path / "with")
    head = hf.TransformersRunner.head.fget  # type: ignore[attr-defined]

    def hidden(self: Any) -> Any:
        hides = without == "both" or (without == "model") == is_model(self.model)
        return None if hides else head(self)

    monkeypatch.setattr(hf.TransformersRunner, "head", property(hidden))
    for module in ("detect.both_models", "corpus.score"):
        monkeypatch.setattr(f"xentrs.{module}.BLOCK_BYTES", 4 * 320 * 7)
    cross = detect(tmp_path / "run")
    for place in range(3):
        name = f"tokens-{place:05d}.parquet"
        one, other = (pq.read_table(folder / name).to_pydict() for folder in (with_heads, cross))
        assert one.keys() == other.keys()
        for column, values in one.items():
            if column in ("nll", "cross_entropy", "cross_varentropy"):
                pair = [np.array(found, dtype=np.float64) for found in (values, other[column])]
                np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-5, err_msg=column)
            else:
                assert values == other[column]
    assert files_of(tmp_path / "run") == score()
