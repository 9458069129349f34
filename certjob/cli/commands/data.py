"""The commands that enter data: ``load``, and ``organisation`` for the rules of a member organisation."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from certjob.cli.options import HiddenBecause, HiddenByHand
from certjob.cli.session import Call, Commands
from certjob.errors import UsageError
from certjob.page import Line, Table

if TYPE_CHECKING:
    from certjob.facts.organisations import OrganisationDetails

app = Commands(group="Data")
organisation = Commands(help="The member organisations: their rules, contacts and coordinators.")

Slug = Annotated[str, typer.Argument(metavar="SLUG", show_default=False, help="Its short name, such as hlf.")]


@app.command(
    examples=(
        "certjob load people.csv --dry-run",
        "certjob load --undo --dry-run",
    ),
)
def load(
    call: Call,
    file: Annotated[Path | None, typer.Argument(metavar="FILE.csv", show_default=False, help="The CSV file.")] = None,
    *,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print each change and what the next run would do, without writes."),
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Undo the last load, except rows that were changed since.")
    ] = False,
) -> int:
    """Load mentors and certificates from a CSV file. Existing rows are updated, never duplicated or deleted.

    The first line names the columns: organisation, member_no, kind, issued_on and expires_on; optionally revoked_on,
    full_name, email, locale, dynamics_contact_id and left_on. Dates are 2026-12-31 or 31.12.2026.

    An empty cell leaves the value unchanged. If a line is bad, its mentor is skipped, the others are loaded, and the
    command exits with 3. A file without certificate columns corrects known mentors. The command prints what the next
    run will do, with names, and which changes it will hold back.
    """
    from certjob.jobs import load as job

    if (file is None) is not undo:
        message = "give a file, or --undo without one"
        raise typer.BadParameter(message)
    with call.session(interruptible=True):
        today, zone = call.settings.today, call.settings.zone
        if file is None:
            undone = job.undo(call.connection, today=today, dry_run=dry_run)
        else:
            loaded = job.load(call.connection, _read(file), today=today, dry_run=dry_run)
    if file is None:
        call.show(undone.to_document(), undone.page(today=today, zone=zone))
        for line in undone.kept():
            call.say(line)
        for line in undone.next_run.notes():
            call.say(line, "note")
        return 3 if undone.undone.kept else 0
    report = loaded.report
    call.show(loaded.to_document(), loaded.page(with_numbers=call.output.interactive))
    for line, is_warning in job.problem_lines(report.problems):
        call.say(line, "warning" if is_warning else "attention")
    if report.skipped:
        call.say(f"{report.skipped:,} of {report.rows:,} rows were skipped, {report.rows - report.skipped:,} loaded")
    for line in (*loaded.doubts(), *loaded.next_run.notes()):
        call.say(line, "note")
    return 3 if report.skipped else 0


def _read(file: Path) -> bytes:
    """Return the bytes of a file, up to one more than the limit. Raises InputError."""
    from certjob.errors import InputError
    from certjob.facts.roster import SIZE_LIMIT

    try:
        with file.open("rb") as stream:
            return stream.read(SIZE_LIMIT + 1)
    except OSError as error:
        message = f"{file} cannot be read ({error.strerror or type(error).__name__})"
        raise InputError(message, next_step="check the path and its permissions") from error


Name = Annotated[str | None, typer.Option(metavar="NAME", help="Its name in messages. Default: the slug in capitals.")]
Portal = Annotated[
    Literal["dynamics", "none"] | None,
    typer.Option(metavar="dynamics|none", help="Whether its mentors are shown on the portal."),
]
Thresholds = Annotated[
    str | None,
    typer.Option(
        metavar="DAYS,…",
        help="Days before the expiry to remind on, negative = after it; none. Default: 60,30,14,7,1,-1.",
    ),
]
OptionalKinds = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND",
        help="Certificate kind whose expiry does not pause mentors. May be repeated; none clears the list.",
    ),
]
Coordinators = Annotated[
    list[str] | None,
    typer.Option(
        metavar="'[UUID] NAME <MAIL> [nb|nn|en]'",
        help="A coordinator; UUID = the app's user id, if known. The language is that of the daily mail.",
    ),
]
RemovedCoordinators = Annotated[
    list[str] | None, typer.Option(metavar="MAIL|UUID", help="Remove a coordinator. May be repeated.")
]
ContactEmail = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where mentors can write to.")]
ContactPhone = Annotated[str | None, typer.Option(metavar="NUMBER", help="Where mentors can call.")]
RenewalUrl = Annotated[str | None, typer.Option(metavar="URL", help="Where mentors renew a certificate.")]
Sender = Annotated[
    str | None, typer.Option(metavar="'NAME <MAIL>'", help="The sender of its mails. Default: CERTJOB_MAIL_FROM.")
]


@organisation.command(
    "set",
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
    hidden_by_hand: HiddenByHand = False,
    because: HiddenBecause = "",
) -> int:
    """Create an organisation, or update only the options given.

    An empty text removes a contact, the address for renewals or the sender. Afterwards, `certjob run --dry-run` shows
    the changes that the next run will make. With `--portal none`, --hidden-by-hand confirms every open hide.
    """
    from certjob.domain.explanations import number
    from certjob.facts import organisations
    from certjob.jobs.acknowledge import confirm_all_hidden

    if (hidden_by_hand or because) and not (hidden_by_hand and because.strip() and portal == organisations.NONE):
        message = "--hidden-by-hand requires --because and --portal none"
        raise UsageError(message, next_step="run `certjob resync MENTOR --hidden-by-hand` for a single mentor")
    with call.session(interruptible=True):
        done = organisations.set_organisation(
            call.connection,
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
        by_hand = confirm_all_hidden(call.connection, slug, because=because) if hidden_by_hand else 0
        reminders = _coming_reminders(call, slug) if thresholds is not None else 0
    open_hides = 0 if hidden_by_hand else done.open_hides
    document = {"outcome": "attention" if open_hides else "ok", "organisation": slug} | asdict(done)
    document |= {"open_hides": open_hides, "hidden_by_hand": by_hand, "coming_reminders": reminders}
    changed = "; ".join(f"{each.option} {each.old} → {each.new}" for each in done.changes)
    words = [f"{slug}: {'created' if done.created else changed or 'nothing to change'}"]
    if reminders:
        words.append(f"the next run will queue {number(reminders, 'reminder')}")
    if by_hand:
        words.append(f"hidden by hand: {number(by_hand, 'mentor')}")
    call.show(document, success="; ".join(words))
    if not open_hides:
        return 0
    step = "hide these mentors by hand, then repeat it with --hidden-by-hand --because TEXT"
    call.say(f"{slug}: hides that the portal has not confirmed: {open_hides:,}; {step}")
    return 3


def _coming_reminders(call: Call, slug: str) -> int:
    """Return the number of reminders that the next run of an organisation will queue."""
    from certjob.facts.lookup import find_organisation
    from certjob.jobs.planning import plan_next_run

    organisation_id = find_organisation(call.connection, slug)
    plan = plan_next_run(call.connection, today=call.settings.today, organisation_id=organisation_id)
    return plan.review.reminders_queued


@organisation.command("show", examples=("certjob organisation show", "certjob organisation show hlf"))
def organisation_show(
    call: Call,
    slug: Annotated[
        str | None, typer.Argument(metavar="SLUG", show_default=False, help="One of them. Default: all.")
    ] = None,
) -> int:
    """Show the rules of all organisations, or all values of one, with its coordinators and their languages."""
    from certjob.facts import organisations

    with call.session(interruptible=True):
        found = organisations.read_organisation_details(call.connection, slug)
    call.show(
        {"organisations": list(map(_to_document, found))},
        [Table(map(_row, found), _SHOWN)] if slug is None else _lines(found[0], mail_from=call.settings.mail_from),
    )
    return 0


_SHOWN = {"organisation": "Slug", "name": "Name", "portal": "Portal", "thresholds": "Thresholds"}
_SHOWN |= {"coordinators": "Coordinators", "mentors": "Mentors"}


def _row(details: "OrganisationDetails") -> dict[str, object]:
    thresholds = ", ".join(f"{-days} after" if days < 0 else str(days) for days in details.thresholds) or "none"
    number = len(details.coordinators)
    row = {"portal": details.portal or "none", "thresholds": thresholds, "coordinators": number}
    return _to_document(details) | row


def _to_document(details: "OrganisationDetails") -> dict[str, Any]:
    document = asdict(details)
    return {"organisation_id": document.pop("id"), "organisation": document.pop("slug")} | document


def _lines(details: "OrganisationDetails", *, mail_from: str | None) -> Iterator[Line]:
    """Yield each value with its name."""
    from certjob.facts.organisations import value_words

    sender = details.sender or f"{mail_from or 'none'} (CERTJOB_MAIL_FROM)"
    for name, value in (_to_document(details) | {"sender": sender}).items():
        if name not in ("organisation_id", "organisation", "coordinators"):
            yield Line(value_words(value), head=f"{name.replace('_', '-')}: ")
    for person in details.coordinators:
        yield Line(str(person), head="coordinator: ")


app.add_typer(organisation, name="organisation", rich_help_panel="Data")
