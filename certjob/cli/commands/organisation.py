"""The commands around the member organisations: organisation set, show, list."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from certjob.cli.session import Call, Commands

if TYPE_CHECKING:
    from certjob.facts.organisations import OrganisationDetails

app = Commands(help="The member organisations: their rules, contacts and coordinators.", no_args_is_help=True)

Slug = Annotated[str, typer.Argument(metavar="SLUG", show_default=False, help="Its short name, such as hlf.")]
Name = Annotated[
    str | None, typer.Option(metavar="NAME", help="Its name in messages.  [default: the slug in capitals]")
]
Portal = Annotated[
    Literal["dynamics", "none"] | None,
    typer.Option(metavar="dynamics|none", help="Whether its mentors are shown on the portal."),
]
Thresholds = Annotated[
    str | None,
    typer.Option(
        metavar="DAYS,…",
        help="Days before the expiry to remind on, negative = after it; none.  [default: 60,30,14,7,1,-1]",
    ),
]
OptionalKinds = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND", help="Certificate kind whose expiry does not pause mentors. Repeatable; none clears the list."
    ),
]
Coordinators = Annotated[
    list[str] | None,
    typer.Option(
        metavar="'[UUID] NAME <MAIL> [nb|nn|en]'",
        help="A coordinator; UUID = the app's user id, where known. The language is that of the daily mail.",
    ),
]
RemovedCoordinators = Annotated[
    list[str] | None, typer.Option(metavar="MAIL|UUID", help="Remove a coordinator. Repeatable.")
]
ContactEmail = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where mentors can write to.")]
ContactPhone = Annotated[str | None, typer.Option(metavar="NUMBER", help="Where mentors can call.")]
RenewalUrl = Annotated[str | None, typer.Option(metavar="URL", help="Where mentors renew a certificate.")]
Sender = Annotated[
    str | None, typer.Option(metavar="'NAME <MAIL>'", help="Who its mails are from.  [default: CERTJOB_MAIL_FROM]")
]


@app.command(
    "set",
    short_help="Create an organisation or change it.",
    examples=(
        "certjob organisation set hlf --name HLF --portal dynamics",
        "certjob organisation set hlf --thresholds 90,60,30,14,7,1,-1",
    ),
)
def organisation_set(
    call: Call,
    slug: Slug,
    *,
    name: Name = None,
    portal: Portal = None,
    thresholds: Thresholds = None,
    optional_kind: OptionalKinds = None,
    coordinator: Coordinators = None,
    remove_coordinator: RemovedCoordinators = None,
    contact_email: ContactEmail = None,
    contact_phone: ContactPhone = None,
    renewal_url: RenewalUrl = None,
    sender: Sender = None,
) -> int:
    """Create an organisation, or update only the options given.

    An empty text removes a contact, the address for renewals or the sender. Afterwards `certjob run --dry-run` shows
    what the next run will do.
    """
    from dataclasses import asdict

    from certjob.cli.terminal import plain
    from certjob.facts import organisations

    with call.session(interruptible=True) as opened:
        done = organisations.set_organisation(
            opened.connection,
            slug,
            optional_kinds=optional_kind,
            coordinators=coordinator or (),
            remove_coordinators=remove_coordinator or (),
            name=name,
            portal=portal,
            thresholds=thresholds,
            contact_email=contact_email,
            contact_phone=contact_phone,
            renewal_url=renewal_url,
            sender=sender,
        )
    if call.json:
        outcome = "attention" if done.open_hides else "ok"
        plain.print_json({"outcome": outcome, "organisation": slug} | asdict(done))
    opened.output.line(f"{slug}: {'created' if done.created else 'changed' if done.changed else 'nothing to change'}")
    if not done.open_hides:
        return 0
    call.attention(f"{slug}: hides that the portal has not confirmed: {done.open_hides:,}; hide these mentors by hand")
    return 3


@app.command("show", without=("quiet",), short_help="Show all that can be set of an organisation.")
def organisation_show(call: Call, slug: Slug) -> int:
    """Show all that can be set of an organisation, and its coordinators with the language of their daily mail."""
    from certjob.cli.terminal import plain
    from certjob.facts import organisations

    with call.session(interruptible=True) as opened:
        (details,) = organisations.read_organisation_details(opened.connection, slug)
    if call.json:
        plain.print_json({"outcome": "ok"} | _to_document(details))
        return 0
    opened.output.show_rows(("=What", slug), _rows(details, mail_from=opened.settings.mail_from))
    return 0


def _to_document(details: "OrganisationDetails") -> dict[str, Any]:
    from dataclasses import asdict

    document = asdict(details)
    return {"organisation_id": document.pop("id"), "organisation": document.pop("slug")} | document


def _rows(details: "OrganisationDetails", *, mail_from: str | None) -> Iterator[tuple[str, str]]:
    """Yield what each value is, and the value."""
    from dataclasses import asdict

    sender = details.sender or f"{mail_from or 'none'} (CERTJOB_MAIL_FROM)"
    for name, value in (asdict(details) | {"sender": sender}).items():
        if name not in ("id", "slug", "coordinators"):
            words = ",".join(map(str, value)) if isinstance(value, list) else value
            yield name.replace("_", "-"), "none" if words in (None, "") else str(words)
    for person in details.coordinators:
        who = f"{person.full_name or ''} <{person.email}> {person.locale} ({person.id})"
        yield "coordinator", who.strip()


@app.command("list", without=("quiet",))
def organisation_list(call: Call) -> int:
    """List the organisations with their rules."""
    from certjob.cli.terminal import plain
    from certjob.facts import organisations

    with call.session(interruptible=True) as opened:
        rows = organisations.read_organisation_details(opened.connection)
    if call.json:
        plain.print_json({"outcome": "ok", "organisations": list(map(_to_document, rows))})
        return 0
    headings = ("~Slug", "~Name", "=Portal", "Thresholds", ">Coordinators", ">Mentors")
    opened.output.show_rows(
        headings,
        [
            (
                row.slug,
                row.name,
                row.portal or "none",
                ", ".join(map(str, row.thresholds)) or "none",
                f"{len(row.coordinators)}",
                f"{row.mentors:,}",
            )
            for row in rows
        ],
    )
    return 0
