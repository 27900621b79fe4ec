"""What of a record is what, and which records are read at all.

In: what the user asked for. Out: `Reading`, plain data that the readers of every format share, checked once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from xentrs.errors import ParamError


@dataclass(frozen=True)
class Reading:
    """Keys of a record's fields and the choice of records. Records are numbered over all inputs, empty lines left out,
    so that a record has the same number in every shard.
    """

    text_key: str = "text"
    id_key: str = "id"
    context_key: str | None = None
    continuation_key: str | None = None
    messages_key: str | None = None
    by: tuple[str, ...] = ()  # fields that are kept beside a document's figures
    skip: int = 0  # records left out at the start
    limit: int | None = None  # records read behind these
    shard: int = 0  # of shard_count: those whose number behind `skip` leaves this remainder
    shard_count: int = 1

    def __post_init__(self) -> None:
        if (self.context_key is None) != (self.continuation_key is None):
            raise ParamError("--context-key and --continuation-key go together: a pair has both")
        if self.context_key is not None and self.messages_key is not None:
            raise ParamError("--messages-key and --context-key exclude each other: a record is a chat or a pair")
        if not 0 <= self.shard < self.shard_count:
            raise ParamError(f"shard {self.shard + 1} of {self.shard_count}: expected 1 to {self.shard_count}")
        if repeated := {key for key in self.by if self.by.count(key) > 1}:
            raise ParamError(f"--by {min(repeated)} is given twice")

    def takes(self, record: int) -> bool:
        """Whether the record of this number is one of ours."""
        place = record - self.skip
        return place >= 0 and not self.is_behind(record) and place % self.shard_count == self.shard

    def is_behind(self, record: int) -> bool:
        """Whether no record from this number on is ours."""
        return self.limit is not None and record - self.skip >= self.limit

    def block(self) -> dict[str, Any]:
        """For the fingerprint of a RUN."""
        return {**asdict(self), "by": list(self.by)}


def parse_shard(text: str) -> tuple[int, int]:
    """`"2/8"` to (1, 8), as `Reading` counts.

    Raises:
        ParamError: it is not of that form.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
        raise ParamError(f"--shard {text}: expected NUMBER/COUNT, such as 1/8")
    if not 1 <= int(number) <= int(count):
        raise ParamError(f"--shard {text}: expected 1/{count} to {count}/{count}")
    return int(number) - 1, int(count)
