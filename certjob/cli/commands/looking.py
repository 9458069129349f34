"""The commands that only read, and ``alerts --retry-all``."""

from dataclasses import asdict
from datetime import date, datetime, timedelta
from typing import Annotated, Any

import typer

from certjob.cli.options import (
    Csv,
    MentorArgument,
    OrganisationSlug,
    parse_day,
    parse_duration,
)
from certjob.cli.session import Call, Commands
from certjob.domain.models import Status
from certjob.errors import Outcome, UsageError

app = Commands(group="Reports")


@app.command(examples=("certjob status", "certjob status -q --max-age 26h"))
def status(
    call: Call,
    *,
    max_age: Annotated[
        float,
        typer.Option(
            parser=parse_duration,
            metavar="TIME",
            show_default=False,
            help="The maximum time since the end of the last good run. Default: 26h.",
        ),
    ] = 26 * 3600.0,
) -> int:
    """Show whether the nightly runs work, the backlog, the last runs, and the number of mentors to review.

    A run is good if it completed for all organisations, even if someone has to act. Exits with 3 if the last good run
    is older than --max-age, if there was none, or if `certjob alerts` lists anything.
    """
    from certjob.reports.status import read_status, status_page, why_attention

    with call.session(interruptible=True):
        settings = call.settings
        limit = timedelta(seconds=max_age)
        found = read_status(call.connection, today=settings.today, zone=settings.zone, max_age=limit)
    if reason := why_attention(found, zone=settings.zone):
        call.say(reason)
    call.show(found.to_document(), status_page(found, zone=settings.zone), zone=settings.zone)
    return found.exit_code


@app.command(examples=("watch certjob alerts", "certjob alerts --retry-all"))
def alerts(
    call: Call,
    *,
    retry_all: Annotated[
        bool, typer.Option("--retry-all", help="First retry every open push, and make undelivered mail due.")
    ] = False,
    acknowledged: Annotated[
        bool, typer.Option("--acknowledged", help="Show acknowledged alerts only: until when, and why.")
    ] = False,
) -> int:
    """Show problems, the most harmful first: the cause, the next step, and the mentors.

    Exits with 3 while there are any.
    """
    from certjob.reports.alerts import alert_lines, alerts_page, collect_alerts, held_mentors

    if acknowledged and retry_all:
        message = "--acknowledged cannot be combined with --retry-all"
        raise typer.BadParameter(message)
    report = None
    with call.session(interruptible=not retry_all):
        if retry_all:
            from certjob.jobs import runs

            with call.progress() as progress:
                report = runs.retry_all(call.job(progress))
        today = call.settings.today
        found = collect_alerts(call.connection, today=today, acknowledged=acknowledged)
        number = 0 if acknowledged else len(collect_alerts(call.connection, today=today, acknowledged=True))
        outcome = Outcome.ATTENTION if found and not acknowledged else Outcome.OK
        if report is not None and report.outcome is not Outcome.OK:
            outcome = report.outcome
        held = iter(()) if acknowledged else held_mentors(call.connection, today=today)
        document = report.to_document() if report is not None else {}
        document |= {"outcome": outcome, "alerts": (alert.to_document() for alert in found)}
        document |= {"held_mentors": map(asdict, held)} | ({} if acknowledged else {"acknowledged": number})
        zone, success = call.settings.zone, "" if found else "All clear: nothing needs attention."
        page_of = alerts_page if call.output.on_terminal else alert_lines
        page = page_of(found, now=datetime.now(zone), held=held, acknowledged=number)
        call.show(document, page, success=success, zone=zone)
    return call.end(outcome, report.reasons if report is not None else ())


@app.command(examples=("certjob changes", "certjob changes --since 2027-03-01 --organisation hlf --csv > changes.csv"))
def changes(
    call: Call,
    *,
    since: Annotated[
        date | None,
        typer.Option(
            parser=parse_day,
            metavar="DATE",
            show_default=False,
            help="Since the beginning of DATE. Default: since the first full run of the newest date began.",
        ),
    ] = None,
    organisation: OrganisationSlug = None,
    csv: Csv = False,
) -> int:
    """Show the changes of certificates, pauses, portal and reminders for each person, and who was wrongly visible.

    Each person has one line, in the order of the first change. `certjob explain MENTOR` says why.
    """
    from certjob.facts.lookup import find_organisation
    from certjob.reports.changes import changes_page, find_beginning, read_changes
    from certjob.reports.exposure import read_exposure

    with call.session(interruptible=True):
        connection, zone, today = call.connection, call.settings.zone, call.settings.today
        beginning = find_beginning(connection, since=since, today=today, zone=zone)
        asked: Any = {"since": beginning, "today": today, "zone": call.settings.time_zone}
        asked["organisation_id"] = find_organisation(connection, organisation) if organisation else None
        exposure, found = read_exposure(connection, **asked), read_changes(connection, **asked)
        document = {"since": beginning, "exposure": asdict(exposure), "people": map(asdict, found)}
        as_csv = csv or not call.output.on_terminal
        page = changes_page(found, since=beginning, today=today, zone=zone, exposure=exposure, csv=as_csv)
        call.show(document, page, zone=zone, csv=as_csv)
    return 0


