"""The commands that only read, and ``alerts --retry-all``."""

from dataclasses import asdict
from datetime import date, datetime, timedelta
from typing import Annotated

import typer

from certjob.cli.help import REPORTS
from certjob.cli.options import (
    Csv,
    EnvFile,
    Json,
    MentorArgument,
    OrganisationSlug,
    Quiet,
    Verbose,
    parse_day,
    parse_duration,
)
from certjob.cli.session import Call, Commands
from certjob.cli.terminal import plain
from certjob.domain.models import Status
from certjob.errors import Outcome, UsageError

app = Commands(group=REPORTS)


@app.command(
    short_help="Show whether the nightly runs work, and the backlog.",
    examples=("certjob status", "certjob status -q --max-age 26h"),
)
def status(
    context: typer.Context,
    *,
    max_age: Annotated[
        float,
        typer.Option(
            parser=parse_duration,
            metavar="TIME",
            show_default=False,
            help="The maximum time since the end of the last good run.  [default: 26h]",
        ),
    ] = 26 * 3600.0,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    env_file: EnvFile = None,
) -> int:
    """Show whether the nightly runs work, the backlog, the last runs, and the number of mentors to review.

    A run is good if it completed for all organisations, even if someone has to act. Exits with 3 if the last good run
    is older than --max-age, if there was none, or if `certjob alerts` lists anything.
    """
    from certjob.cli.pages import status as page
    from certjob.reports.status import read_status

    call = Call(context=context, json=json, verbose=verbose, quiet=quiet, env_file=env_file)
    with call.session(interruptible=True) as opened:
        zone, waits_until = opened.settings.zone, opened.settings.mail_waits_until
        age, today = timedelta(seconds=max_age), opened.settings.today
        found = read_status(opened.connection, today=today, zone=zone, max_age=age, mail_waits_until=waits_until)
    if reason := page.why_attention(found, zone=zone):
        call.attention(reason)
    if call.json:
        plain.print_json(found.to_document())
    elif not call.quiet:
        page.show_status(opened.output, found, zone=zone)
    return found.exit_code


