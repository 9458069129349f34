"""What statements read at full size: the plan of each that certjob runs, made just before it, on its connection."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import psycopg
from psycopg.rows import tuple_row

from certjob import database
from tests.benchmarks.bench_server import Bench
from tests.benchmarks.figures import Bar, Figure
from tests.benchmarks.population import populated
from tests.support.command_line import run_in_process

LARGE = 1_000_000
"""From so many mentors on no statement has an excuse; a small table is best read whole."""
_GROWS = {"mentors", "certificates", "mentor_pauses", "certificate_transitions"}
_GROWS |= {"cert_notification_log", "portal_sync_events"}
"""The tables that are as large as the programme."""
_COMMANDS = (
    "run --dry-run --json",
    "run --no-deliver",
    "deliver --deliver-for 5s",
    "status",
    "alerts",
    "check",
    "explain M5",
    "preview M5 --threshold 30",
    "resync M5",
    "list --status expiring --within 7 --csv",
    "forecast --days 7",
    "load roster.csv",
    "organisation list",
    "db status",
)
"""In this order, on a programme in which one mentor of a hundred is due."""
_ROSTER = "organisation,member_no,kind,issued_on,expires_on\norg1,M5,likeperson,2026-01-01,2028-01-01\n"
_READS_ALL = {
    "count_without_certificate": "`status`: no index has the day on which a certificate begins",
    "list_certificates": "a list of many joins all mentors rather than look each up",
}
"""The statements that may read a whole table that grows, and why."""
_PARTIAL = b"SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE indpred IS NOT NULL"
_EXPLAINABLE = (b"SELECT", b"WITH", b"INSERT", b"UPDATE", b"DELETE")

Node = Mapping[str, Any]
"""A node of a plan, as ``EXPLAIN (FORMAT JSON)`` shows it."""


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
                self._partial_indexes = {row[0] for row in self._real(cursor, _PARTIAL).fetchall()}
            self._real(cursor, b"EXPLAIN (FORMAT JSON) " + statement, parameters)
            row = cursor.fetchone()
        assert row is not None
        self.plans.setdefault(name, []).append(row[0][0]["Plan"])

    def whole_reads(self) -> dict[str, set[str]]:
        """Each statement that would read the whole of a table, or of an index that has all its rows, and the tables."""
        found = {
            name: {str(node["Relation Name"]) for plan in plans for node in _nodes(plan) if self._reads_all(node)}
            for name, plans in self.plans.items()
        }
        return {name: tables for name, tables in found.items() if tables}

    def _reads_all(self, node: Node) -> bool:
        """Whether a node reads a table from its beginning to its end, whatever it then throws away."""
        kind = node["Node Type"]
        is_by_index = kind in ("Index Scan", "Index Only Scan")
        has_all = is_by_index and "Index Cond" not in node and node["Index Name"] not in self._partial_indexes
        return kind == "Seq Scan" or has_all


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


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


def run(bench: Bench) -> list[Figure]:
    """It is not a time, so one round tells."""
    bench.say(f"the plans of every command at {bench.mentors:,} mentors")
    folder = bench.folder / "plans"
    folder.mkdir()
    (folder / "roster.csv").write_text(_ROSTER)
    statements, found, unexpected = set[str](), list[str](), list[str]()
    with populated(bench.server, mentors=bench.mentors, due_percent=1) as name:
        settings = {"CERTJOB_DATABASE_URL": bench.server.url(name), "CERTJOB_NOTIFY_URL": f"maildir:{folder / 'mail'}"}
        for command in _COMMANDS:
            with explained() as watched:
                finished = run_in_process(*command.split(), environment=settings, folder=folder)
            if finished.returncode not in (0, 3):
                message = f"certjob {command} ended with {finished.returncode}: {finished.stderr}"
                raise RuntimeError(message)
            statements |= watched.plans.keys()
            for statement, tables in watched.whole_reads().items():
                if tables & _GROWS:
                    found.append(f"{statement} ({command}): {', '.join(sorted(tables & _GROWS))}")
                    unexpected += [found[-1]] if statement not in _READS_ALL else []
    if len(statements) < len(_COMMANDS):
        message = f"only {sorted(statements)} were seen"
        raise RuntimeError(message)
    return [
        Figure(
            part="plans",
            name=f"statements that read a whole table, {bench.mentors:,} mentors",
            ours=f"{len(found)} of {len(statements)}",
            reference=f"{len(_READS_ALL)} may",
            bars=[Bar(value=len(unexpected), unit="others", at_most=0)] if bench.mentors >= LARGE else [],
            notes="; ".join(unexpected),
            detail={"found": found},
        )
    ]
