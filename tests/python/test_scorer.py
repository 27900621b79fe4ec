"""`Scorer`: the digits of `xentrs score`, order, laziness, pairs, chats, bad records, and results that travel."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xentrs
from conftest import TRAINING_LINES, CommandResult
from xentrs.corpus.sources import InputError
from xentrs.models import ModelError

Command = Callable[..., CommandResult]
TEXTS = [TRAINING_LINES[0], "", "a", " ".join(TRAINING_LINES * 3), TRAINING_LINES[2], "12 towns, 31 towns. " * 20]
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CHAT = [{"role": "user", "content": "How many towns?"}, {"role": "assistant", "content": "31 of them."}]


@pytest.fixture(scope="module")
def scorer(tiny_runner: Any) -> xentrs.Scorer:
    return xentrs.Scorer(tiny_runner)


def written(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def documents_of(run: Path) -> Any:
    return pa.concat_tables(pq.read_table(path) for path in sorted(run.glob("documents-*.parquet")))


@pytest.mark.parametrize("options", [{}, {"prefix": "bos", "window": 16, "stride": 8}, {"protocol": "hf-strided"}])
def test_digits_are_those_of_the_command(
    tiny_model: Path, tmp_path: Path, xentrs_command: Command, options: dict[str, Any]
) -> None:
    records = [{"id": f"d{place}", "text": text} for place, text in enumerate(TEXTS)]
    path = written(tmp_path / "texts.jsonl", records)
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    run = tmp_path / "run"
    command = xentrs_command("score", path, "--model", tiny_model, "--dtype", "float32", "-o", run, *arguments)
    assert command.code == 0
    scorer = xentrs.Scorer(tiny_model, dtype="float32", **options)
    result = scorer.score(records)
    expected = documents_of(run)
    assert result.to_arrow().drop_columns(["source"]).equals(expected.drop_columns(["source"]))
    tokens = pq.read_table(run / "tokens-00000.parquet")
    for name in ("nll", "entropy", "varentropy", "top1_log_prob"):
        found = np.concatenate([getattr(document.tokens, name) for document in result])
        np.testing.assert_array_equal(found, tokens[name].to_numpy())
    for name in ("position", "token_id", "byte_start", "byte_end", "flags"):
        found = np.concatenate([getattr(document.tokens, name) for document in result])
        np.testing.assert_array_equal(found, tokens[name].to_numpy())
    summary = json.loads((run / "summary.json").read_text())
    assert (result.totals, result.protocol) == (summary["totals"], summary["protocol"])
    assert (result.nll_sum, result.perplexity) == (summary["totals"]["nll_sum"], math.exp(result.mean_nll))
    assert [document.id for document in result] == [record["id"] for record in records]
    # The folder that the method writes is the same to the byte.
    other = tmp_path / "other"
    scorer.score_corpus(path, other)
    names = sorted(file.name for file in run.iterdir() if file.name != "timings.json")
    for name in names:
        if name.endswith(".parquet") or name == "summary.json":
            assert (other / name).read_bytes() == (run / name).read_bytes()
    assert scorer.score_corpus([path], other).already_finished


def test_documents_say_what_they_are(scorer: xentrs.Scorer) -> None:
    result = scorer.score(TEXTS)
    assert len(result) == 6
    assert [document.id for document in result] == [f"data#{number}" for number in range(1, 7)]
    assert [document.status for document in result[1:4]] == ["unscorable", "unscorable", "scored"]
    assert [document.reason for document in result[1:3]] == ["no_tokens", "one_token"]
    assert result[1].mean_nll is result[1].perplexity is result[1].bits_per_byte is result[1].greedy_match is None
    for document in result:
        tokens = document.tokens
        assert tokens is not None
        assert (len(tokens), int(tokens.scored.sum())) == (document.token_count, document.scored_count)
        assert document.nll_sum == math.fsum(tokens.nll[tokens.scored])
        assert tokens.nll.base is None  # a document does not keep its part alive
        assert np.isnan(tokens.nll[~tokens.scored]).all()
    assert result.scored_count == sum(document.scored_count for document in result)
    assert repr(result).startswith("ScoreResult(documents=6, scored_count=")
    assert repr(result[0].tokens) == f"TokenScores({result[0].token_count} tokens, {result[0].scored_count} scored)"


def test_stream_is_lazy_and_in_order(scorer: xentrs.Scorer) -> None:
    read = []

    def endless() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield f"{number} towns along the river"

    stream = scorer.iter_scores(endless(), part_tokens=200)
    assert read == []
    first = list(itertools.islice(stream, 50))
    assert [document.id for document in first] == [f"data#{number + 1}" for number in range(50)]
    assert 50 <= len(read) <= 50 + 256 + 200  # a group of records, and the part
    so_far = len(read)
    stream.close()
    assert len(read) == so_far


def test_stream_gives_the_scores(scorer: xentrs.Scorer) -> None:
    whole = scorer.score(TEXTS)
    for part_tokens in (1, 16_384):
        streamed = list(scorer.iter_scores(iter(TEXTS), part_tokens=part_tokens))
        assert [document.token_count for document in streamed] == [document.token_count for document in whole]
        for one, other in zip(whole, streamed, strict=True):
            np.testing.assert_allclose(one.tokens.nll, other.tokens.nll, rtol=0, atol=1e-5)
    with pytest.raises(xentrs.ParamError, match="part_tokens 0: expected at least 1"):
        scorer.iter_scores([], part_tokens=0)
    assert list(scorer.iter_scores([])) == []


def test_pairs_are_the_tail_of_the_text(scorer: xentrs.Scorer) -> None:
    context, continuation = "The quick brown fox ", "jumps over the lazy dog"
    (pair,) = scorer.score_pairs([(context, continuation)])
    whole = scorer.score([context + continuation])[0].tokens
    first = len(scorer.score([context.rstrip()])[0].tokens)  # the space goes to the continuation
    assert pair.context_count == first
    np.testing.assert_array_equal(pair.tokens.token_id, whole.token_id[first:])
    np.testing.assert_allclose(pair.tokens.nll, whole.nll[first:], rtol=0, atol=1e-5)
    assert pair.nll_sum == math.fsum(pair.tokens.nll)
    assert pair.mean_nll == pytest.approx(pair.nll_sum / pair.token_count, rel=1e-15)
    assert pair.byte_count == len(continuation)
    assert pair.greedy_match == bool((pair.tokens.top1_id == pair.tokens.token_id).all())
    assert pair.dropped_context_count == 0
    (long,) = scorer.score_pairs({"context": TEXTS[-1] * 2, "continuation": " ends"} for _ in range(1))
    assert long.dropped_context_count > 0
    assert scorer.score_pairs([]) == []


def test_greedy_continuation_matches(scorer: xentrs.Scorer, tiny_runner: Any) -> None:
    context = "The quick brown"
    ids = tiny_runner.encoder.encode([context])[0].token_ids
    likeliest = int(tiny_runner.logits(tiny_runner.hidden_states(ids[None])[0, -1:]).argmax())
    texts = [tiny_runner.encoder.tokenizer.decode([token]) for token in range(2, 320)]
    pairs = scorer.score_pairs([(context, text) for text in texts])
    matches = [pair for pair in pairs if pair.greedy_match and pair.token_count == 1 and pair.context_count == len(ids)]
    assert {int(pair.tokens.token_id[0]) for pair in matches} <= {likeliest}
    assert sum(not pair.greedy_match for pair in pairs) > 200


def test_chats(tiny_model: Path, tmp_path: Path, scorer: xentrs.Scorer) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        scorer.score_chats([CHAT])
    folder = Path(shutil.copytree(tiny_model, tmp_path / "chat"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    chatting = xentrs.Scorer(folder, dtype="float32")
    result = chatting.score_chats([CHAT, {"id": "named", "messages": CHAT}])
    assert [document.id for document in result] == ["chats#1", "named"]
    assert result[0].nll_sum == pytest.approx(result[1].nll_sum, rel=1e-12)
    text = "[user]How many towns?</s>[assistant]31 of them.</s>"
    start = text.index("31").__index__()
    tokens = result[0].tokens
    assert tokens.byte_start[0] == start
    assert tokens.token_id[-1] == 1  # the special token that ends the turn
    whole = chatting.score([text])[0].tokens
    np.testing.assert_allclose(tokens.nll, whole.nll[tokens.position], rtol=0, atol=1e-5)
    assert result.protocol["chat_template_sha256"] is not None
    assert chatting.protocol["chat_template_sha256"] is None


def test_bad_records_raise_before_anything_is_scored(tiny_runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = xentrs.Scorer(tiny_runner)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_runner, "hidden_states", None)  # a call fails
        with pytest.raises(InputError, match=r"data, record 3: .*null"):
            scorer.score(["one", "two", None])
        with pytest.raises(InputError, match=r"pairs, record 1: .*context"):
            scorer.score_pairs([{"continuation": "x"}])
        with pytest.raises(xentrs.DTypeError, match="a text on its own"):
            scorer.score("one text")
        with pytest.raises(xentrs.ParamError, match="on_bad 'ignore': expected 'raise', 'skip' or a function"):
            scorer.score(["one"], on_bad="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="record 2"):
        list(scorer.iter_scores(iter(["one two", None])))


def test_bad_records_skipped_are_named(scorer: xentrs.Scorer) -> None:
    data = ["one two", None, {"text": 5}, {"text": "three four", "id": 7}]
    result = scorer.score(data, on_bad="skip")
    assert [document.id for document in result] == ["data#1", "7"]
    assert [(rejected.line, rejected.kind) for rejected in result.quarantine] == [(2, "not_a_record"), (3, "not_text")]
    assert result.totals["quarantined"] == 2
    assert "quarantined=2" in repr(result)
    heard: list[Any] = []
    assert [document.id for document in scorer.iter_scores(data, on_bad=heard.append)] == ["data#1", "7"]
    assert [rejected.line for rejected in heard] == [2, 3]
    assert len(list(scorer.iter_scores(data, on_bad="skip"))) == 2


def test_other_keys(tiny_runner: Any) -> None:
    scorer = xentrs.Scorer(tiny_runner, text_key="body", id_key="name", tokens="none")
    (document,) = scorer.score([{"body": "some text", "name": "n"}])
    assert (document.id, document.tokens) == ("n", None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 10_000}, "^window 10000: the model was made for at most 64 positions"),
        ({"window": 8, "stride": 4, "min_context": 4}, "^stride and min_context are two ways"),
        ({"prefix": "id"}, "^prefix id: expected none, bos, eos, auto or a token id"),
        ({"tokens": "some"}, "^tokens 'some': expected none, basic, detect, all"),
        ({"inverse_temperatures": [0.5]}, "^inverse_temperatures need tokens 'detect' or 'all'"),
        ({"tokens": "all", "inverse_temperatures": [1, 1.0]}, "expected different numbers"),
        ({"top_k": 0}, "^top_k 0: expected at least 1"),
        ({"num_threads": 0}, "^num_threads 0: expected at least 1"),
    ],
)
def test_settings_are_checked_in_words_of_python(tiny_runner: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(xentrs.ParamError, match=message):
        xentrs.Scorer(tiny_runner, **options)


def test_scorer_prints_nothing_and_closes(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with xentrs.Scorer(tiny_model, dtype="float32") as scorer:
        scorer.score(["some text"])
        assert repr(scorer) == f"Scorer({str(tiny_model)!r}, prefix='none', window=64, stride=64)"
        assert scorer.notices == []
        stream = scorer.iter_scores(["some text"])
    assert capfd.readouterr() == ("", "")
    for call in (lambda: scorer.score([]), lambda: next(stream), lambda: scorer.protocol):
        with pytest.raises(xentrs.ParamError, match="this scorer is closed"):
            call()
    assert repr(scorer) == "Scorer(closed)"


def test_missing_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENTRS_CACHE", str(tmp_path))
    with pytest.raises(xentrs.ModelError, match="xentrs model import smollm2-135m"):
        xentrs.Scorer()


def test_import_stays_light() -> None:
    code = (
        "import sys, xentrs\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'jinja2', 'rich', 'xentrs.corpus', 'xentrs.models'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert 'Scorer' in dir(xentrs)\n"
        "from xentrs import *\n"
        "assert all(hasattr(xentrs, name) for name in xentrs.__all__)\n"
        "heavy = {'torch', 'transformers', 'pyarrow', 'jinja2'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "try: xentrs.nothing\n"
        "except AttributeError as error: assert \"'nothing'\" in str(error)\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
