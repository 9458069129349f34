"""What a role, a database or a server is set to may change what statements mean: certjob brings its own settings."""

from datetime import timedelta
from pathlib import Path

import pytest

from certjob import database
from certjob.database import Connection, migrations
from tests.support.command_line import run_in_process, today
from tests.support.facts import Facts

EVERYTHING = {
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "timezone": "Pacific/Kiritimati",
    "row_security": "off",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "transform_null_equals": "on",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "client_encoding": "LATIN1",
    "quote_all_identifiers": "on",
}

COMMANDS = {
    "check": ("check", "--json"),
    "run": ("run", "--json"),
    "run again": ("run", "--json"),
    "dry run": ("run", "--dry-run", "--everybody", "--json"),
    "deliver": ("deliver", "--json"),
    "resync": ("resync", "M1", "--json"),
    "explain": ("explain", "M1", "--json"),
    "explain on a page": ("explain", "M1"),
    "status": ("status",),
    "status in JSON": ("status", "--json"),
    "alerts": ("alerts", "--json"),
    "list": ("list", "--json"),
    "forecast": ("forecast", "--json"),
    "preview": ("preview", "M2"),
    "db status": ("db", "status", "--json"),
    "prune": ("db", "prune", "--older-than", "3y", "--dry-run", "--json"),
    "load": ("load", "roster.csv", "--json"),
    "run after it": ("run", "--json"),
}


def set_all(connection: Connection, settings: dict[str, str]) -> None:
    """The database has them for whoever connects from now on."""
    for name, value in settings.items():
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET {name} = '{value}'".encode())


@pytest.fixture
def people(facts: Facts) -> None:
    """One whose certificate has ended, and one who is due for a reminder and has no address."""
    hlf = facts.organisation()
    facts.certified_mentor(hlf, today() - timedelta(days=1), member_no="M1", full_name="Ærlig Ødegård")
    facts.certified_mentor(hlf, today() + timedelta(days=20), member_no="M2", email=None)


@pytest.mark.usefixtures("people")
def test_every_command_does_the_same_whatever_the_database_is_set_to(
    connection: Connection, facts: Facts, worker_url: str, tmp_path: Path
) -> None:
    """All settings at once that change what a statement or its answer means: they used to end in an internal error."""
    (tmp_path / "roster.csv").write_text(
        "organisation,member_no,full_name,kind,issued_on,expires_on,revoked_on\n"
        "hlf,M3,Åse,likeperson,2026-02-01,2027-02-03,\nhlf,M1,,likeperson,2024-01-01,2026-01-02,2025-05-06\n"
    )
    set_all(connection, EVERYTHING)

    ended = {
        name: run_in_process(*arguments, environment={"CERTJOB_DATABASE_URL": worker_url}, folder=tmp_path)
        for name, arguments in COMMANDS.items()
    }

    needs_somebody = {"check", "run", "run again", "resync", "status", "status in JSON", "alerts", "run after it"}
    assert {name: result.returncode for name, result in ended.items()} == {
        name: 3 if name in needs_somebody else 0 for name in COMMANDS
    }, ended
    assert facts.rows(
        "SELECT m.member_no, c.issued_on = '2026-02-01', c.expires_on - '2027-02-03', c.status"
        " FROM certificates AS c JOIN mentors AS m ON m.id = c.mentor_id WHERE m.member_no <> 'M2' ORDER BY 1"
    ) == [("M1", False, -397, "revoked"), ("M3", True, 0, "valid")]


def test_what_a_migration_leaves_to_the_operator_is_said_to_those_who_want_to_hear_nothing(
    empty_database_url: str,
) -> None:
    """Mentors beyond the bounds would otherwise be found by the next run only."""
    with database.connect(empty_database_url) as connection:
        set_all(connection, {"client_min_messages": "error"})
        connection.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    said: list[str] = []

    with database.connect(empty_database_url) as connection:
        migrations.migrate(connection, warn=said.append)

    assert len([line for line in said if "REVOKE CREATE ON SCHEMA public FROM PUBLIC" in line]) == 1


def test_a_statement_alone_and_one_in_a_transaction_have_certjobs_settings(
    connection: Connection, database_url: str
) -> None:
    """And what is set for others is as it was, afterwards."""
    set_all(connection, EVERYTHING)
    with database.connect(database_url) as fresh:
        before = fresh.execute("SHOW datestyle").fetchone()

        alone = database.clock(fresh)
        with database.read_only_snapshot(fresh):
            inside = database.clock(fresh)

        assert [moment.utcoffset() for moment in (alone, inside)] == [timedelta()] * 2
        assert (before, fresh.execute("SHOW datestyle").fetchone()) == (("German, DMY",),) * 2
