"""The commands that tell: one mentor's whole story, who has which certificate, what the coming nights will do."""

from typing import Annotated

import typer

from certjob.cli.help import LOOKING
from certjob.cli.options import Csv, MentorArgument, OrganisationSlug
from certjob.cli.session import Call, Commands
from certjob.domain.models import Status

app = Commands()


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
        help="Only these: upcoming, valid, expiring, expired, renewed or revoked. May be given several times.",
    ),
]
Within = Annotated[
    int | None,
    typer.Option(
        metavar="DAYS",
        help="Only certificates whose last day is within DAYS of today, before or after.",
        min=0,
        max=36_500,
    ),
]


@app.command(
    group=LOOKING,
    without=("quiet",),
    short_help="Show one mentor's whole history, and what comes next.",
    examples=("certjob explain M1042", "certjob explain kari"),
)
def explain(call: Call, mentor: MentorArgument, *, organisation: OrganisationSlug = None) -> int:
    """Show one mentor's whole history: what holds today and why, what was sent, and what comes next, on which date.

    Changes nothing, takes no lock, and works on a read-only database.
    """
    from certjob.cli.pages.explain import show_explanation
    from certjob.cli.terminal import plain
    from certjob.facts.lookup import find_mentor
    from certjob.reports import explain as report

    with call.session(interruptible=True) as opened:
        mentor_id = find_mentor(opened.connection, mentor, organisation=organisation)
        settings = opened.settings
        explained = report.explain(opened.connection, mentor_id, today=settings.today, zone=settings.zone)
    if call.json:
        plain.print_json(explained.to_document())
    else:
        show_explanation(opened.output, explained, zone=settings.zone)
    return 0


@app.command(
    "list",
    group=LOOKING,
    without=("quiet",),
    short_help="List who has which certificate.",
    examples=("certjob list --within 60 --organisation hlf", "certjob list --status expired --csv > expired.csv"),
)
def list_(
    call: Call,
    *,
    status: Statuses = None,
    within: Within = None,
    organisation: OrganisationSlug = None,
    with_left: Annotated[bool, typer.Option("--with-left", help="Include mentors who have left.")] = False,
    without_contact_id: Annotated[
        bool, typer.Option("--without-contact-id", help="Only portal mentors without a Dynamics contact ID.")
    ] = False,
    without_address: Annotated[
        bool, typer.Option("--without-address", help="Only mentors without an e-mail address.")
    ] = False,
    without_certificate: Annotated[
        bool, typer.Option("--without-certificate", help="Only active mentors who hold no certificate that counts.")
    ] = False,
    csv: Csv = False,
) -> int:
    """List who has which certificate, the earliest last day first. The options combine.

    The status is what the rules say today, even if no run has stored it yet. Paused shows the pauses open right now.
    """
    from certjob.cli.documents import print_document
    from certjob.cli.pages import listing
    from certjob.facts.lookup import find_organisation
    from certjob.reports.listing import Filter, list_certificates

    with call.session(interruptible=True) as opened:
        today = opened.settings.today
        wanted = Filter(
            statuses=frozenset(status or ()),
            within_days=within,
            organisation_id=find_organisation(opened.connection, organisation) if organisation else None,
            with_left=with_left,
            without_contact_id=without_contact_id,
            without_address=without_address,
            without_certificate=without_certificate,
        )
        found = list_certificates(opened.connection, today=today, wanted=wanted)
        if call.json:
            print_document(opened.connection, listing.to_document(found, today=today))
        elif csv:
            listing.print_list_csv(found.rows)
        else:
            listing.show_list(opened.output, found.rows)
    return call.name_left_out(found.broken)


@app.command(
    group=LOOKING,
    without=("quiet",),
    short_help="Show what the coming nightly runs will do.",
    examples=("certjob forecast", "certjob forecast --days 365 --json"),
)
def forecast(
    call: Call,
    *,
    days: Annotated[
        int,
        typer.Option(
            metavar="DAYS", help="The number of nights, today's included.", min=1, max=3650, show_default=True
        ),
    ] = 90,
    organisation: OrganisationSlug = None,
) -> int:
    """Show what the coming nightly runs will do if nobody renews, by week: expiries, reminders, pauses, hides.

    Computed by the same rules as the runs, one mentor after the other. Changes nothing.
    """
    from certjob.cli.documents import print_document
    from certjob.cli.pages import forecast as forecast_page
    from certjob.facts.lookup import find_organisation
    from certjob.reports.forecast import make_forecast

    with call.session(interruptible=True) as opened:
        organisation_id = find_organisation(opened.connection, organisation) if organisation else None
        with opened.output.progress() as progress:
            made = make_forecast(
                opened.connection,
                today=opened.settings.today,
                days=days,
                organisation_id=organisation_id,
                on_progress=progress.phase("Mentors with something to come"),
            )
        if call.json:
            print_document(opened.connection, forecast_page.to_document(made, organisation=organisation))
        else:
            forecast_page.show_forecast(opened.output, made)
    return call.name_left_out(made.broken)
