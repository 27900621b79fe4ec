"""Python objects as documents: every form of record, read as it comes and once where that is all there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from xentrs.corpus import documents as documents_module
from xentrs.corpus.documents import Cursor, Document, Item, Rejected
from xentrs.corpus.objects import read_objects
from xentrs.corpus.parts import PartReader
from xentrs.corpus.reading import Reading
from xentrs.errors import DTypeError, ParamError


def items(data: Any, **reading: Any) -> list[Item]:
    return [item for item, _ in read_objects(data, Reading(**reading))(Cursor())]


def texts(found: list[Item]) -> list[str]:
    assert all(isinstance(item, Document) for item in found), found
    return [item.fields.text for item in found if isinstance(item, Document)]


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def test_every_form_of_record() -> None:
    data = ["one", {"text": "two", "id": 7}, ("Why? ", "So."), CHAT, tuple(CHAT), np.str_("six")]
    found = items(data, by=("lang",))
    assert [item.id for item in found if isinstance(item, Document)] == [
        *("<data>#1", "7", "<data>#3", "<data>#4", "<data>#5", "<data>#6")
    ]
    fields = [item.fields for item in found if isinstance(item, Document)]
    assert [entry.text for entry in fields] == ["one", "two", "So.", "", "", "six"]
    assert fields[2].context == "Why? "
    assert fields[3].messages == fields[4].messages == tuple(CHAT)
    assert all(entry.by == {"lang": None} for entry in fields), "every document has every column"
    places = [(item.number, item.line, item.source) for item in found if isinstance(item, Document)]
    assert places == [(place, place + 1, "<data>") for place in range(6)]


def test_keys_choose_the_fields_of_mappings() -> None:
    records = [{"q": "Why? ", "a": "So.", "m": {"lang": "en"}, "nr": "x"}]
    (pair,) = items(records, context_key="q", continuation_key="a", by=("m.lang",), id_key="nr")
    assert isinstance(pair, Document)
    assert (pair.id, pair.fields.context, pair.fields.text, pair.fields.by) == ("x", "Why? ", "So.", {"m.lang": "en"})
    (chat,) = items([{"conversation": CHAT}], messages_key="conversation")
    assert isinstance(chat, Document)
    assert chat.fields.messages == tuple(CHAT)


@pytest.mark.parametrize(
    ("record", "kind", "reason"),
    [
        (None, "not_a_record", "null, expected a text, a mapping, a pair or a chat"),
        (3, "not_a_record", "a value of type int"),
        (b"bytes", "not_a_record", "a value of type bytes"),
        (["a", "b"], "not_a_record", "a list of 2 str"),
        (("a", "b", "c"), "not_a_record", "a tuple of 3 str"),
        (("a", None), "not_a_record", "a tuple of 2 NoneType and str"),
        ([], "not_a_record", "a list of 0 entries"),
        ([{"role": "user"}], "not_messages", "messages[0] has null as content"),
        ([{"content": "x"}], "not_messages", "messages[0] is no object with a role"),
        ({"txt": "a"}, "missing_key", "key 'text' is missing"),
        ({"text": None}, "not_text", "key 'text' holds null"),
        ({"text": "a", "id": 1.5}, "bad_id", "key 'id' holds a number"),
        ("lone \ud835", "lone_surrogate", "U+D835"),
        (("a", "\udc00"), "lone_surrogate", "U+DC00"),
    ],
)
def test_a_bad_record_is_rejected_with_its_place_and_stops_nothing(record: Any, kind: str, reason: str) -> None:
    before, bad, after = items(["before", record, "after"])
    assert isinstance(bad, Rejected)
    assert (bad.kind, bad.line, bad.source) == (kind, 2, "<data>")
    assert reason in bad.reason
    assert texts([before, after]) == ["before", "after"]


def test_a_text_where_mappings_were_announced() -> None:
    (bad,) = items(["x"], messages_key="m")
    assert isinstance(bad, Rejected)
    assert bad.reason == "a text, expected a mapping with key 'm'"


def test_the_limit_of_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "MAX_RECORD_BYTES", 64)
    found = items(["x" * 64, "x" * 65, "é" * 33, ("x" * 40, "y" * 40), [{"role": "user", "content": "z" * 70}]])
    assert [getattr(item, "kind", "document") for item in found] == ["document", *["too_long"] * 4]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ("text", r"data is a text on its own: pass \[text\]"),
        (b"text", r"data is bytes: decode them, and pass \[text\]"),
        (3, "data is a int; expected an iterable of texts, mappings"),
        (None, "data is a NoneType; expected"),
        (np.array("text"), "data is a ndarray; expected"),
        ({"text": "a"}, r"data is a mapping on its own: pass \[record\]"),
        (Path("a.txt"), "data is a PosixPath: files are inputs"),
        ({"a", "b"}, "data is a set, which has no order"),
        (lambda: ["a"], "data is a function; expected"),
    ],
)
def test_what_can_be_no_data(data: Any, what: str) -> None:
    with pytest.raises(DTypeError, match=what):
        read_objects(data, Reading())
    with pytest.raises(TypeError):
        read_objects(data, Reading())


def test_an_open_file_and_an_old_data_frame_are_no_data(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("line\n")
    with (tmp_path / "a.txt").open() as file, pytest.raises(DTypeError, match="data is a TextIOWrapper: files are"):
        read_objects(file, Reading())

    class OldFrame:
        iloc, columns = None, ("text",)

        def __iter__(self) -> Iterator[str]:
            return iter(self.columns)

    with pytest.raises(DTypeError, match=r"pass data\.to_dict\('records'\)"):
        read_objects(OldFrame(), Reading())

    class LazyFrame:
        def collect_schema(self) -> None:
            raise AssertionError("asked too early")

    with pytest.raises(DTypeError, match=r"data is a LazyFrame, not computed yet: pass data\.collect\(\)"):
        read_objects(LazyFrame(), Reading())


class Counted:
    """An endless iterator that knows how far it was asked."""

    def __init__(self) -> None:
        self.made = 0

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> str:
        self.made += 1
        return f"text {self.made - 1}"


def test_an_iterator_is_advanced_as_records_are_asked_for() -> None:
    data = Counted()
    found = read_objects(data, Reading())(Cursor())
    assert data.made == 0
    assert texts([item for item, _ in itertools.islice(found, 3)]) == ["text 0", "text 1", "text 2"]
    assert data.made == 3
    data = Counted()
    assert texts(items(data, skip=2, limit=4, shard=1, shard_count=2)) == ["text 3", "text 5"]
    assert data.made == 6


def test_an_iterator_goes_on_and_never_back() -> None:
    read = read_objects(iter(["a", "b", "c", "d"]), Reading())
    abandoned = read(Cursor())  # as PartReader does before it is told where to go on
    found = read(Cursor(0, 0, 2, 2))
    item, cursor = next(found)
    assert texts([item]) == ["c"]
    assert cursor == Cursor(0, 0, 3, 3)
    assert texts([item for item, _ in read(cursor)]) == ["d"]
    with pytest.raises(ParamError, match="an iterator is read once, and record 0 is gone by"):
        next(abandoned)


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda texts: pa.table({"text": texts})])
def test_whatever_can_be_gone_through_again_goes_on_from_any_cursor(make: Any) -> None:
    read = read_objects(make([f"text {place}" for place in range(6)]), Reading(skip=1))
    whole = list(read(Cursor()))
    assert [item.number for item, _ in whole if isinstance(item, Document)] == [1, 2, 3, 4, 5]
    for place, (_, cursor) in enumerate(whole):
        assert list(read(cursor)) == whole[place + 1 :]


def test_an_error_of_the_iterator_itself_is_not_hidden() -> None:
    def failing() -> Iterator[str]:
        yield "a"
        raise OSError("the network is gone")

    found = read_objects(failing(), Reading())(Cursor())
    next(found)
    with pytest.raises(OSError, match="network"):
        next(found)


class StandIn:
    """What of `datasets.Dataset` matters: iteration gives rows as dicts, indexing by a name a column."""

    column_names = ("text", "id")

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | str) -> Any:
        return self._rows[key] if isinstance(key, int) else [row[key] for row in self._rows]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self._rows


def test_a_data_set_of_hugging_face() -> None:
    rows = [{"text": "a", "id": "x", "messages": CHAT}, {"text": "b", "id": None, "messages": CHAT}]
    assert texts(items(StandIn(rows))) == ["a", "b"]
    assert [item.id for item in items(StandIn(rows)) if isinstance(item, Document)] == ["x", "<data>#2"]
    assert [item.fields.messages for item in items(StandIn(rows), messages_key="messages")] == [tuple(CHAT)] * 2  # type: ignore[union-attr]


def test_parts_of_objects(tiny_runner: Any) -> None:
    """Parts are cut alike from a list and from an iterator, whatever the reader reads ahead."""
    data = ["text " * (place % 7) if place % 5 else None for place in range(40)]
    cuts = []
    for given in (data, iter(data)):
        reader = PartReader(read_objects(given, Reading()), tiny_runner.encoder, 320, 30)
        parts = []
        while (part := reader.next_part()) is not None:
            parts.append((part.start, part.end, part.rejected, [entry.id for entry in part.documents]))
        cuts.append(parts)
    assert cuts[0] == cuts[1]
    assert len(cuts[0]) > 3
    assert sum(len(rejected) for _, _, rejected, _ in cuts[0]) == 8