@app.command(
    short_help="Show problems, and what to do.",
    examples=("watch certjob alerts", "certjob alerts --retry-all"),
)
def alerts(
    context: typer.Context,
    *,
    retry_all: Annotated[
        bool, typer.Option("--retry-all", help="First retry every open push, even blocked ones.")
    ] = False,
    acknowledged: Annotated[
        bool, typer.Option("--acknowledged", help="Show acknowledged alerts only: until when, and why.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
    env_file: EnvFile = None,
) -> int:
    """Show problems, the most harmful first: the cause, the next step, and the mentors.

    Exits with 3 while there are any.
    """
    from certjob.cli.pages import alerts as page
    from certjob.reports.alerts import collect_alerts, count_acknowledged, held_mentors

    call = Call(context=context, json=json, verbose=verbose, env_file=env_file)
    if acknowledged and retry_all:
        message = "--acknowledged cannot be combined with --retry-all"
        raise typer.BadParameter(message)
    report = None
    with call.session(interruptible=not retry_all) as opened:
        if retry_all:
            from certjob.jobs import runs

            with opened.output.progress() as progress:
                report = runs.retry_all(opened.job(progress))
        today = opened.settings.today
        found = collect_alerts(opened.connection, today=today, acknowledged=acknowledged)
        number = 0 if acknowledged else count_acknowledged(opened.connection, today=today)
        outcome = Outcome.ATTENTION if found and not acknowledged else Outcome.OK
        if report is not None and report.outcome is not Outcome.OK:
            outcome = report.outcome
        if call.json:
            document = report.to_document() if report is not None else {}
            document |= {"outcome": outcome, "alerts": (alert.to_document() for alert in found)}
            held = held_mentors(opened.connection, today=today, acknowledged=acknowledged)
            document["held_mentors"] = (asdict(mentor) for mentor in held)
            plain.print_json(document if acknowledged else document | {"acknowledged": number})
        else:
            held = held_mentors(opened.connection, today=today, acknowledged=acknowledged, most=page.MOST_HELD + 1)
            now = datetime.now(opened.settings.zone)
            page.show_alerts(opened.output, list(found), now=now, acknowledged=number, held=list(held))
    return call.end(outcome, report.reasons if report is not None else ())


@app.command(
    short_help="Show who was changed since last night's first run, and why.",
    examples=("certjob changes", "certjob changes --since 2027-03-01 --organisation hlf --csv > changes.csv"),
)
def changes(
    context: typer.Context,
    *,
    since: Annotated[
        date | None,
        typer.Option(
            parser=parse_day,
            metavar="DATE",
            show_default=False,
            help="Since the beginning of DATE.  [default: since the first full run of the newest date began]",
        ),
    ] = None,
    organisation: OrganisationSlug = None,
    csv: Csv = False,
    json: Json = False,
    verbose: Verbose = False,
    env_file: EnvFile = None,
) -> int:
    """Show by name who was changed or wrongly visible, and why: certificates, pauses, portal and reminders.

    The most harmful changes come first.
    """
    from certjob.cli.pages import changes as page
    from certjob.facts.lookup import find_organisation
    from certjob.reports.changes import ALL, find_beginning, read_changes

    call = Call(context=context, json=json, verbose=verbose, env_file=env_file)
    with call.session(interruptible=True) as opened:
        connection, zone, today = opened.connection, opened.settings.zone, opened.settings.today
        beginning = find_beginning(connection, since=since, today=today, zone=zone)
        is_page = opened.output.on_terminal and not (csv or json)
        found = read_changes(
            connection,
            since=beginning,
            today=today,
            zone=opened.settings.time_zone,
            organisation_id=find_organisation(connection, organisation) if organisation else None,
            most=page.MOST_ROWS if is_page else ALL,
        )
        if json:
            plain.print_json({"outcome": "ok", "since": beginning, "changes": page.to_entries(found)})
        elif is_page:
            page.show_changes(opened.output, found, since=beginning, today=today, zone=zone)
        else:
            page.print_changes_csv(found)
    return 0


@app.command(
    short_help="Show one mentor's history, and the next change.",
    examples=("certjob explain M1042", "certjob explain kari"),
)
def explain(
    context: typer.Context,
    mentor: MentorArgument,
    *,
    organisation: OrganisationSlug = None,
    json: Json = False,
    verbose: Verbose = False,
    env_file: EnvFile = None,
) -> int:
    """Show one mentor's certificates, pauses, reminders and pushes with their reasons, and the next change.

    It takes no locks, and works on a read-only database.
    """
    from certjob.cli.pages.explain import show_explanation
    from certjob.facts.lookup import find_mentor
    from certjob.reports import explain as report

    call = Call(context=context, json=json, verbose=verbose, env_file=env_file)
    with call.session(interruptible=True) as opened:
        mentor_id = find_mentor(opened.connection, mentor, organisation=organisation)
        settings = opened.settings
        explained = report.explain(opened.connection, mentor_id, today=settings.today, zone=settings.zone)
    if call.json:
        plain.print_json(explained.to_document())
    else:
        show_explanation(opened.output, explained, zone=settings.zone)
    return 0


def _parse_status(word: str) -> Status:
    known = [status for status in Status if status is not Status.RECORDED]
    if word not in known:
        message = f"{word[:40]!r} is not one of {', '.join(known)}"
        raise typer.BadParameter(message)
    return Status(word)


Statuses = Annotated[
    list[Status] | None,
    typer.Option(
        "--status",
        parser=_parse_status,
        metavar="STATUS",
        help="Only these: upcoming, valid, expiring, expired, renewed or revoked. May be repeated.",
    ),
]
FirstDay = Annotated[
    date | None,
    typer.Option("--from", parser=parse_day, metavar="DATE", help="Only certificates whose last day is DATE or later."),
]
LastDay = Annotated[
    date | None,
    typer.Option("--to", parser=parse_day, metavar="DATE", help="Only certificates whose last day is DATE or earlier."),
]
WithinDays = Annotated[
    int | None,
    typer.Option(
        "--within",
        metavar="DAYS",
        help="Only certificates whose last day is today or one of the next DAYS days.",
        min=0,
        max=36_500,
    ),
]


WithLeft = Annotated[bool, typer.Option("--with-left", help="Include mentors who have left.")]
Everyone = Annotated[
    bool,
    typer.Option(
        "--everyone", help="Include mentors who have left or have no certificate, as a backup for `certjob load`."
    ),
]


@app.command(
    "list",
    short_help="List mentors and their certificates.",
    examples=("certjob list --within 60 --organisation hlf", "certjob list --from 2027-05-01 --to 2027-05-31 --csv"),
)
def list_(
    context: typer.Context,
    *,
    status: Statuses = None,
    from_: FirstDay = None,
    to: LastDay = None,
    within: WithinDays = None,
    organisation: OrganisationSlug = None,
    with_left: WithLeft = False,
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
    json: Json = False,
    verbose: Verbose = False,
    env_file: EnvFile = None,
) -> int:
    """List mentors and their certificates, sorted by the last day. The options can be combined.

    The status is that of today, even if no run has stored it yet. Paused shows the open pauses.
    """
    from certjob.cli.pages import listing as page
    from certjob.facts.lookup import find_organisation
    from certjob.reports.listing import Filter, list_certificates

    call = Call(context=context, json=json, verbose=verbose, env_file=env_file)
    if from_ is not None and to is not None and from_ > to:
        message = f"--from {from_} is after --to {to}"
        raise UsageError(message, next_step="swap them")
    with call.session(interruptible=True) as opened:
        today = opened.settings.today
        wanted = Filter(
            statuses=frozenset(status or ()),
            from_on=max(from_ or today, today) if within is not None else from_,
            to_on=min(to or date.max, today + timedelta(days=within)) if within is not None else to,
            organisation_id=find_organisation(opened.connection, organisation) if organisation else None,
            with_left=with_left,
            everyone=everyone,
            without_contact_id=without_contact_id,
            without_address=without_address,
            without_certificate=without_certificate,
        )
        found = list_certificates(opened.connection, today=today, wanted=wanted)
        if call.json:
            plain.print_json(page.to_document(opened.connection, found, today=today))
        elif csv:
            page.print_list_csv(found.rows)
        else:
            page.show_list(opened.output, found.rows)
    return call.name_left_out(found.broken)


@app.command(
    short_help="Show what the coming nightly runs will do.",
    examples=("certjob forecast", "certjob forecast --days 365 --json"),
)
def forecast(
    context: typer.Context,
    *,
    days: Annotated[
        int, typer.Option(metavar="DAYS", help="The number of days, including today.", min=1, max=3650)
    ] = 90,
    organisation: OrganisationSlug = None,
    json: Json = False,
    verbose: Verbose = False,
    env_file: EnvFile = None,
) -> int:
    """Show the expiries, reminders, pauses and hides of the coming runs, by week, if no one renews a certificate.

    It uses the rules of the runs.
    """
    from certjob.cli.pages import forecast as page
    from certjob.facts.lookup import find_organisation
    from certjob.reports.forecast import make_forecast

    call = Call(context=context, json=json, verbose=verbose, env_file=env_file)
    with call.session(interruptible=True) as opened:
        organisation_id = find_organisation(opened.connection, organisation) if organisation else None
        with opened.output.progress() as progress:
            advance = progress.phase("Reading mentors")
            made = make_forecast(
                opened.connection,
                today=opened.settings.today,
                days=days,
                organisation_id=organisation_id,
                on_progress=advance,
            )
        if call.json:
            plain.print_json(page.to_document(opened.connection, made, organisation=organisation))
        else:
            page.show_forecast(opened.output, made)
    return call.name_left_out(made.broken)
