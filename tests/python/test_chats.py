"""Chats: the tokenizer's template, which tokens of it are wanted, and templates that do not do."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CommandResult, write_model
from xentrs.corpus import Reading, open_sources, resolve_settings
from xentrs.corpus.documents import Document
from xentrs.corpus.encoding import EncodedDocument, encode_documents, render_chat
from xentrs.corpus.records import Fields, RecordError
from xentrs.corpus.run import text_job
from xentrs.corpus.score import PartColumns, score_part
from xentrs.corpus.settings import protocol_block
from xentrs.errors import ParamError
from xentrs.models import load_model

pytestmark = pytest.mark.usefixtures("one_thread")
Command = Callable[..., CommandResult]
Message = dict[str, str]
READING = Reading(messages_key="messages")

# </s> ends every turn, and a line end stands behind it.
PLAIN = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + PLAIN
# As some models of late: what an earlier assistant turn thought is taken out once another turn follows.
REWRITING = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' }}"
    "{{ m['content'] if loop.last else m['content'].split('|')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
REFUSING = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('users begin') }}{% endif %}" + PLAIN


def with_template(model: Path, folder: Path, template: str | None) -> Path:
    """A copy of a model whose tokenizer has this template."""
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Any]:
    """A runner whose tokenizer has this template; the same one for the same template."""
    base = tmp_path_factory.mktemp("chats")
    model = write_model(base / "m", adds_bos=True)
    made: dict[str | None, Any] = {}

    def runner(template: str | None) -> Any:
        if template not in made:
            made[template] = load_model(str(with_template(model, base / str(len(made)), template)), dtype="float32")
        return made[template]

    return runner


def message(role: str, content: str, **others: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **others}


SHORT = [message("user", "The dog?"), message("assistant", "jumps over")]
LONG = [
    message("system", "be short"),
    *SHORT,
    message("user", "and the fox 🙂"),
    message("assistant", "naïve café"),
    message("user", "12 towns"),
]


def encode(runner: Any, messages: Sequence[Message]) -> EncodedDocument | RecordError:
    document = Document(0, "a", "a", 1, Fields("", messages=tuple(messages)))
    (found,) = encode_documents([document], runner.encoder, keep_text=True)
    return found


def wanted_texts(document: EncodedDocument) -> list[str]:
    """The stretches of text whose tokens are wanted."""
    assert document.text is not None
    data, found = document.text.encode(), [b""]
    last, reached = None, 0
    for place in document.wanted.tolist():
        if last is not None and place != last + 1:
            found.append(b"")
        start, end = int(document.encoded.byte_start[place]), int(document.encoded.byte_end[place])
        found[-1] += data[max(start, reached) : end]  # pieces of one character share its range
        last, reached = place, max(reached, end)
    return [piece.decode() for piece in found if piece]


def test_only_assistant_turns_to_their_end_are_wanted(make: Any) -> None:
    document = encode(make(PLAIN), LONG)
    assert isinstance(document, EncodedDocument)
    assert document.text == (
        "[system]be short</s>\n[user]The dog?</s>\n[assistant]jumps over</s>\n"
        "[user]and the fox 🙂</s>\n[assistant]naïve café</s>\n[user]12 towns</s>\n"
    )
    # The end of a turn is predicted, the line end that the template writes behind it is not; nor is the header.
    assert wanted_texts(document) == ["jumps over</s>", "naïve café</s>"]
    assert document.size.byte_count == len("jumps over</s>naïve café</s>".encode())
    assert document.size.char_count == len("jumps over</s>naïve café</s>")
    assert document.size.word_count == 2  # "over</s>" and "café</s>"; "jumps" and "naïve" go on from the header
    assert document.is_chat
    assert document.context_count == len(document.encoded.token_ids) - len(document.wanted) > 0


@pytest.mark.parametrize(
    ("messages", "wanted"),
    [
        ([message("assistant", "I begin"), message("user", "yes")], ["I begin</s>"]),
        ([message("assistant", "assistant")], ["assistant</s>"]),  # as in its own header
        ([message("user", "a"), message("assistant", "b"), message("assistant", "c")], ["b</s>", "c</s>"]),
        ([message("user", "a"), message("assistant", "")], ["</s>"]),
        ([message("user", "[assistant]b</s>"), message("assistant", "b")], ["b</s>"]),
        ([message("user", "only a user")], []),
        ([message("user", "a"), message("assistant", "ends</s> early")], ["ends</s>"]),
        ([message("user", "a"), message("assistant", "x", name="Ann")], ["x</s>"]),
    ],
)
def test_turns(make: Any, messages: list[Any], wanted: list[str]) -> None:
    document = encode(make(PLAIN), messages)
    assert isinstance(document, EncodedDocument)
    assert wanted_texts(document) == wanted


def test_render_chat_says_where_the_turns_stand(make: Any) -> None:
    text, turns = render_chat(make(PLAIN).encoder, LONG)
    assert [text[start:end] for start, end in turns] == ["jumps over</s>\n", "naïve café</s>\n"]


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (REWRITING, [*SHORT[:1], message("assistant", "hm|yes"), message("user", "b")], "rewrites turn 1"),
        (REFUSING, [message("system", "a"), *SHORT], "refuses the messages: users begin"),
        ("{{ messages[0]['nothing']['more'] }}", SHORT, "refuses the messages"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", SHORT, "refuses the messages"),  # a sandbox holds it
    ],
)
def test_templates_that_do_not_do_quarantine_the_chat(
    make: Any, template: str, messages: list[Any], reason: str
) -> None:
    found = encode(make(template), messages)
    assert isinstance(found, RecordError)
    assert found.kind == "chat_template"
    assert reason in found.reason


def test_a_template_that_rewrites_nothing_of_this_chat_does(make: Any) -> None:
    document = encode(make(REWRITING), [*SHORT[:1], message("assistant", "yes"), message("user", "b")])
    assert isinstance(document, EncodedDocument)
    assert wanted_texts(document) == ["yes</s>"]


@pytest.mark.parametrize("field", ["role", "name"])
def test_a_lone_surrogate_anywhere_is_quarantined(make: Any, field: str) -> None:
    """Roles and other fields reach the template unchecked."""
    template = PLAIN.replace("m['role']", "m['role'] + (m['name'] or '')")
    bad = {**message("tool", "b", name=""), field: "\udc80"}
    found = encode(make(template), [message("user", "a", name=""), bad])
    assert isinstance(found, RecordError)
    assert found.kind == "lone_surrogate"
    assert isinstance(encode(make(template), [message("user", "a", name="")]), EncodedDocument)


def scored(runner: Any, tmp_path: Path, chats: Sequence[Sequence[Message]], **options: Any) -> PartColumns:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    settings = resolve_settings(runner, reading=READING, **options)
    part = text_job(runner, open_sources([str(path)])[0], settings).reader.next_part()
    assert part is not None
    return score_part(part, runner, settings)


def plain_nll(runner: Any, text: str, prefix: list[int], window: int | None = None) -> dict[int, float]:
    """The nll of each token by one pass over all; with a window by the last inputs that fit."""
    import torch

    ids = runner.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = prefix + ids
    start = 0 if window is None else max(len(stream) - 1 - window, 0)
    inputs = stream[start:]
    with torch.inference_mode():
        rows = torch.log_softmax(runner.model(input_ids=torch.tensor([inputs])).logits[0].double(), dim=-1)
    return {start + place + 1 - len(prefix): -float(rows[place][inputs[place + 1]]) for place in range(len(inputs) - 1)}


@pytest.mark.parametrize("prefix", ["none", "bos"])
@pytest.mark.parametrize("template", [PLAIN, WITH_BOS])
def test_scores_of_chats(make: Any, tmp_path: Path, template: str, prefix: str) -> None:
    """A BOS that the template writes is not written twice."""
    runner = make(template)
    chats = [SHORT, SHORT[:1], LONG[1:3], [message("user", "x"), message("assistant", "y z")]]
    columns = scored(runner, tmp_path, chats, prefix=prefix)
    for number, chat in enumerate(chats):
        document = encode(runner, chat)
        assert isinstance(document, EncodedDocument)
        assert document.text is not None
        writes_bos = template == WITH_BOS
        assert (document.encoded.token_ids[0] == 0) == writes_bos
        head = [0] if prefix == "bos" and not writes_bos else []
        expected = plain_nll(runner, document.text, head)
        rows = columns.tokens["document"] == number
        assert columns.tokens["position"][rows].tolist() == document.wanted.tolist()
        wanted = [expected[place] for place in document.wanted.tolist()]
        np.testing.assert_allclose(columns.tokens["nll"][rows], wanted, rtol=1e-5)
        assert columns.scored[rows].all()
        assert columns.documents["scored_count"][number] == len(document.wanted)
        assert columns.documents["byte_count"][number] == len("".join(wanted_texts(document)).encode())
    assert columns.documents["reason"] == [None, "no_tokens", None, None]


def test_a_long_chat_keeps_as_much_before_the_turns_as_fits(make: Any, tmp_path: Path) -> None:
    runner, window = make(PLAIN), 40
    chat = [message("user", "The quick brown fox jumps. " * 6), message("assistant", "12 towns")]
    columns = scored(runner, tmp_path, [chat], prefix="none", window=window)
    document = encode(runner, chat)
    assert isinstance(document, EncodedDocument)
    assert document.text is not None
    expected = plain_nll(runner, document.text, [], window)
    wanted = [expected[place] for place in document.wanted.tolist()]
    np.testing.assert_allclose(columns.tokens["nll"], wanted, rtol=1e-5)
    assert columns.documents["dropped_context_count"] == [len(document.encoded.token_ids) - window - 1]


def test_protocol_names_the_template(make: Any) -> None:
    runner = make(PLAIN)
    block = protocol_block(runner, resolve_settings(runner, reading=READING))
    assert block["chat_template_sha256"] == hashlib.sha256(PLAIN.encode()).hexdigest()
    other = make(WITH_BOS)
    assert protocol_block(other, resolve_settings(other, reading=READING))["chat_template_sha256"] not in (
        None,
        block["chat_template_sha256"],
    )
    assert protocol_block(runner, resolve_settings(runner))["chat_template_sha256"] is None  # no chats, no template


def test_tokenizer_without_a_template(make: Any) -> None:
    with pytest.raises(ParamError, match="--messages-key: this tokenizer has no chat template"):
        resolve_settings(make(None), reading=READING)
    resolve_settings(make(None))


def test_chats_on_the_command_line(xentrs_command: Command, make: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rewritten = [*SHORT[:1], message("assistant", "hm|yes"), message("user", "b")]
    lines = [{"m": SHORT, "id": "good"}, {"m": rewritten}, {"m": "text"}, {"m": SHORT[:1]}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ("--messages-key", "m", "--json")
    result = xentrs_command("score", path, "--model", make(REWRITING).info.name, *options)
    assert result.code == 3
    page = json.loads(result.out)
    assert [entry["status"] for entry in page["documents"]] == ["scored", "unscorable"]
    assert [(entry["line"], entry["kind"]) for entry in page["quarantine"]] == [
        (2, "chat_template"),
        (3, "not_messages"),
    ]
    assert page["protocol"]["chat_template_sha256"] is not None
    result = xentrs_command("score", path, "--model", make(None).info.name, *options)
    assert (result.code, result.out) == (2, "")
    assert "no chat template" in result.err
