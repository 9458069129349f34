"""The commands of the night and of the day after: run, deliver, resync, alerts."""

from typing import TYPE_CHECKING, Annotated

import typer

from certjob.cli.options import (
    AllowEarlierDate,
    DeliverFor,
    Json,
    LogFormat,
    OrganisationSlug,
    Quiet,
    Session,
    Verbose,
    delivery_from,
    parse_day,
    parse_duration,
    session,
)

if TYPE_CHECKING:
    from certjob.report import RunReport


def run(
    context: typer.Context,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and touch nothing: no write, no lock, no call.")
    ] = False,
    as_of: Annotated[
        str | None, typer.Option(metavar="DATE", help="Plan for another day, YYYY-MM-DD; only with --dry-run.")
    ] = None,
    organisation: OrganisationSlug = None,
    allow_mass_change: Annotated[
        bool, typer.Option("--allow-mass-change", help="Apply also what the guards would hold back.")
    ] = False,
    allow_earlier_date: AllowEarlierDate = False,
    no_deliver: Annotated[
        bool, typer.Option("--no-deliver", help="Bring the state up to date, but call and mail nobody.")
    ] = False,
    deliver_for: DeliverFor = "2h",
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """Run the night: bring certificates and mentors to the right state, push the portal, send the reminders.

    Safe to repeat and to run twice at once. --organisation limits the review; what is queued is delivered for all.
    Exits 3 while anything needs a person.
    """
    from certjob import nightly

    if as_of is not None and not dry_run:
        message = "--as-of works only with --dry-run: a real night is always today's"
        raise typer.BadParameter(message)
    day = parse_day(as_of) if as_of is not None else None
    deadline_seconds = parse_duration(deliver_for)
    with session(
        context,
        quiet=quiet,
        verbose=verbose,
        log_format=log_format,
        ends_at_once=dry_run,
        outlasts_restarts=not dry_run,
        watched_as=None if dry_run else "run",
        pings=not dry_run and organisation is None,  # one organisation's is no night: it would hide that none ran
    ) as opened:
        options = nightly.NightOptions(
            today=day or opened.settings.today,
            organisation=organisation,
            dry_run=dry_run,
            allow_mass_change=allow_mass_change,
            allow_earlier_date=allow_earlier_date,
            deliver=not no_deliver,
            run_id=opened.run_id,
        )
        delivery = delivery_from(opened.settings, deadline_seconds=deadline_seconds)
        with opened.talk.progress() as progress:
            report = nightly.run(
                opened.connection,
                options=options,
                delivery=delivery,
                stop=opened.stop,
                progress=progress,
                connect=opened.reconnect,
            )
    return _report(opened, report, json=json)


