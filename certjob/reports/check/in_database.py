"""What `certjob check` looks at in the database; every statement only reads."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import date, timedelta, tzinfo

from certjob import database
from certjob.database import Connection, migrations
from certjob.database.clocks import Clocks
from certjob.domain.explanations import number
from certjob.errors import ClocksDisagreeError, ConfigurationError
from certjob.hours import DailyHours
from certjob.outbox.open_work import MAIL_KINDS, read_open_work
from certjob.reports.check.findings import Finding, fail, failed_with, ok, warn
from certjob.review.attention import read_attention
from certjob.review.days import refuse_earlier_date

OLDEST_VERSION, NEWEST_VERSION = 15, 18
"""Of PostgreSQL: below it something is missing, above it nobody has tried."""

TOLERATED_CLOCK_DIFFERENCE = timedelta(seconds=60)
"""More, and a night begun shortly before midnight may be another day's for the database."""

STATEMENT_TIMEOUT_MS = 20_000
"""A migration, say, may lock a table for long: that is reported instead of waited for."""

NEEDED_RIGHTS = {
    "organisations": ("SELECT",),
    "coordinators": ("SELECT",),
    "mentors": ("SELECT", "UPDATE"),
    "certificates": ("SELECT", "UPDATE"),
    "mentor_pauses": ("SELECT", "INSERT", "UPDATE"),
    "certificate_transitions": ("SELECT", "INSERT"),
    "cert_notification_log": ("SELECT", "INSERT", "UPDATE"),
    "portal_sync_events": ("SELECT", "INSERT", "UPDATE"),
    "dynamics_sync_failures": ("SELECT", "INSERT", "UPDATE"),
    "coordinator_digests": ("SELECT", "INSERT", "UPDATE"),
    "job_runs": ("SELECT", "INSERT", "UPDATE"),
    "alerts": ("SELECT",),
    "current_alerts": ("EXECUTE",),
}
"""What the nightly job does in each table; `load`, `organisation set` and `db migrate` need more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What the server says about itself."""

    version_number: int
    version: str
    in_recovery: bool
    read_only: bool
    user_name: str
    synchronous_commit: str


def check_database(
    connection: Connection, *, today: date, zone: tzinfo, mail_hours: DailyHours | None
) -> Generator[Finding, None, dict[str, bool] | None]:
    """Check the server, the schema, the rights of this user, and what the organisations lack.

    Return each organisation's short name and whether it has a portal; None if the schema cannot be used.
    """
    server = database.fetch(connection, "describe_server", into=Server)[0]
    yield from check_server(server)
    yield check_clocks(database.read_clocks(connection), zone=zone)
    with database.read_only_snapshot(connection):
        connection.execute("SELECT set_config('statement_timeout', %s, true)", (str(STATEMENT_TIMEOUT_MS),))
        schema = _check_schema(connection)
        yield schema
        if schema.exit_code:
            return None
        rights = list(_check_rights(connection, user_name=server.user_name))
        yield from rights
        has_rights = not any(finding.exit_code for finding in rights)
        yield from _check_last_run(connection, today=today, may_read_alerts=has_rights)
        yield from _check_organisations(connection)
        if mail_hours is not None:
            yield _check_mail_hours(connection, mail_hours, zone=zone)
        return dict(database.fetch(connection, "list_portal_organisations"))


def _check_mail_hours(connection: Connection, hours: DailyHours, *, zone: tzinfo) -> Finding:
    """Warn when nothing delivers in these hours; without a mail that has waited for a day, nobody misses it."""
    open_work = read_open_work(connection)
    waiting = sum(open_work[kind].older_than_day for kind in MAIL_KINDS)
    runs = [row[0].astimezone(zone) for row in database.fetch(connection, "list_last_deliveries")]
    if not waiting or any(hours.include(started_at) for started_at in runs):
        return ok("mail hours", "what waits for CERTJOB_MAIL_HOURS is sent in them")
    mails = "1 mail waits" if waiting == 1 else f"{waiting:,} mails wait"
    message = f"{mails}, and for two days nothing has delivered in CERTJOB_MAIL_HOURS"
    return warn("mail hours", message, next_step="have cron run `certjob deliver` in these hours, see crontab.example")


def _check_last_run(connection: Connection, *, today: date, may_read_alerts: bool) -> Iterator[Finding]:
    found: list[Finding] = []
    try:
        refuse_earlier_date(connection, today)
    except ConfigurationError as error:
        found.append(failed_with("last run", error))
    count, latest_at = database.fetch(connection, "read_runs_in_the_future")[0]
    if count:
        runs = "1 run has" if count == 1 else f"{count:,} runs have"
        message = f"{runs} ended in the future, the last at {latest_at:%Y-%m-%d %H:%M} UTC: a database clock was wrong"
        found.append(warn("last run", message, next_step="see docs/runbook.md, The clocks disagree"))
    if may_read_alerts and (overdue := read_attention(connection, today=today).overdue):
        message, _, step = overdue.rpartition("; ")
        found.append(warn("last run", message, next_step=step))
    yield from found or [ok("last run", "it is not overdue, and its date is not in the future")]


