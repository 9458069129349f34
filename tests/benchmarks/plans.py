"""What statements read at full size: the plan of each at a million mentors."""

from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.bench import Bench
from tests.benchmarks.explained import Explained, explained
from tests.benchmarks.figures import Bar, Figure
from tests.benchmarks.population import populated
from tests.support.command_line import run_in_process

LARGE = 1_000_000
"""From so many mentors on no statement has an excuse; a small table is best read whole."""

_GROWS = {
    "mentors",
    "certificates",
    "mentor_pauses",
    "certificate_transitions",
    "cert_notification_log",
    "portal_sync_events",
}
"""The tables that are as large as the programme."""

_COMMANDS: Sequence[Sequence[str]] = (
    ("run", "--dry-run", "--json"),
    ("run", "--no-deliver"),
    ("deliver", "--deliver-for", "5s"),
    ("status",),
    ("alerts",),
    ("check",),
    ("explain", "M5"),
    ("preview", "M5", "--threshold", "30"),
    ("resync", "M5"),
    ("list", "--status", "expiring", "--within", "7", "--csv"),
    ("forecast", "--days", "7"),
    ("load", "roster.csv"),
    ("organisation", "list"),
    ("db", "status"),
)
"""In this order, on a programme in which one mentor of a hundred is due."""

_ROSTER = "organisation,member_no,kind,issued_on,expires_on\norg1,M5,likeperson,2026-01-01,2028-01-01\n"

_READS_ALL = {
    "count_without_certificate": "`status`: no index has the day on which a certificate begins",
    "list_certificates": "a list of many joins all mentors rather than look each up",
}
"""The statements that may read a whole table that grows, and why."""


def run(bench: Bench) -> list[Figure]:
    """It is not a time, so one round tells."""
    bench.say(f"the plans of every command at {bench.mentors:,} mentors")
    watched: dict[str, Explained] = {}
    with populated(bench.server, mentors=bench.mentors, due_percent=1) as name:
        for command in _COMMANDS:
            with explained() as watched[" ".join(command)]:
                _certjob(bench, name, *command)
    statements = {statement for each in watched.values() for statement in each.plans}
    found = {
        f"{statement} ({command}): {', '.join(sorted(tables & _GROWS))}": statement
        for command, each in watched.items()
        for statement, tables in each.whole_reads().items()
        if tables & _GROWS
    }
    unexpected = [line for line, statement in found.items() if statement not in _READS_ALL]
    figure = Figure(
        part="plans",
        name=f"statements that read a whole table, {bench.mentors:,} mentors",
        ours=f"{len(found)} of {len(statements)}",
        reference=f"{len(_READS_ALL)} may",
        ratio=float(len(unexpected)),
        bar=(Bar.AT_MOST, 0) if bench.mentors >= LARGE else None,
        notes="; ".join(unexpected),
        detail={"found": list(found)},
    )
    return [figure]


def _certjob(bench: Bench, name: str, *command: str) -> None:
    """One command in this process; raises RuntimeError if it failed."""
    folder = bench.folder / "plans"
    folder.mkdir(exist_ok=True)
    (folder / "roster.csv").write_text(_ROSTER)
    environment = {"CERTJOB_DATABASE_URL": bench.server.url(name), "CERTJOB_NOTIFY_URL": f"maildir:{folder / 'mail'}"}
    finished = run_in_process(*command, environment=environment, folder=Path(folder))
    if finished.returncode not in (0, 3):
        message = f"certjob {' '.join(command)} ended with {finished.returncode}: {finished.stderr}"
        raise RuntimeError(message)
