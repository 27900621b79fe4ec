"""One line of JSON to a document's text and id, or the reason why not.

In: the bytes of a line. Out: `(text, id)`; a `RecordError` carries a kind (for counting) and a reason (for
reading). Everything that a later step could stumble over is refused here: depth, duplicate keys, NaN,
infinities, lone surrogates.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 128
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


class RecordError(Exception):
    """A record that cannot be scored. `byte_offset` is within the record."""

    def __init__(self, kind: str, reason: str, byte_offset: int = 0) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.byte_offset = byte_offset


def decode_utf8(data: bytes) -> str:
    """The text of `data`; a RecordError names the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        value = data[error.start]
        raise RecordError("invalid_utf8", f"byte 0x{value:02x} is not UTF-8 ({error.reason})", error.start) from None


def parse_record(line: bytes, text_key: str, id_key: str) -> tuple[str, str | None]:
    """Text and id (None when the record has none) of one JSON line."""
    content = decode_utf8(line)
    _check_depth(content)
    try:
        record = _DECODER.decode(content)
    except json.JSONDecodeError as error:
        offset = len(content[: error.pos].encode("utf-8", "surrogatepass"))
        raise RecordError("invalid_json", f"invalid JSON: {error.msg} at column {error.pos + 1}", offset) from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits is a plain ValueError
        raise RecordError("invalid_json", f"invalid JSON: {error}") from None
    if not isinstance(record, dict):
        raise RecordError("not_an_object", f"expected a JSON object, got {_kind(record)}")
    if text_key not in record:
        raise RecordError("missing_key", f"key {text_key!r} is missing")
    text = record[text_key]
    if not isinstance(text, str):
        raise RecordError("not_text", f"key {text_key!r} holds {_kind(text)}, expected a string")
    _check_surrogates(text, text_key)
    return text, _record_id(record.get(id_key), id_key)


def _record_id(value: Any, id_key: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RecordError("bad_id", f"key {id_key!r} holds {_kind(value)}, expected a string or an integer")
    if isinstance(value, str):
        _check_surrogates(value, id_key)
    return str(value)


def _check_surrogates(text: str, key: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise RecordError(
            "lone_surrogate", f"key {key!r}: lone surrogate U+{code:04X} at character {error.start}"
        ) from None


def _check_depth(content: str) -> None:
    """Refuse nesting beyond the limit before the parser recurses; strings are taken out first."""
    if content.count("[") + content.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub('""', content)):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            raise RecordError("too_deep", f"nested deeper than {MAX_DEPTH} levels")


def _refuse_constant(name: str) -> NoReturn:
    raise RecordError("not_finite", f"{name} is not JSON")


def _finite_float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise RecordError("not_finite", f"number {digits[:32]} is too large")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise RecordError("duplicate_key", f"key {repeated!r} stands twice in one object")
    return record


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite_float, object_pairs_hook=_unique_keys)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
