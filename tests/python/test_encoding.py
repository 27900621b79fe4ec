"""How much text tokens stand for: bytes, characters, words, of the text as it was given; what is wanted of it."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TRAINING_LINES
from xentrs.corpus import Reading, open_sources, resolve_settings
from xentrs.corpus.documents import Document
from xentrs.corpus.encoding import EncodedDocument, encode_documents, text_size, token_sizes
from xentrs.corpus.records import Fields
from xentrs.corpus.run import text_job
from xentrs.corpus.score import score_part
from xentrs.models import EncodedText

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [
    "",
    " ",
    "a",
    "🙂",
    "👩‍👩‍👧 family",  # several code points joined
    "naïve café — 東京",
    "  two  spaces\tand\n\nlines \r\n",
    "x\u00a0y\u2003z\u3000w",  # spaces that are no ASCII
    "e\u0301 = é",  # the same letter in two ways
    "a\0b\u200bc",
    "Ünïcödé 🙂🙂 " * 5,
]


def words_of(text: str) -> int:
    """By the standard library alone."""
    return len(text.split())


@pytest.mark.parametrize("text", TEXTS)
def test_size_of_a_text(text: str) -> None:
    size = text_size(text)
    assert size.byte_count == len(text.encode("utf-8"))
    assert size.char_count == len(list(text))
    assert size.word_count == words_of(text) == len([piece for piece in re.split(r"\s+", text) if piece])


def encode(runner: Any, text: str, context: str | None = None) -> EncodedDocument:
    document = Document(3, "id", "source", 1, Fields(text, context=context, by={"lang": "de"}))
    (found,) = encode_documents([document], runner.encoder, keep_text=True)
    assert isinstance(found, EncodedDocument)
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_of_a_text_add_up_to_it(tiny_runner: Any, text: str) -> None:
    found = encode(tiny_runner, text)
    assert [int(values.sum()) for values in found.token_sizes] == [
        len(text.encode()),
        len(text),
        words_of(text),
    ]
    assert all((values >= 0).all() for values in found.token_sizes)
    assert found.wanted.tolist() == list(range(len(found.encoded.token_ids)))
    assert (found.number, found.id, found.source, found.by, found.text) == (3, "id", "source", {"lang": "de"}, text)
    assert found.context_count == 0
    assert found.shared_context is None


def test_pieces_of_one_character_count_with_the_first(tiny_runner: Any) -> None:
    found = encode(tiny_runner, "🙂")
    count = len(found.encoded.token_ids)
    assert count > 1  # the tokenizer knows its bytes alone
    assert found.token_sizes[0].tolist() == [4, *[0] * (count - 1)]
    assert found.token_sizes[1].tolist() == [1, *[0] * (count - 1)]
    assert found.token_sizes[2].tolist() == [1, *[0] * (count - 1)]


def encoded(*ranges: tuple[int, int]) -> EncodedText:
    start, end = np.array(ranges, dtype=np.int64).reshape(-1, 2).T
    return EncodedText(np.zeros(len(ranges), dtype=np.int64), start, end, 0)


def test_gaps_overlaps_and_steps_back() -> None:
    """A normaliser may drop text, add tokens without any, or give two tokens the same range."""
    text = "ab  cd ef"
    assert [values.tolist() for values in token_sizes(text, encoded((0, 2), (4, 6), (7, 9)))] == [[2, 2, 2]] * 2 + [
        [1, 1, 1]
    ]
    sizes = token_sizes(text, encoded((0, 0), (0, 3), (1, 3), (0, 2), (2, 9), (9, 9)))
    assert sizes[0].tolist() == [0, 3, 0, 0, 6, 0]
    assert sizes[2].tolist() == [0, 1, 0, 0, 2, 0]
    for values in token_sizes("", encoded()):
        assert values.tolist() == []


def test_any_ranges_give_sizes_that_stay_within_the_text() -> None:
    generator = random.Random(11)
    for trial in range(2000):
        text = "".join(generator.choices("aé 🙂\n東", k=generator.randint(0, 12)))
        edges = [len(text[:place].encode()) for place in range(len(text) + 1)]
        ranges = [tuple(sorted(generator.choices(edges, k=2))) for _ in range(generator.randint(0, 8))]
        for floor in (0, generator.choice(edges)):
            found = token_sizes(text, encoded(*ranges), floor)  # type: ignore[arg-type]
            whole = (len(text.encode()), len(text), words_of(text))
            for values, limit in zip(found, whole, strict=True):
                assert (values >= 0).all(), f"trial {trial} of seed 11"
                assert values.sum() <= limit, f"trial {trial} of seed 11"


@pytest.mark.parametrize(
    ("context", "continuation"),
    [
        ("The quick", " brown fox"),
        ("The quick ", "brown fox"),
        ("The qui", "ck brown fox"),
        ("caf", "é 東京 🙂"),
        ("", "The fox"),
        ("   ", "The fox fox"),
        ("The fox", ""),
        ("The fox  ", ""),
    ],
)
def test_sizes_of_a_pair_are_those_of_its_continuation(tiny_runner: Any, context: str, continuation: str) -> None:
    """Spaces that went over from the context are not text of the continuation."""
    found = encode(tiny_runner, continuation, context)
    assert found.size == text_size(continuation)
    byte_count, char_count, word_count = (int(values.sum()) for values in found.token_sizes)
    # By the rule of the harness a token of the context may reach into the continuation ("ck" in "quick").
    taken = max(int(found.encoded.byte_end[: found.context_count].max(initial=0)) - len(context.encode()), 0)
    assert (byte_count, char_count) == (len(continuation.encode()) - taken, len(continuation) - taken)
    assert taken == (1 if context == "The qui" else 0)
    joined = words_of(context + continuation) - words_of(context)
    assert word_count == joined or (context[-1:] + continuation[:1]).strip() == ""
    assert word_count <= words_of(continuation)
    assert found.text == context + continuation


def test_scored_counts_leave_out_what_is_not_scored(tiny_runner: Any, tmp_path: Path) -> None:
    lines = [
        {"q": "", "a": "🙂 fox"},  # the first token is a quarter of a character
        {"q": "", "a": "The fox"},
        {"q": " ", "a": "dog dog"},
        {"q": "The", "a": " fox fox"},
        {"q": "", "a": "a"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    reading = Reading(context_key="q", continuation_key="a")
    settings = resolve_settings(tiny_runner, prefix="none", reading=reading)
    part = text_job(tiny_runner, open_sources([str(path)])[0], settings).reader.next_part()
    assert part is not None
    documents = score_part(part, tiny_runner, settings).documents
    for number, line in enumerate(lines):
        (whole,) = tiny_runner.encoder.encode([line["q"] + line["a"]])
        first_end = 0 if line["q"].strip() else int(whole.byte_end[0])
        rest = (line["q"] + line["a"]).encode()[max(first_end, len(line["q"].encode())) :].decode()
        assert documents["byte_count"][number] == len(line["a"].encode()), line
        assert documents["scored_byte_count"][number] == len(rest.encode()), line
        assert documents["scored_char_count"][number] == len(rest), line
        # A word counts with the token that begins it.
        begun = 0 if line["q"].strip() or not line["a"][:1].strip() else int(first_end > len(line["q"].encode()))
        assert documents["scored_word_count"][number] == words_of(line["a"]) - begun, line


def test_bits_per_byte_divides_by_what_is_scored(tiny_runner: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in (*TRAINING_LINES, *TEXTS)))
    sources, _ = open_sources([str(path)])
    for prefix in ("none", "bos"):
        settings = resolve_settings(tiny_runner, prefix=prefix)
        part = text_job(tiny_runner, sources, settings).reader.next_part()
        assert part is not None
        columns = score_part(part, tiny_runner, settings)
        documents = columns.documents
        for number, text in enumerate((*TRAINING_LINES, *TEXTS)):
            (tokens,) = tiny_runner.encoder.encode([text])
            unscored = int(tokens.byte_end[0]) if prefix == "none" and len(tokens.token_ids) else 0
            assert documents["scored_byte_count"][number] == len(text.encode()) - unscored
            if documents["scored_byte_count"][number] and documents["status"][number] == "scored":
                bits = documents["nll_sum"][number] / np.log(2) / (len(text.encode()) - unscored)
                assert documents["bits_per_byte"][number] == pytest.approx(bits, rel=1e-14)
            else:
                assert documents["bits_per_byte"][number] is None


def test_byte_ranges_that_a_normaliser_shifts(tiny_runner: Any) -> None:
    """Offsets are into the text as it was given, also where the tokenizer sees another one."""
    from tokenizers import Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast
    from xentrs.models.tokenizer import FastTextEncoder

    backend = Tokenizer.from_str(tiny_runner.encoder.tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip(), normalizers.Lowercase()])
    encoder = FastTextEncoder(PreTrainedTokenizerFast(tokenizer_object=backend), "m", Path("nowhere"))
    text = "  Ⅷ ﬁsh ÀB  "  # VIII and fi are more characters than they were; the ends are gone
    (document,) = encode_documents([Document(0, "a", "a", 1, Fields(text))], encoder)
    assert isinstance(document, EncodedDocument)
    assert document.size == text_size(text)
    ends = document.encoded.byte_end
    assert (np.diff(ends) >= 0).all()
    assert ends[-1] == len(text.rstrip().encode())
    sums = [int(values.sum()) for values in document.token_sizes]
    assert sums == [len(text.strip().encode()), len(text.strip()), 3]
