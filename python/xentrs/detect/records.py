"""What is known of records before anything is scored: labels, and that no shot is among them.

In: sources, how they are read, texts of shots. Out: labels as bool, token ids of shots; errors that name the record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from xentrs.corpus.documents import Cursor, Document, Rejected, read_items
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import Source
from xentrs.detect.checked_inputs import too_few
from xentrs.errors import ParamError

LABELS = {
    **dict.fromkeys(("1", "true", "member", "machine"), True),
    **dict.fromkeys(("0", "false", "nonmember", "human"), False),
}
"""What stands for a member or a machine, and what for the opposite; upper case counts as lower case."""
_SEPARATOR = "\n\n"


def label_of(value: str | None, record: str) -> bool:
    """A label as text to True for a member or a machine.

    Raises:
        ParamError: another value, or none.
    """
    label = LABELS.get((value or "").lower())
    if label is None:
        came = "no label" if value is None else f"label {value!r}"
        raise ParamError(f"{record}: {came}, expected one of {', '.join(LABELS)}")
    return label


def check_records(
    sources: Sequence[Source], reading: Reading, label_key: str | None, shots: Collection[str] = ()
) -> None:
    """Read everything once: hours of scoring should not end at a label.

    Raises:
        ParamError: a label is none of `LABELS`, there are fewer than 5 documents or one class only, a text is a shot.
    """
    known = {shot.strip() for shot in shots}
    labels: list[bool] = []
    for document in _documents(sources, reading):
        if document.fields.text.strip() in known:
            raise ParamError(
                f"{document.source}:{document.line}: this text is a shot; what stands before every document says "
                "nothing about itself: take it out of either"
            )
        if label_key is not None:
            labels.append(label_of(document.fields.by.get(label_key), f"{document.source}:{document.line}"))
    reason = too_few(np.array(labels, dtype=np.bool_)) if label_key is not None else None
    if reason is not None:
        raise ParamError(f"--label-key {label_key}: {reason}")


def read_shots(sources: Sequence[Source], reading: Reading) -> list[str]:
    """The texts of a file of shots.

    Raises:
        ParamError: a record is no text, or there is none.
    """
    texts = []
    for item, _ in read_items(sources, Cursor(), reading):
        if isinstance(item, Rejected):
            raise ParamError(f"shots {item.source}:{item.line}: {item.reason}")
        if isinstance(item, Document):
            texts.append(item.fields.text)
    if not any(text.strip() for text in texts):
        raise ParamError(f"shots {', '.join(source.name for source in sources)}: no text")
    return texts


def shots_text(texts: Sequence[str]) -> str:
    """What stands before each document: the shots, an empty line behind each."""
    return "".join(f"{text}{_SEPARATOR}" for text in texts)


def _documents(sources: Sequence[Source], reading: Reading) -> Iterator[Document]:
    return (item for item, _ in read_items(sources, Cursor(), reading) if isinstance(item, Document))
