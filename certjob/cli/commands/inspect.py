"""The commands that tell: one mentor's whole story, who has which certificate, what the coming nights will do."""

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from certjob.cli.session import Json, LogFormat, OrganisationSlug, Quiet, Verbose, session

if TYPE_CHECKING:
    from uuid import UUID

    from certjob.domain.models import Status

Csv = Annotated[bool, typer.Option("--csv", help="Print CSV (RFC 4180, UTF-8) with a header.")]


def explain(
    context: typer.Context,
    mentor: Annotated[str, typer.Argument(metavar="MENTOR", help="Id, member number or e-mail address.")],
    *,
    organisation: OrganisationSlug = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """Tell one mentor's whole story: what holds today and why, what was sent, and what comes next, on which date.

    Changes nothing, takes no lock, and works on a read-only database.
    """
    from certjob.cli.pages.explain import show_story
    from certjob.cli.terminal import plain
    from certjob.facts.lookup import find_mentor
    from certjob.views.explain.document import to_document
    from certjob.views.explain.reader import read_story

    with session(context, quiet=quiet, verbose=verbose, log_format=log_format, interruptible=True) as opened:
        mentor_id = find_mentor(opened.connection, mentor, organisation=organisation)
        story = read_story(opened.connection, mentor_id, today=opened.settings.today, zone=opened.settings.zone)
    if json:
        plain.print_json(to_document(story))
    else:
        show_story(opened.output, story)
    return 0


def list_(
    context: typer.Context,
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(
            "--status",
            metavar="STATUS",
            help="Only these: upcoming, valid, expiring, expired, renewed or revoked. May be given several times.",
        ),
    ] = None,
    within: Annotated[
        int | None,
        typer.Option(
            metavar="DAYS",
            help="Only those whose last day is at most so many days away, ahead or past.",
            min=0,
            max=36_500,
        ),
    ] = None,
    organisation: OrganisationSlug = None,
    with_left: Annotated[bool, typer.Option("--with-left", help="Mentors who have left, too.")] = False,
    csv: Csv = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """List who has which certificate, whose last day comes first; the options narrow it, all of them together.

    The status is what the rules say today, whether or not a night has noted it yet. What is paused is paused now.
    """
    from certjob.cli.pages import listing
    from certjob.cli.terminal import plain
    from certjob.facts.lookup import find_organisation
    from certjob.views.listing import Filter, list_certificates

    _refuse_two_forms(csv=csv, json=json)
    statuses = _statuses(status or [])
    broken: list[UUID] = []
    with session(context, quiet=quiet, verbose=verbose, log_format=log_format, interruptible=True) as opened:
        today = opened.settings.today
        wanted = Filter(
            statuses=statuses,
            within_days=within,
            organisation_id=find_organisation(opened.connection, organisation) if organisation else None,
            with_left=with_left,
        )
        rows = list_certificates(opened.connection, today=today, wanted=wanted, on_broken=broken.append)
        with closing(rows):
            if csv:
                listing.print_list_csv(rows)
            elif json:
                listing.print_list_json(rows, today=today)
            else:
                listing.show_list(opened.output, rows)
    for mentor_id in broken:
        reason = "more than 200 certificates or open pauses; delete what is too much"
        plain.print_attention("certjob list", f"mentor {mentor_id} is left out: {reason}")
    return 3 if broken else 0


def forecast(
    context: typer.Context,
    *,
    days: Annotated[
        int, typer.Option(metavar="DAYS", help="So many nights, today's included.", min=1, max=3650, show_default=True)
    ] = 90,
    organisation: OrganisationSlug = None,
    csv: Csv = False,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """Show what the coming nights will do if nobody renews, week by week: expiries, reminders, pauses, hides.

    Computed by the same rules as the nights, one mentor after the other; changes nothing.
    """
    from certjob.cli.pages import forecast as forecast_page
    from certjob.cli.terminal import plain
    from certjob.facts.lookup import find_organisation
    from certjob.views.forecast import make_forecast

    _refuse_two_forms(csv=csv, json=json)
    with session(context, quiet=quiet, verbose=verbose, log_format=log_format, interruptible=True) as opened:
        organisation_id = find_organisation(opened.connection, organisation) if organisation else None
        with opened.output.progress() as progress:
            made = make_forecast(
                opened.connection,
                today=opened.settings.today,
                days=days,
                organisation_id=organisation_id,
                on_progress=progress.phase("Mentors with something to come"),
            )
    if csv:
        forecast_page.print_forecast_csv(made)
    elif json:
        plain.print_json(forecast_page.to_document(made, organisation=organisation))
    else:
        forecast_page.show_forecast(opened.output, made, organisation=organisation)
    for problem in made.problems:
        plain.print_attention("certjob forecast", f"mentor {problem.mentor_id} is left out: {problem.reason}")
    return 3 if made.problems else 0


def _refuse_two_forms(*, csv: bool, json: bool) -> None:
    if csv and json:
        message = "--csv and --json are two forms of the same; give one of them"
        raise typer.BadParameter(message)


def _statuses(words: list[str]) -> "frozenset[Status]":
    from certjob.views.listing import SHOWN_STATUSES

    known = {str(status): status for status in SHOWN_STATUSES}
    for word in words:
        if word not in known:
            message = f"--status must be one of {', '.join(known)}, not {word[:40]!r}"
            raise typer.BadParameter(message)
    return frozenset(known[word] for word in words)


def add_to(app: typer.Typer) -> None:
    """Register the commands, in the order in which --help shows them."""
    app.command(short_help="Tell one mentor's whole story.")(explain)
    app.command("list", short_help="List who has which certificate.")(list_)
    app.command(short_help="Show what the coming nights will do.")(forecast)
