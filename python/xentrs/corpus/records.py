"""One record to what a document needs of it, or the reason why not.

In: the bytes of a line of JSON, or a record that is parsed already. Out: `Fields`; a `RecordError` carries a kind (for
counting) and a reason (for reading). Everything that a later step could stumble over is refused here: depth, duplicate
keys, NaN, infinities, lone surrogates.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from xentrs.corpus.reading import Reading

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


Message: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Fields:
    """What a record says. `text` is what is scored: a text, the continuation of a pair; empty for a chat."""

    text: str
    id: str | None = None
    context: str | None = None  # of a pair
    messages: tuple[Message, ...] | None = None  # of a chat
    by: dict[str, str | None] = field(default_factory=dict)

    @property
    def texts(self) -> tuple[str, ...]:
        """All that the model reads of it, but for what a template writes."""
        return (self.context or "", self.text, *(message["content"] for message in self.messages or ()))


def parse_record(line: bytes, reading: Reading) -> Fields:
    """The fields of one JSON line."""
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
    return record_fields(record, reading)


def record_fields(record: Mapping[str, Any], reading: Reading) -> Fields:
    """The fields of a record that is parsed already: a row of a table, an object of a caller. Where it has no key
    `meta.lang`, that is the key `lang` of what `meta` holds.
    """
    identifier = _record_id(_value(record, reading.id_key, None), reading.id_key)
    by = {key: _label(_value(record, key, None), key) for key in reading.by}
    if reading.messages_key is not None:
        return Fields("", identifier, messages=_messages(record, reading.messages_key), by=by)
    if reading.context_key is None or reading.continuation_key is None:
        return Fields(_text(record, reading.text_key), identifier, by=by)
    context, continuation = _text(record, reading.context_key), _text(record, reading.continuation_key)
    return Fields(continuation, identifier, context=context, by=by)


_MISSING = object()


def _value(record: Any, key: str, default: Any = _MISSING) -> Any:
    """What stands under a key.

    Raises:
        RecordError: nothing does, and there is no default.
    """
    if key in record:
        return record[key]
    found = record
    for name in key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            if default is _MISSING:
                raise RecordError("missing_key", f"key {key!r} is missing")
            return default
        found = found[name]
    return found


def _text(record: Mapping[str, Any], key: str) -> str:
    text = _value(record, key)
    if not isinstance(text, str):
        raise RecordError("not_text", f"key {key!r} holds {_kind(text)}, expected a string")
    _check_surrogates(text, key)
    return text


def _messages(record: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    """Turns of a chat, each an object with a role; the rest of it is between the record and the template."""
    messages = _value(record, key)
    if not isinstance(messages, list | tuple) or not messages:
        held = "an empty list" if isinstance(messages, list | tuple) else _kind(messages)
        raise RecordError("not_messages", f"key {key!r} holds {held}, expected a list of messages")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RecordError("not_messages", f"{key}[{place}] is no object with a role")
        if not isinstance(message.get("content"), str):
            held = _kind(message.get("content"))
            raise RecordError("not_messages", f"{key}[{place}] has {held} as content, expected a string")
        _check_surrogates(message["content"], key)
    return tuple(dict(message) for message in messages)


def _label(value: Any, key: str) -> str | None:
    """A field that documents are grouped by, as text."""
    if isinstance(value, Mapping | list | tuple):
        raise RecordError("bad_label", f"key {key!r} holds {_kind(value)}, expected a single value to group by")
    if value is None or isinstance(value, str):
        _check_surrogates(value or "", key)
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else str(value)


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
