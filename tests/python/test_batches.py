"""Batches of documents of which only some tokens are wanted, and parts that are read ahead."""

from __future__ import annotations

import random
import threading
from typing import Any

import numpy as np
import pytest
from xentrs.corpus.ahead import AheadReader
from xentrs.corpus.batches import document_windows, plan_batches
from xentrs.corpus.documents import Cursor
from xentrs.corpus.encoding import EncodedDocument, TextSize
from xentrs.corpus.parts import Part
from xentrs.corpus.settings import Prefix, Settings
from xentrs.corpus.windows import Windowing
from xentrs.errors import InputChangedError
from xentrs.models import EncodedText

SEED = 77
PREFIX = 9


def document(number: int, ids: list[int], wanted: list[int], is_chat: bool = False) -> EncodedDocument:
    token_ids = np.array(ids, dtype=np.int64)
    zeros = np.zeros(len(wanted), dtype=np.int64)
    encoded = EncodedText(token_ids, token_ids, token_ids, 0)
    size = TextSize(0, 0, 0)
    place = np.array(wanted, dtype=np.int64)
    return EncodedDocument(number, str(number), "f", encoded, place, size, (zeros, zeros, zeros), is_chat=is_chat)


def settings(windowing: Windowing, prefix_id: int | None, batch_tokens: int = 64) -> Settings:
    return Settings(Prefix("id", "id", prefix_id), windowing, batch_tokens=batch_tokens)


def random_documents(generator: random.Random) -> list[EncodedDocument]:
    """Texts and pairs of a few contexts, or chats; numbers tell the tokens apart."""
    documents, is_chat = [], generator.random() < 0.4
    contexts = [[generator.randint(100, 999) for _ in range(generator.randint(0, 12))] for _ in range(3)]
    for number in range(generator.randint(1, 12)):
        rest = [generator.randint(100, 999) for _ in range(generator.randint(0, 25))]
        context = generator.choice(contexts) if generator.random() < 0.7 else []
        ids = context + rest
        wanted = list(range(len(context), len(ids)))
        if is_chat:
            wanted = [place for place in wanted if generator.random() < 0.4]
            ids = [PREFIX, *ids] if generator.random() < 0.5 else ids
        documents.append(document(number, ids, wanted, is_chat))
    return documents


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("every", ["document", "window"])
@pytest.mark.parametrize("rule", ["rolling", "backfilled", "inside", "halves"])
def test_every_row_is_predicted_once_from_what_stands_before_it(rule: Any, every: Any, shares: bool) -> None:
    """Row by row: the inputs up to the hidden state, shared ones first, are the tokens before the target, perhaps with
    the prefix in front.
    """
    generator = random.Random(SEED)
    shared_calls = 0
    for trial in range(300):
        documents = random_documents(generator)
        window = generator.randint(2, 30)
        stride = window if rule in ("backfilled", "halves") else generator.randint(1, window)
        prefix_id = generator.choice([None, PREFIX])
        chosen = settings(Windowing(window, stride, rule, every), prefix_id, generator.choice([1, 40, 1000]))
        owners = [(entry, place) for entry in documents for place in entry.wanted.tolist()]
        seen: list[int] = []
        where = f"trial {trial} of seed {SEED}"
        for batch in plan_batches(documents, chosen, shares=shares):
            shared = [] if batch.shared_ids is None else batch.shared_ids.tolist()
            shared_calls += bool(shared)
            length = batch.input_ids.shape[1]
            for index, target, row in zip(batch.hidden_index, batch.targets, batch.row_index, strict=True):
                entry, place = owners[row]
                ids = entry.encoded.token_ids.tolist()
                assert target == ids[place], where
                before = shared + batch.input_ids[index // length][: index % length + 1].tolist()
                assert len(before) <= window, where
                is_prefixed = before[0] == PREFIX and not (entry.is_chat and ids[0] == PREFIX)
                tail = before[is_prefixed:]
                assert tail == ids[place - len(tail) : place], where
                assert tail or is_prefixed, where
                seen.append(int(row))
        assert len(seen) == len(set(seen)), where
        missing = [owners[row] for row in set(range(len(owners))) - set(seen)]
        if rule in ("rolling", "backfilled"):
            without = prefix_id is None
            for entry, place in missing:  # only a first token that nothing stands before
                assert place == 0, where
                assert without or entry.is_chat, where
    assert (shared_calls > 20) == (shares and rule != "halves") or rule in ("inside", "halves")


def test_nothing_wanted_is_no_window() -> None:
    chosen = settings(Windowing(8, 8), PREFIX)
    assert document_windows(document(0, [1, 2, 3], []), chosen) == []
    assert document_windows(document(0, [], [], is_chat=True), chosen) == []
    assert list(plan_batches([document(0, [1, 2, 3], [])], chosen)) == []
    assert list(plan_batches([], chosen)) == []


def test_windows_without_a_wanted_token_are_left_out() -> None:
    chosen = settings(Windowing(4, 4), None)
    windows = document_windows(document(0, list(range(20)), [2, 18]), chosen)
    assert [(entry.first_target, entry.end) for entry in windows] == [(1, 5), (17, 20)]


def test_a_chat_that_begins_with_the_prefix_gets_no_other() -> None:
    for first, count in ((PREFIX, 3), (5, 4)):
        (batch,) = plan_batches([document(0, [first, 2, 3, 4], [3], is_chat=True)], settings(Windowing(8, 8), PREFIX))
        assert batch.input_ids.tolist() == [[PREFIX, 2, 3] if first == PREFIX else [PREFIX, 5, 2, 3]]
        assert batch.input_ids.shape[1] == count


class Numbered:
    """A reader of so many parts that remembers which threads asked."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.count, self.fails_at, self.number = count, fails_at, 0
        self.threads: list[str] = []

    def seek(self, number: int, cursor: Cursor) -> None:
        self.number = number

    def next_part(self) -> Part | None:
        self.threads.append(threading.current_thread().name)
        if self.number == self.fails_at:
            raise InputChangedError("changed")
        if self.number >= self.count:
            return None
        self.number += 1
        return Part(self.number - 1, Cursor(), Cursor())


def test_parts_come_in_order_and_the_next_one_from_a_thread() -> None:
    reader = Numbered(5)
    with AheadReader(reader) as ahead:
        found = []
        while (part := ahead.next_part()) is not None:
            found.append(part.number)
    assert found == [0, 1, 2, 3, 4]
    assert reader.threads[0] == threading.current_thread().name
    assert all(name.startswith("xentrs-reader") for name in reader.threads[1:])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("xentrs-reader")]


def test_seek_forgets_what_was_read_ahead() -> None:
    with AheadReader(Numbered(9)) as ahead:
        assert ahead.next_part() == Part(0, Cursor(), Cursor())
        ahead.seek(5, Cursor())
        assert [part.number for part in (ahead.next_part(), ahead.next_part()) if part] == [5, 6]
        ahead.seek(8, Cursor())
        ahead.seek(2, Cursor())
        assert [part.number for part in (ahead.next_part(),) if part] == [2]


def test_an_error_comes_with_its_part() -> None:
    with AheadReader(Numbered(9, fails_at=2)) as ahead:
        assert [part.number for part in (ahead.next_part(), ahead.next_part()) if part] == [0, 1]
        with pytest.raises(InputChangedError):
            ahead.next_part()
    with AheadReader(Numbered(9, fails_at=1)) as ahead:
        ahead.next_part()
        ahead.seek(4, Cursor())  # the part that could not be read is not wanted any more
        assert [part.number for part in (ahead.next_part(),) if part] == [4]
