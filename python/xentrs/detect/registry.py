"""The one table of scores: what each is, where it comes from, which way it points, what it needs.

In: the rows of `membership_scores` and `machine_scores`. Out: `SCORES` by name, of which the command line's choices and
docs/detection-scores.md are made; requests read from texts.

`compute` of a row gives the published value. Where lower means member or machine, `score_documents` changes the sign,
and nothing else does: what it returns is always larger for a member or a machine.
"""

from __future__ import annotations

from collections.abc import Iterable

from xentrs.detect.definition import Request, Score, parse_request
from xentrs.detect.machine_scores import MACHINE_SCORES
from xentrs.detect.membership_scores import MEMBERSHIP_SCORES

SCORES: dict[str, Score] = {score.name: score for score in (*MEMBERSHIP_SCORES, *MACHINE_SCORES)}
GROUPS = ("all", "membership", "machine")
"""Names that stand for every score, or every score of a task, that can be computed from what is there."""


def choices() -> tuple[str, ...]:
    """What the command line takes as a name."""
    return (*GROUPS, *SCORES)


def requests_of(names: str | Iterable[str]) -> tuple[list[Request], list[Request]]:
    """What was asked for by name, and what by a group; each score with the same parameters once.

    `names` are `NAME`, `NAME:PARAMETER=VALUE:...` or groups, in a list or with commas between them.

    Raises:
        ParamError: there is no such score or parameter, or a value is outside its range.
    """
    texts = [text.strip() for text in names.split(",")] if isinstance(names, str) else list(names)
    grouped = [score.name for text in texts if text in GROUPS for score in group_of(text)]
    named = {text: parse_request(text, SCORES) for text in texts if text not in GROUPS}
    return list(named.values()), [parse_request(name, SCORES) for name in dict.fromkeys(grouped) if name not in named]


def group_of(group: str) -> list[Score]:
    """The scores of a group, in the order of the table."""
    return [score for score in SCORES.values() if group in ("all", score.task)]


def needs_of(names: str | Iterable[str]) -> tuple[str, ...]:
    """What scores asked for by name need: columns of the tokens table and other fields of `DocumentTokens`.

    Raises:
        ParamError: as `requests_of`.
    """
    named, _ = requests_of(names)
    return tuple(dict.fromkeys(need for request in named for need in request.score.needs))
