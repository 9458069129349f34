"""The plan of every statement that certjob runs, made just before it, on its connection and with its parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import psycopg
from psycopg.rows import tuple_row

from certjob import database

Node = Mapping[str, Any]
"""A node of a plan, as ``EXPLAIN (FORMAT JSON)`` shows it."""

_PARTIAL_INDEXES = """
    SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indpred IS NOT NULL
"""
_EXPLAINABLE = (b"SELECT", b"WITH", b"INSERT", b"UPDATE", b"DELETE")


class Explained:
    """The plans so far, by the statements' names."""

    def __init__(self) -> None:
        self._real = psycopg.Cursor.execute
        self._partial_indexes: set[str] = set()
        self.plans: dict[str, list[Node]] = {}

    def note(self, connection: database.Connection, name: str, parameters: Any) -> None:
        """Explain it."""
        statement = database.query(name)
        if not statement.lstrip().startswith(_EXPLAINABLE):
            return
        with connection.transaction(force_rollback=True):
            cursor = connection.cursor(row_factory=tuple_row)
            if not self._partial_indexes:
                rows = self._real(cursor, _PARTIAL_INDEXES.encode()).fetchall()
                self._partial_indexes = {row[0] for row in rows}
            self._real(cursor, b"EXPLAIN (FORMAT JSON) " + statement, parameters)
            row = cursor.fetchone()
        assert row is not None
        self.plans.setdefault(name, []).append(row[0][0]["Plan"])

    def whole_reads(self) -> dict[str, set[str]]:
        """Each statement that would read the whole of a table, or of an index that has all its rows, and the tables."""
        found = {
            name: {str(node["Relation Name"]) for plan in plans for node in nodes(plan) if self._reads_all(node)}
            for name, plans in self.plans.items()
        }
        return {name: tables for name, tables in found.items() if tables}

    def _reads_all(self, node: Node) -> bool:
        """Whether a node reads a table from its beginning to its end, whatever it then throws away."""
        kind = node["Node Type"]
        if kind == "Seq Scan":
            return True
        is_by_index = kind in ("Index Scan", "Index Only Scan")
        return is_by_index and "Index Cond" not in node and node["Index Name"] not in self._partial_indexes


@contextmanager
def explained() -> Iterator[Explained]:
    """Have every statement by name explained that is run here meanwhile, in whichever thread."""
    names = {statement: name for name, statement in database.all_statements().items()}
    watching = Explained()

    def watched(real: Any) -> Any:
        def execute(cursor: Any, query: Any, params: Any = None, **options: Any) -> Any:
            if isinstance(query, bytes) and query in names:
                watching.note(cursor.connection, names[query], params)
            return real(cursor, query, params, **options)

        return execute

    with (
        mock.patch.object(psycopg.Cursor, "execute", watched(psycopg.Cursor.execute)),
        mock.patch.object(psycopg.ServerCursor, "execute", watched(psycopg.ServerCursor.execute)),
    ):
        yield watching


def nodes(node: Node) -> Iterator[Node]:
    """A node of a plan and all below it."""
    yield node
    for child in node.get("Plans", ()):
        yield from nodes(child)
