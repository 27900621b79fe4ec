"""The texts of the truth bench: what it asserts stands on their being alike on all sides, and without duplicates."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from loading import load_file

FOLDER = Path(__file__).resolve().parents[2] / "benches" / "truth"


@pytest.fixture(scope="module")
def texts() -> ModuleType:
    return load_file(FOLDER / "texts.py")


def words(start: int, count: int = 40) -> str:
    return " ".join(f"word{start + place}" for place in range(count))


def test_duplicates_go_and_the_first_stays(texts: ModuleType) -> None:
    first, other = words(0), words(1000)
    shouted, spaced = first.upper(), first.replace(" ", "\n ")
    nearly = words(2) + " and more"  # 26 of 30 runs of 13 words are the first's
    shares_some = words(20)  # 8 of 28
    kept = texts.without_duplicates([first, shouted, spaced, nearly, shares_some, other])
    assert kept == [first, shares_some, other]


def test_the_split_follows_from_the_texts_alone(texts: ModuleType) -> None:
    documents = [words(100 * place) for place in range(60)]
    split = texts.split_pool(documents, seed=1)
    again = texts.split_pool(reversed(documents), seed=1)
    assert (split.a, split.b, split.c) == (again.a, again.b, again.c)
    assert sorted([*split.a, *split.b, *split.c]) == sorted(documents)
    assert min(len(split.a), len(split.b), len(split.c)) >= 10
    fewer = texts.split_pool(documents, seed=1, most=30)
    assert {*fewer.a} < {*split.a}
    assert len([*fewer.a, *fewer.b, *fewer.c]) == 30
    assert texts.split_pool(documents, seed=2).a != split.a


def test_pieces_are_neither_short_nor_long(texts: ModuleType) -> None:
    sentence = "It was a sentence of some length, and another followed it at once. "
    paragraphs = ["too short", sentence * 20, "x" * 2000, "Zu\u0308rich, " * 20]
    pieces = list(texts.pieces("\n\n".join(paragraphs)))
    sizes = [len(piece.encode()) for piece in pieces]
    assert min(sizes) >= texts.FEWEST_BYTES
    assert max(sizes) <= texts.MOST_BYTES
    assert sum(piece.count("sentence") for piece in pieces) == 20
    assert all(piece.endswith(".") for piece in pieces if "sentence" in piece)
    assert pieces[-1].startswith("Zürich")


def test_canaries_are_words_of_the_pool_in_no_order_of_it(texts: ModuleType) -> None:
    split = texts.split_pool(
        [words(100 * place).replace("word", "abc") + " common words here" for place in range(30)], 0
    )
    canaries = texts.canaries(split, (0, 4), each=3, seed=0)
    assert [canary.times_seen for canary in canaries] == [0, 0, 0, 4, 4, 4]
    assert {word for canary in canaries for word in canary.text.split()} == {"common", "words", "here"}
    assert len({canary.text for canary in canaries}) == 6


def test_pod_loses_its_markup() -> None:
    pod = "=head1 NAME\n\nB<perl> is I<a C<small>\nlanguage>.\n\n    verbatim code\n\nSee L<< perlrun >>."
    assert load_file(FOLDER / "debian.py").without_pod(pod) == "perl is a small language.\n\nSee perlrun."