@app.command(examples=("certjob explain M1042", "certjob explain kari"))
def explain(
    call: Call,
    mentor: MentorArgument,
    *,
    organisation: OrganisationSlug = None,
) -> int:
    """Show one mentor's certificates, pauses, reminders and pushes with their reasons, and the next change.

    It takes no locks, and works on a read-only database.
    """
    from certjob.facts.lookup import find_mentor
    from certjob.reports import explain as report

    with call.session(interruptible=True):
        mentor_id = find_mentor(call.connection, mentor, organisation=organisation)
        settings = call.settings
        explained = report.explain(call.connection, mentor_id, today=settings.today, zone=settings.zone)
    page = report.explain_page(explained, zone=settings.zone, in_pipe=not call.output.on_terminal)
    call.show(explained.to_document(), page, zone=settings.zone)
    return 0


Statuses = Annotated[
    list[Status] | None, typer.Option("--status", metavar="STATUS", help="Only these. May be repeated.")
]
Kinds = Annotated[list[str] | None, typer.Option("--kind", metavar="KIND", help="Only these. May be repeated.")]
FirstDay = Annotated[
    date | None,
    typer.Option("--from", parser=parse_day, metavar="DATE", help="Only certificates whose last day is DATE or later."),
]
LastDay = Annotated[
    date | None,
    typer.Option("--to", parser=parse_day, metavar="DATE", help="Only certificates whose last day is DATE or earlier."),
]
Everyone = Annotated[bool, typer.Option("--everyone", help="All mentors, as a backup for `certjob load`.")]


@app.command(
    "list",
    examples=(
        "certjob list --status expiring --organisation hlf",
        "certjob list --from 2027-05-01 --to 2027-05-31 --csv",
    ),
)
def list_(
    call: Call,
    *,
    status: Statuses = None,
    kind: Kinds = None,
    from_: FirstDay = None,
    to: LastDay = None,
    organisation: OrganisationSlug = None,
    everyone: Everyone = False,
    without_contact_id: Annotated[
        bool, typer.Option("--without-contact-id", help="Only portal mentors without a Dynamics contact ID.")
    ] = False,
    without_address: Annotated[
        bool, typer.Option("--without-address", help="Only mentors without an e-mail address.")
    ] = False,
    without_certificate: Annotated[
        bool,
        typer.Option("--without-certificate", help="Only active mentors who have never had a certificate that counts."),
    ] = False,
    csv: Csv = False,
) -> int:
    """List mentors and their certificates, sorted by the last day. The options can be combined.

    The status is that of today, even if no run has stored it yet. Paused shows the open pauses.
    """
    from certjob.cli.documents import left_out
    from certjob.facts.lookup import find_organisation
    from certjob.reports.listing import Filter, list_certificates, list_page

    if from_ is not None and to is not None and from_ > to:
        message = f"--from {from_} is after --to {to}"
        raise UsageError(message, next_step="swap them")
    with call.session(interruptible=True):
        today = call.settings.today
        wanted = Filter(
            statuses=frozenset(status or ()),
            kinds=frozenset(kind or ()),
            from_on=from_,
            to_on=to,
            organisation_id=find_organisation(call.connection, organisation) if organisation else None,
            everyone=everyone,
            without_contact_id=without_contact_id,
            without_address=without_address,
            without_certificate=without_certificate,
        )
        found = list_certificates(call.connection, today=today, wanted=wanted)
        document = left_out(call.connection, found.broken)
        document |= {"today": today, "certificates": map(asdict, found.rows)}
        call.show(document, list_page(found.rows), csv=csv or not call.output.on_terminal)
    return call.name_left_out(found.broken)