def check_server(server: Server) -> Iterator[Finding]:
    major = server.version_number // 10_000
    name = f"PostgreSQL {server.version}"
    if major < OLDEST_VERSION:
        step = f"use PostgreSQL {OLDEST_VERSION} to {NEWEST_VERSION}"
        yield fail("database", f"{name} is too old", next_step=step)
    elif major > NEWEST_VERSION:
        yield warn("database", f"{name} is newer than what was tested", next_step="see whether a newer certjob exists")
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
    """Fail where `run` would refuse; warn of less."""
    try:
        clocks.require_same_day(zone)
    except ClocksDisagreeError as error:
        return failed_with("clock", error)
    seconds = round(clocks.server_is_ahead_by.total_seconds())
    if abs(seconds) <= TOLERATED_CLOCK_DIFFERENCE.total_seconds():
        return ok("clock", "this machine and the database server agree")
    side = "ahead of" if seconds > 0 else "behind"
    return warn("clock", f"the database server is {abs(seconds):,} s {side} this machine", next_step="set both by NTP")


def _check_schema(connection: Connection) -> Finding:
    try:
        found = migrations.status(connection)
    except ConfigurationError as error:
        return failed_with("schema", error)
    applied, newest = [migration.version for migration in found if migration.applied_at is not None], found[-1].version
    if not applied:
        return fail("schema", "certjob's tables are not there yet", next_step="run `certjob db migrate`")
    if len(applied) < len(found):
        message = f"version {applied[-1]} is older than this certjob, which needs version {newest}"
        return fail("schema", message, next_step="run `certjob db migrate`")
    return ok("schema", f"version {newest}, up to date")


def _check_rights(connection: Connection, *, user_name: str) -> Iterator[Finding]:
    needed = [(table, privilege) for table, privileges in NEEDED_RIGHTS.items() for privilege in privileges]
    tables, privileges = zip(*needed, strict=True)
    parameters = {"tables": list(tables), "privileges": list(privileges)}
    missing = database.fetch(connection, "list_missing_rights", parameters)
    filtered = [row[0] for row in database.fetch(connection, "list_filtered_tables", parameters)]
    step = migrations.how_to_get_rights(connection)
    if missing:
        lacking = ", ".join(f"{privilege} on {table}" for table, privilege in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        yield fail("rights", f"the database user {user_name} lacks {lacking}{more}", next_step=step)
    if filtered:
        message = f"row-level security may hide rows from the database user {user_name}: {', '.join(filtered)}"
        yield fail("rights", message, next_step=step)
    excess = database.fetch(connection, "list_excess_rights")
    if excess:
        listed = ", ".join(f"{role}: {what} on {name}" for role, what, name in excess[:3])
        more = f" and {len(excess) - 3} more" if len(excess) > 3 else ""
        message = f"roles of the app may do more than certjob grants: {listed}{more}"
        yield fail("rights", message, next_step="as the tables' owner, run `certjob db migrate`")
    if not missing and not filtered and not excess:
        yield ok("rights", f"the database user {user_name} sees and may write what a night needs")


def _check_organisations(connection: Connection) -> Iterator[Finding]:
    rows = database.fetch(connection, "list_setup_gaps")
    if not rows:
        step = "create one with `certjob organisation set SLUG`"
        yield warn("organisations", "there is none", next_step=step)
        return
    gaps = [gap for row in rows for gap in _gaps(*row)]
    yield from gaps
    if not gaps:
        yield ok("organisations", f"{number(len(rows), 'organisation')}, nothing is missing")


def _gaps(slug: str, has_coordinator: bool, has_contact: bool, without_contact_id: int) -> Iterator[Finding]:
    change = f"`certjob organisation set {slug}"
    if not has_coordinator:
        step = f"{change} --coordinator 'NAME <MAIL>'`"
        yield warn("organisations", f"{slug} has no coordinator, so no one gets its daily mail", next_step=step)
    if not has_contact:
        step = f"{change} --contact-email ADDRESS`"
        yield warn("organisations", f"{slug} has no contact for its mentors' questions", next_step=step)
    if without_contact_id:
        who = "1 mentor has" if without_contact_id == 1 else f"{without_contact_id:,} mentors have"
        step = (
            f"`certjob list --without-contact-id --organisation {slug}` names them; give them one each, in the app or "
            "with `certjob load`"
        )
        message = f"{who} no contact ID in {slug}, so their pushes are blocked"
        yield warn("organisations", message, next_step=step)
