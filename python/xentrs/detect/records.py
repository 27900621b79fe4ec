"""What is known of records before anything is scored: labels, and that no shot is among them.

In: sources, how they are read, texts of shots. Out: labels as bool, token ids of shots; errors that name the record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np

from xentrs.corpus.documents import Cursor, Document, Rejected, read_items
from xentrs.corpus.reading import Reading
from xentrs.corpus.sources import Source
from xentrs.detect.checked_inputs import FEWEST_DOCUMENTS, too_few
from xentrs.errors import ParamError

LABELS = {
    **dict.fromkeys(("1", "true", "member", "machine"), True),
    **dict.fromkeys(("0", "false", "nonmember", "human"), False),
}
"""What stands for a member or a machine, and what for the opposite; upper case counts as lower case."""
_SEPARATOR = "\n\n"


def label_of(value: str | None, record: str) -> bool | None:
    """A label as text to True for a member or a machine; None of a record that has no label.

    Raises:
        ParamError: another value.
    """
    if value is None:
        return None
    label = LABELS.get(value.lower())
    if label is None:
        raise ParamError(f"{record}: label {value!r}, expected one of {', '.join(LABELS)}")
    return label


def labels_lack(labels: Sequence[bool | None]) -> str | None:
    """Why nothing can be said with these labels; None where something can: an evaluation, or decisions about documents
    without a label against known non-members.
    """
    known = np.array([label for label in labels if label is not None], dtype=np.bool_)
    unlabeled = len(labels) - len(known)
    reason = too_few(known)
    if reason is None or (unlabeled and len(known) >= FEWEST_DOCUMENTS and not known.any()):
        return None
    return f"{reason}; {unlabeled} documents have no label" if unlabeled else reason


def check_records(
    sources: Sequence[Source], reading: Reading, label_key: str | None, shots: Collection[str] = ()
) -> None:
    """Read everything once: hours of scoring should not end at a label.

    Raises:
        ParamError: a label is none of `LABELS`, `labels_lack` says why they do not do, a text is a shot.
    """
    known = {shot.strip() for shot in shots}
    labels: list[bool | None] = []
    for document in _documents(sources, reading):
        if document.fields.text.strip() in known:
            raise ParamError(
                f"{document.source}:{document.line}: this text is a shot; what stands before every document says "
                "nothing about itself: take it out of either"
            )
        if label_key is not None:
            labels.append(label_of(document.fields.by.get(label_key), f"{document.source}:{document.line}"))
    reason = labels_lack(labels) if label_key is not None else None
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
