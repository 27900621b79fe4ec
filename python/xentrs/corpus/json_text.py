"""JSON as this project writes it: UTF-8, fixed key order, no NaN.

In: plain data. Out: bytes or text; NaN and infinities become null (the counts beside them say how many there
were).
"""

from __future__ import annotations

import json
import math
from typing import Any


def without_nonfinite(value: Any) -> Any:
    """The same data with None in place of NaN and infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nonfinite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nonfinite(entry) for entry in value]
    return value


def dump_line(value: Any) -> bytes:
    """One line of JSON with its newline."""
    text = json.dumps(without_nonfinite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8") + b"\n"


def dump_page(value: Any) -> bytes:
    """Indented JSON with a newline at the end."""
    return (json.dumps(without_nonfinite(value), ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode("utf-8")