def deliver(
    context: typer.Context,
    *,
    everybody: Annotated[
        bool, typer.Option("--all", help="Then push every portal mentor's wanted value again, whatever was confirmed.")
    ] = False,
    allow_earlier_date: AllowEarlierDate = False,
    deliver_for: DeliverFor = "2h",
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """Deliver what is queued and due, portal first, then mail: the background job between the nights.

    --all is for the day when somebody edited the portal by hand. Mentors who are due for a review are not shown by it,
    only hidden: let `certjob run` review them first. Exits 3 only if something failed in this run, or a stage stopped
    for a new reason (with --all: for any reason).
    """
    from certjob import nightly

    deadline_seconds = parse_duration(deliver_for)
    with session(
        context, quiet=quiet, verbose=verbose, log_format=log_format, outlasts_restarts=True, watched_as="deliver"
    ) as opened:
        delivery = delivery_from(opened.settings, deadline_seconds=deadline_seconds)
        with opened.talk.progress() as progress:
            report = nightly.deliver(
                opened.connection,
                today=opened.settings.today,
                allow_earlier_date=allow_earlier_date,
                delivery=delivery,
                stop=opened.stop,
                progress=progress,
                everybody=everybody,
                run_id=opened.run_id,
            )
    return _report(opened, report, json=json)


def resync(
    context: typer.Context,
    mentor: Annotated[str, typer.Argument(metavar="MENTOR", help="Id, member number or e-mail address.")],
    *,
    organisation: OrganisationSlug = None,
    allow_earlier_date: AllowEarlierDate = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """Review one mentor now and push the portal visibility, whatever the retry time says.

    Reminders are queued, not sent. Exits 3 when the push did not succeed.
    """
    from certjob import console
    from certjob import resync as resyncing
    from certjob.report import EXIT_CODES

    with session(context, quiet=quiet, verbose=verbose, log_format=log_format) as opened:
        result = resyncing.resync(
            opened.connection,
            resyncing.find_mentor(opened.connection, mentor, organisation=organisation),
            today=opened.settings.today,
            allow_earlier_date=allow_earlier_date,
            delivery=delivery_from(opened.settings),
            stop=opened.stop,
            run_id=opened.run_id,
        )
    if json:
        document = result.report.to_document()
        if result.error is not None:
            document |= {"outcome": "attention", "error": {"code": result.error.code, "message": str(result.error)}}
        console.print_json(document)
    elif not quiet:
        console.show_resync(opened.talk, result.before, result.after)
    if result.error is not None:
        console.print_attention("certjob resync", str(result.error))
        return result.error.exit_code
    for reason in result.report.reasons:
        console.print_attention("certjob resync", reason)
    return EXIT_CODES[result.report.outcome]


def alerts(
    context: typer.Context,
    *,
    retry_all: Annotated[
        bool,
        typer.Option("--retry-all", help="First reopen every open push, blocked ones too, and push them all now."),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep the page up to date, every 2 seconds, until Ctrl-C.")
    ] = False,
    deliver_for: DeliverFor = "2h",
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """Show what coordinators must know: who may still be visible on the portal first, why, and what to do.

    Then who may still be hidden, and the reminders and coordinators' digests that failed. Exits 3 while there is any.
    """
    from datetime import UTC, datetime

    from certjob import alerts_page, console
    from certjob.report import EXIT_CODES, Outcome

    if watch and (json or retry_all):
        message = "--watch works alone: with neither --json nor --retry-all"
        raise typer.BadParameter(message)
    deadline_seconds = parse_duration(deliver_for)
    report = None
    at_once = not (retry_all or watch)
    with session(
        context,
        quiet=quiet,
        verbose=verbose,
        log_format=log_format,
        ends_at_once=at_once,
        outlasts_restarts=retry_all,
    ) as opened:
        if watch:
            return _watch(opened)
        if retry_all:
            report = _retry_all(opened, deadline_seconds=deadline_seconds)
        if json:  # the view's own columns
            pushes = _documents(opened, "read_portal_alerts")
            reminders = _documents(opened, "read_failed_reminders", {"today": opened.settings.today})
            digests = _documents(opened, "read_failed_digests")
            number = len(pushes) + len(reminders) + len(digests)
        else:
            found = alerts_page.read_alerts(opened.connection, today=opened.settings.today)
            number = len(found)
    outcome = Outcome.ATTENTION if number else Outcome.OK
    document: dict[str, object] = {}
    if report is not None:
        document = report.to_document()
        outcome = report.outcome if report.outcome is not Outcome.OK else outcome
    if json:
        document |= {"outcome": outcome, "alerts": pushes, "failed_reminders": reminders, "failed_digests": digests}
        console.print_json(document)
    else:
        alerts_page.show_alerts(opened.talk, found, zone=opened.settings.zone, now=datetime.now(UTC))
    for reason in report.reasons if report is not None else ():
        say = console.print_error if outcome is Outcome.FAILED else console.print_attention
        say("certjob alerts", reason)
    return EXIT_CODES[outcome]


def _watch(opened: Session) -> int:
    from datetime import UTC, datetime

    from certjob import alerts_watch

    return alerts_watch.watch_alerts(
        opened.talk,
        opened.connection,
        reconnect=opened.reconnect,
        today=lambda: opened.settings.today,
        zone=opened.settings.zone,
        stop=opened.stop,
        now=lambda: datetime.now(UTC),
    )


def _retry_all(opened: Session, *, deadline_seconds: float) -> "RunReport":
    from certjob import nightly

    delivery = delivery_from(opened.settings, deadline_seconds=deadline_seconds)
    with opened.talk.progress() as progress:
        return nightly.retry_all(
            opened.connection,
            today=opened.settings.today,
            delivery=delivery,
            stop=opened.stop,
            progress=progress,
            run_id=opened.run_id,
        )


def _documents(opened: Session, name: str, parameters: dict[str, object] | None = None) -> list[dict[str, object]]:
    from psycopg.rows import dict_row

    from certjob import database

    with opened.connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(database.query(name), parameters).fetchall()


def _report(opened: Session, report: "RunReport", *, json: bool) -> int:
    """Print a run's report and return its exit code."""
    from certjob import console
    from certjob.report import EXIT_CODES, Outcome

    if opened.monitor is not None:
        opened.monitor.note(report.to_counts())
    if json:
        console.print_json(report.to_document())
    elif report.dry_run:
        console.show_plan(opened.talk, report)
    elif opened.talk.chatty:
        console.show_totals(opened.talk, report)
    for reason in report.reasons:
        say = console.print_error if report.outcome is Outcome.FAILED else console.print_attention
        say(f"certjob {report.command}", reason)
    return EXIT_CODES[report.outcome]


def add_to(app: typer.Typer) -> None:
    """Register the commands, in the order in which --help shows them."""
    app.command(short_help="Run the night: state, portal, reminders.")(run)
    app.command(short_help="Deliver what is queued and due.")(deliver)
    app.command(short_help="Review one mentor now and push the visibility.")(resync)
    app.command(short_help="Show what coordinators must know.")(alerts)
