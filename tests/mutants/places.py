"""Every small way in which certjob can be broken: a condition turned, a boundary moved, a statement dropped."""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

ROOMS = ("domain", "review", "outbox", "portal", "mail", "facts", "queries", "triggers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One replacement in one file."""

    room: str
    path: str
    """From the checkout's root."""
    start: int
    """Offset in the file's text."""
    end: int
    replacement: str
    line: int

    def apply(self, text: str) -> str:
        return text[: self.start] + self.replacement + text[self.end :]

    def describe(self, text: str) -> str:
        """Where it is, and what is replaced by what, on one line."""
        old = " ".join(text[self.start : self.end].split())
        around = text[text.rfind("\n", 0, self.start) + 1 :].partition("\n")[0].strip()
        return (
            f"{self.path}:{self.line}: {old[:60] or '(nothing)'} -> {self.replacement or '(nothing)'} in: {around[:90]}"
        )


def find(root: Path) -> dict[str, list[Mutant]]:
    """Return all mutants of each room, in a fixed order."""
    found: dict[str, list[Mutant]] = {room: [] for room in ROOMS}
    for room in ROOMS[:6]:
        for file in sorted((root / "certjob" / room).rglob("*.py")):
            found[room] += [each for each in _mutants(room, root, file) if _is_python(each.apply(file.read_text()))]
    for file in sorted((root / "sql" / "queries").rglob("*.sql")):
        found["queries"] += _mutants("queries", root, file)
    last: dict[str, tuple[Path, tuple[int, int]]] = {}  # where each function of the database is defined last
    for file in sorted((root / "sql" / "migrations").glob("*.sql")):
        last |= {match[1]: (file, match.span()) for match in _FUNCTION.finditer(file.read_text())}
    for file, span in last.values():
        found["triggers"] += _mutants("triggers", root, file, *span)
    return found


def _mutants(room: str, root: Path, file: Path, start: int = 0, end: int = sys.maxsize) -> Iterator[Mutant]:
    """Yield what can be broken between two places of a file, but in comments and in Python's strings."""
    text, is_python = file.read_text(), file.suffix == ".py"
    hidden = _strings_and_comments(text) if is_python else [each.span() for each in re.finditer(r"--[^\n]*", text)]
    for pattern, replacement in _PYTHON if is_python else _SQL:
        for match in re.compile(pattern, re.MULTILINE).finditer(text, start, end):
            words, line = match[0], text.count("\n", 0, match.start()) + 1
            before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
            is_assignment = words == " = " and not re.search(r"\b(WHERE|AND|OR|ON|WHEN)\b", before)
            is_hidden = any(first < match.end() <= last for first, last in hidden)
            if is_hidden or is_assignment or before.startswith("@") or words.count("(") != words.count(")"):
                continue
            broken = replacement(match) if callable(replacement) else match.expand(replacement)
            path = str(file.relative_to(root))
            yield Mutant(room=room, path=path, start=match.start(), end=match.end(), replacement=broken, line=line)


def _opposite(match: re.Match[str]) -> str:
    return {"true": "false", "false": "true", "True": "False", "False": "True"}[match[0]]


_BOUNDARIES = ((" <= ", " < "), (" < ", " <= "), (" >= ", " > "), (" > ", " >= "))

_PYTHON = (
    *_BOUNDARIES,
    (" == ", " != "),
    (" != ", " == "),
    (" is not ", " is "),
    (" is (?!not )", " is not "),
    (" not in ", " in "),
    (r"^( +(?!.*\bfor ).*\S) in ", r"\1 not in "),
    (" and ", " or "),
    (" or ", " and "),
    (r"(?<!is )\bnot (?!in )", ""),
    (r"(?<=\bif )[^\n]+(?=:$| else )", "False"),
    (r"\b(True|False)\b", _opposite),
    (r"(?<=[ (\[-])\d+(?=[.),\]: *]|$)", lambda match: str(int(match[0]) + 1)),
    (r"^( {4,})\S+ [-+|]= .*$", r"\1pass"),
    (r"^( {4,})(?!logger)(await )?[\w.]+\(.*\)$", r"\1pass"),
)
"""What is broken in code, and how; a log line is nobody's promise."""

_SQL = (
    *_BOUNDARIES,
    (r"^[ \t]+(AND|OR) [^\n]+\n", ""),
    (r" SKIP LOCKED", ""),
    (r"FOR (NO KEY UPDATE|KEY SHARE|UPDATE)( OF \w+)?( SKIP LOCKED)?", ""),
    (r" <> ", " = "),
    (r"(?<=\w) = (?=[\w%'(-])", " <> "),
    (r"^[ \t]+\w+ = [^\n]+,\n", ""),
    (r"IS DISTINCT FROM", "IS NOT DISTINCT FROM"),
    (r"IS NOT DISTINCT FROM", "IS DISTINCT FROM"),
    (r"IS NOT NULL", "IS NULL"),
    (r"IS NULL", "IS NOT NULL"),
    (r"NOT EXISTS", "EXISTS"),
    (r"(?<=\w) [+-] 1\b", ""),
    (r"\b(true|false)\b", _opposite),
    (r"(?<= THEN )\w[^;\n]*(?= ELSE)", "NULL"),
)
"""Whether the server takes the result, the tests find out."""


_FUNCTION = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION (?:\w+\.)?(\w+)\(.*?\$\$.*?\$\$", re.DOTALL)


def _strings_and_comments(text: str) -> list[tuple[int, int]]:
    begins = [0, *accumulate(map(len, text.splitlines(keepends=True)))]
    return [
        (begins[token.start[0] - 1] + token.start[1], begins[token.end[0] - 1] + token.end[1])
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT or "STRING" in tokenize.tok_name[token.type]
    ]


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True
