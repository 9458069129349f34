"""The part of `certjob check` that tests the database. It only reads."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import date, timedelta, tzinfo

from certjob import database
from certjob.database import Connection, migrations
from certjob.database.clocks import Clocks
from certjob.domain.explanations import number
from certjob.errors import ClocksDisagreeError, ConfigurationError
from certjob.reports.check.findings import Finding, fail, failed_with, ok, warn
from certjob.review.attention import read_attention
from certjob.review.days import reject_earlier_date

OLDEST_VERSION, NEWEST_VERSION = 15, 18
"""The tested versions of PostgreSQL. Older ones lack features that certjob uses."""

TOLERATED_CLOCK_DIFFERENCE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The state of the server."""

    version_number: int
    version: str
    in_recovery: bool
    read_only: bool
    user_name: str
    synchronous_commit: str


def check_database(connection: Connection, *, today: date, zone: tzinfo) -> Generator[Finding, None, list[str] | None]:
    """Test the server, the schema, the last run, and the settings of the organisations.

    Return the organisations with a portal, or None if the schema is not usable.
    """
    server = database.fetch(connection, "describe_server", into=Server)[0]
    yield from check_server(server)
    yield check_clocks(database.read_clocks(connection), zone=zone)
    with database.read_only_snapshot(connection):
        schema = _check_schema(connection)
        yield schema
        if schema.exit_code:
            return None
        yield from _check_last_run(connection, today=today)
        return (yield from _check_organisations(connection))


def check_server(server: Server) -> Iterator[Finding]:
    major = server.version_number // 10_000
    name = f"PostgreSQL {server.version}"
    if major < OLDEST_VERSION:
        step = f"use PostgreSQL {OLDEST_VERSION} to {NEWEST_VERSION}"
        yield fail("database", f"{name} is too old", next_step=step)
    elif major > NEWEST_VERSION:
        yield warn("database", f"{name} is newer than the tested versions", next_step="look for a newer certjob")
    else:
        yield ok("database", f"reachable, {name}")
    if server.synchronous_commit == "off":
        message = "synchronous_commit is off: after a crash of the server a call or a mail may be repeated"
        step = f"`ALTER ROLE {server.user_name} SET synchronous_commit = on`, or set it for the database or the server"
        yield warn("database", message, next_step=step)
    if server.in_recovery:
        step = "point CERTJOB_DATABASE_URL at the primary, or wait until this one is promoted"
        yield fail("writable", "the server is in recovery (a standby)", next_step=step, exit_code=1)
    elif server.read_only:
        step = "use the primary, or remove default_transaction_read_only"
        yield fail("writable", "the database is read-only", next_step=step, exit_code=1)
    else:
        yield ok("writable", "neither in recovery nor read-only")


def check_clocks(clocks: Clocks, *, zone: tzinfo) -> Finding:
    try:
        clocks.require_same_day(zone)
    except ClocksDisagreeError as error:
        return failed_with("clock", error)
    seconds = round(clocks.server_is_ahead_by.total_seconds())
    if abs(seconds) <= TOLERATED_CLOCK_DIFFERENCE.total_seconds():
        return ok("clock", "this machine and the database server agree")
    message = f"the database server is {abs(seconds):,} s {'ahead of' if seconds > 0 else 'behind'} this machine"
    return warn("clock", message, next_step="set both by NTP")


def _check_schema(connection: Connection) -> Finding:
    try:
        known = migrations.status(connection)
    except ConfigurationError as error:
        return failed_with("schema", error)
    applied, newest = [each.version for each in known if each.applied_at is not None], known[-1].version
    if len(applied) == len(known):
        return ok("schema", f"version {newest}, up to date")
    message = "certjob's tables do not exist yet"
    if applied:
        message = f"version {applied[-1]} is older than this certjob, which needs version {newest}"
    return fail("schema", message, next_step="run `certjob db migrate`")


def _check_last_run(connection: Connection, *, today: date) -> Iterator[Finding]:
    found: list[Finding] = []
    try:
        reject_earlier_date(connection, today)
    except ConfigurationError as error:
        found.append(failed_with("last run", error))
    count, latest_at = database.fetch(connection, "read_runs_in_the_future")[0]
    if count:
        message = f"{number(count, 'run')} ended in the future, the last at {latest_at:%Y-%m-%d %H:%M} UTC"
        step = "a database clock was wrong: see docs/runbook.md, The clocks disagree"
        found.append(warn("last run", message, next_step=step))
    if overdue := read_attention(connection, today=today).overdue:
        message, _, step = overdue.rpartition("; ")
        found.append(warn("last run", message, next_step=step))
    yield from found or [ok("last run", "it is not overdue, and its date is not in the future")]


def _check_organisations(connection: Connection) -> Generator[Finding, None, list[str]]:
    """Return the organisations with a portal."""
    rows = database.fetch(connection, "list_setup_gaps")
    if not rows:
        yield warn("organisations", "there are none", next_step="create one with `certjob organisation set SLUG`")
    with_portal, found = [], []
    for slug, has_portal, has_coordinator, has_contact, without_contact_id in rows:
        if has_portal:
            with_portal.append(slug)
        if not has_coordinator:
            step = f"`certjob organisation set {slug} --coordinator 'NAME <MAIL>'`"
            found.append((f"{slug} has no coordinator, so no one gets its digests", step))
        if not has_contact:
            step = f"`certjob organisation set {slug} --contact-email ADDRESS`"
            found.append((f"{slug} has no contact for its mentors' questions", step))
        if has_portal and without_contact_id:
            message = f"the pushes of {number(without_contact_id, 'mentor')} of {slug} are blocked without a contact ID"
            step = "add the ID in the app or with `certjob load`; "
            step += f"`certjob list --without-contact-id --organisation {slug}` lists the mentors"
            found.append((message, step))
    for message, step in found:
        yield warn("organisations", message, next_step=step)
    if rows and not found:
        yield ok("organisations", f"{number(len(rows), 'organisation')}, nothing is missing")
    return with_portal
