"""What a load says: bad rows by column and reason, how many there were, and all of them in the file of --rejects."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import groupby
from pathlib import Path
from typing import Any

from certjob.cli.terminal import output as console
from certjob.cli.terminal import plain
from certjob.cli.terminal.output import Output
from certjob.facts.loading import LoadReport
from certjob.facts.roster import Cost, Problem

COMMAND = "certjob load"

LINES_SHOWN = 20
"""Reasons that are printed; a file may have as many as it has rows."""

_PLACES_SHOWN = 3
_COSTS = list(Cost)
_FIRST_CELL = re.compile(r'(?:"(?:[^"]|"")*"|[^",;\t\r\n]*)[,;\t]')
REASON = "reason"

Group = Sequence[Problem]
"""All problems with one column, one reason and one cost."""


def group(problems: Iterable[Problem]) -> list[Group]:
    """Return the problems by column and reason: what costs rows first, then what is there most often."""

    def key(problem: Problem) -> tuple[str, str, str]:
        return problem.cost, problem.column, problem.reason

    groups = [list(members) for _, members in groupby(sorted(problems, key=key), key=key)]
    return sorted(groups, key=lambda members: (_COSTS.index(members[0].cost), -len(members), members[0].line))


def show(
    output: Output, report: LoadReport, *, name: str, json: bool, strict: bool, rejects: Path | None = None
) -> None:
    """Print what a load did, and on stderr what is wrong with the file of this name; ``rejects`` has all of it."""
    groups = group(report.problems)
    counts = {each.name: getattr(report, each.name) for each in fields(report) if each.type is int}
    counts["incomplete"] = len({problem.line for problem in report.problems if problem.cost is Cost.CELL})
    if json:
        document = {"outcome": "attention" if needs_attention(report) else "ok"} | counts
        plain.print_json(document | {"problems": [_as_document(members) for members in groups[:LINES_SHOWN]]})
    elif output.interactive:
        rows = [(what.replace("_", " "), f"{number:,}") for what, number in counts.items() if number or what == "rows"]
        console.show_rows(output, ("What", ">Number"), rows)
    bad = [members for members in groups if members[0].cost is not Cost.NOTHING]
    for members in bad[:LINES_SHOWN] + groups[len(bad) :]:  # what costs nothing comes last, and is in no rejects file
        say = plain.print_warning if members[0].cost is Cost.NOTHING else plain.print_attention
        say(COMMAND, f"{name} {_sentence(members)}")
    if rest := sum(map(len, bad[LINES_SHOWN:])):
        where = f"{rejects} has all of them" if rejects is not None else "--rejects FILE gets all of them"
        plain.print_attention(COMMAND, f"… and {rest:,} more; {where}")
    for line in _summary(report, incomplete=counts["incomplete"], strict=strict):
        plain.print_attention(COMMAND, line)


def needs_attention(report: LoadReport) -> bool:
    """Whether some of the file was not loaded."""
    return bool(_bad(report))


def _bad(report: LoadReport) -> list[Problem]:
    """Return what costs something."""
    return [problem for problem in report.problems if problem.cost is not Cost.NOTHING]


def rejects_text(report: LoadReport) -> str:
    """Return the bad rows as they stand in the file, each after its reason: to be corrected and loaded again."""
    rows = ["\ufeff", _after(REASON, report.header, report)]  # or a spreadsheet takes the letters for others
    for line, members in groupby(_bad(report), key=lambda problem: problem.line):
        problems = list(members)
        reasons = "; ".join(f"{problem.column}: {problem.reason}{_value(problem)}" for problem in problems)
        rows.append(_after(f"line {line}: {reasons}", problems[0].text, report))
    return "".join(rows)


def _after(reason: str, text: str, report: LoadReport) -> str:
    """Put the reason before a row, in place of the one that it has from an earlier load."""
    if _FIRST_CELL.match(report.header.lower() + report.delimiter)[0][:-1].strip('"') == REASON:  # type: ignore[index]
        text = _FIRST_CELL.sub("", text, count=1)
    quoted = reason.replace('"', '""')
    return f'"{quoted}"{report.delimiter}' + text.rstrip("\r\n") + "\r\n"


def _sentence(members: Group) -> str:
    first = members[0]
    if len(members) == 1:
        return f"line {first.line}: {first.column}: {first.reason}{_value(first)}"
    places = ", ".join(str(problem.line) for problem in members[:_PLACES_SHOWN])
    more = f" and {len(members) - _PLACES_SHOWN:,} more" if len(members) > _PLACES_SHOWN else ""
    example = f", such as '{first.value}'" if first.value else ""
    return f"lines {places}{more}: {first.column}: {first.reason}{example}"


def _value(problem: Problem) -> str:
    return f": '{problem.value}'" if problem.value else ""


def _as_document(members: Group) -> dict[str, Any]:
    first = members[0]
    return {
        "costs": first.cost,
        "column": first.column,
        "reason": first.reason,
        "rows": len(members),
        "lines": [problem.line for problem in members[:_PLACES_SHOWN]],
    }


def _summary(report: LoadReport, *, incomplete: int, strict: bool) -> Iterable[str]:
    if strict and needs_attention(report):
        bad = len({problem.line for problem in _bad(report)})
        yield f"{bad:,} of {report.rows:,} rows are bad; nothing was loaded (--strict)"
        return
    if report.rejected == report.rows and report.rejected:
        yield f"all {report.rows:,} rows were rejected; nothing was loaded"
    elif report.rejected:
        yield f"{report.rejected:,} of {report.rows:,} rows were rejected; the others were loaded"
    if incomplete:
        yield f"{incomplete:,} of {report.rows:,} rows were loaded without the cells that are not valid"
