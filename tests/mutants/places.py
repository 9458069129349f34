"""Every small way in which certjob can be broken: a condition turned, a boundary moved, a statement dropped."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
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
            path, text = str(file.relative_to(root)), file.read_text()
            found[room] += [_mutant(room, path, text, *place) for place in _PythonPlaces(text).found]
    for file in sorted((root / "sql" / "queries").rglob("*.sql")):
        path, text = str(file.relative_to(root)), file.read_text()
        found["queries"] += [_mutant("queries", path, text, *place) for place in _sql_places(text, 0, len(text))]
    for path, start, end in _last_functions(root).values():
        text = (root / path).read_text()
        found["triggers"] += [_mutant("triggers", path, text, *place) for place in _sql_places(text, start, end)]
    return found


Place = tuple[int, int, str]
"""Start, end and replacement."""


def _mutant(room: str, path: str, text: str, start: int, end: int, replacement: str) -> Mutant:
    line = text.count("\n", 0, start) + 1
    return Mutant(room=room, path=path, start=start, end=end, replacement=replacement, line=line)


_TURNED = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}


class _PythonPlaces(ast.NodeVisitor):
    """Finds what can be broken inside functions; log lines are nobody's promise."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._encoded = text.encode()
        self._lines = [0]
        for line in text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line.encode()))
        self._functions = 0
        self.found: list[Place] = []
        self.visit(ast.parse(text))

    def _offset(self, line: int, column: int) -> int:
        return len(self._encoded[: self._lines[line - 1] + column].decode())

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        return self._offset(node.lineno, node.col_offset), self._offset(node.end_lineno or 0, node.end_col_offset or 0)

    def _add(self, start: int, end: int, replacement: str) -> None:
        if self._functions:
            self.found.append((start, end, replacement))

    def _turn(self, old: str, new: str, *, after: ast.expr, before: ast.expr) -> None:
        at = self._text.index(old, self._span(after)[1], self._span(before)[0])
        self._add(at, at + len(old), new)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._functions += 1
        for statement in node.body:
            self.visit(statement)
        self._functions -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1:
            self._turn(*_TURNED[type(node.ops[0])], after=node.left, before=node.comparators[0])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        self._turn(*words, after=node.values[0], before=node.values[1])
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            start = self._span(node)[0]
            self._add(start, start + len("not "), "")
        self.generic_visit(node)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        self._add(*self._span(node.test), "False")
        self.generic_visit(node)

    visit_IfExp = visit_If  # noqa: N815

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._add(*self._span(node), str(not node.value))
        elif isinstance(node.value, int | float):
            self._add(*self._span(node), str(node.value + 1))

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._add(*self._span(node), "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call | ast.Await) and not ast.unparse(node.value).startswith("logger."):
            self._add(*self._span(node), "pass")
            self.generic_visit(node)


_SQL = (
    (re.compile(r"^[ \t]+(AND|OR) [^\n]+\n", re.MULTILINE), ""),
    (re.compile(r" SKIP LOCKED"), ""),
    (re.compile(r"FOR (NO KEY UPDATE|KEY SHARE|UPDATE)( OF \w+)?( SKIP LOCKED)?"), ""),
    (re.compile(r" <= "), " < "),
    (re.compile(r" < "), " <= "),
    (re.compile(r" >= "), " > "),
    (re.compile(r" > "), " >= "),
    (re.compile(r" <> "), " = "),
    (re.compile(r"(?<=\w) = (?=[\w%'(-])"), " <> "),
    (re.compile(r"^[ \t]+\w+ = [^\n]+,\n", re.MULTILINE), ""),
    (re.compile(r"IS DISTINCT FROM"), "IS NOT DISTINCT FROM"),
    (re.compile(r"IS NOT DISTINCT FROM"), "IS DISTINCT FROM"),
    (re.compile(r"IS NOT NULL"), "IS NULL"),
    (re.compile(r"IS NULL"), "IS NOT NULL"),
    (re.compile(r"NOT EXISTS"), "EXISTS"),
    (re.compile(r"(?<=\w) [+-] 1\b"), ""),
    (re.compile(r"\b(true|false)\b"), None),
    (re.compile(r"(?<= THEN )\w[^;\n]*(?= ELSE)"), "NULL"),
)


def _sql_places(text: str, start: int, end: int) -> Iterator[Place]:
    """Yield what can be broken in statements; whether the server takes the result, the tests find out."""
    hidden = [match.span() for match in re.finditer(r"--[^\n]*", text)]
    for pattern, replacement in _SQL:
        for match in pattern.finditer(text, start, end):
            words = match.group()
            if any(first <= match.start() < last for first, last in hidden) or words.count("(") != words.count(")"):
                continue
            before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
            if words == " = " and not re.search(r"\b(WHERE|AND|OR|ON|WHEN)\b", before):
                continue  # not a comparison
            other = {"true": "false", "false": "true"}.get(words, "") if replacement is None else replacement
            yield match.start(), match.end(), other


_FUNCTION = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION (?:\w+\.)?(\w+)\(.*?\$\$.*?\$\$", re.DOTALL)


def _last_functions(root: Path) -> dict[str, tuple[str, int, int]]:
    """Return where each function of the database is defined last."""
    found: dict[str, tuple[str, int, int]] = {}
    for file in sorted((root / "sql" / "migrations").glob("*.sql")):
        for match in _FUNCTION.finditer(file.read_text()):
            found[match.group(1)] = (str(file.relative_to(root)), *match.span())
    return found
