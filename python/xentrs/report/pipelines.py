"""A gate's verdict for pipelines: JUnit XML, Markdown, and lines for a log.

In: a `Verdict`. Out: text. Names come from the command line and may hold anything: control characters become escapes
(XML has no way to say them), what means something in XML or Markdown is escaped.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

from xentrs.report.terminal import printable

if TYPE_CHECKING:
    from xentrs.runs.criteria import Criterion, Verdict

_SUITE = "xentrs gate"
_SPECIAL = set("\\`*_[]<>|~&")


def junit_xml(verdict: Verdict) -> bytes:
    """One test case for each criterion."""
    failed = sum(not criterion.passed for criterion in verdict.criteria)
    counts = {"tests": str(len(verdict.criteria)), "failures": str(failed), "errors": "0", "skipped": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _SUITE, **counts})
    properties = ElementTree.SubElement(suite, "properties")
    named = [*(("run", run) for run in verdict.runs), ("baseline", verdict.baseline or ""), ("verdict", verdict.line)]
    for name, value in named:
        if value:
            ElementTree.SubElement(properties, "property", {"name": name, "value": printable(value)})
    for criterion in verdict.criteria:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "xentrs.gate", "name": criterion.name})
        text = printable(_found(criterion))
        if criterion.passed:
            ElementTree.SubElement(case, "system-out").text = text
        else:
            ElementTree.SubElement(case, "failure", {"message": text, "type": "gate"}).text = text
    ElementTree.indent(suites)
    data: bytes = ElementTree.tostring(suites, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def verdict_markdown(verdict: Verdict) -> str:
    """A heading and a table that can be pasted into an issue or a job's summary."""
    lines = [f"### {'✅' if verdict.passed else '❌'} xentrs {verdict.line}", ""]
    lines.append(f"- RUN: {', '.join(_escaped(run) for run in verdict.runs)}")
    if verdict.baseline is not None:
        lines.append(f"- baseline: {_escaped(verdict.baseline)}")
    lines += ["", "| | criterion | limit | found | note |", "|---|---|---:|---:|---|"]
    for criterion in verdict.criteria:
        cells = ("✅" if criterion.passed else "❌", f"`{criterion.name}`", _shown(criterion.limit), _value(criterion))
        lines.append(f"| {' | '.join(cells)} | {_escaped(criterion.note)} |")
    return "\n".join(lines) + "\n"


def verdict_text(verdict: Verdict) -> list[str]:
    """One line for each criterion, then the verdict."""
    return [
        *(
            f"{'ok    ' if criterion.passed else 'FAILED'}  {printable(_found(criterion))}"
            for criterion in verdict.criteria
        ),
        verdict.line,
    ]


def _found(criterion: Criterion) -> str:
    relation = "at least" if criterion.name.startswith("--min") else "at most"
    limit = _shown(criterion.limit)
    text = f"{criterion.figure} = {_value(criterion)}, expected {relation} {limit} ({criterion.name})"
    return f"{text}; {criterion.note}" if criterion.note else text


def _shown(value: float) -> str:
    """As few digits as say exactly this number."""
    short = f"{value:,g}"
    return short if float(short.replace(",", "")) == value else f"{value:,}"


def _value(criterion: Criterion) -> str:
    """Six digits, all where six would be the limit's own: what failed must not look as if it had not."""
    if criterion.value is None:
        return "-"
    short = f"{criterion.value:,.6g}"
    return _shown(criterion.value) if float(short.replace(",", "")) == criterion.limit else short


def _escaped(text: str) -> str:
    """Markdown that shows `text` as it is."""
    return "".join(f"\\{character}" if character in _SPECIAL else character for character in printable(text))
