"""The command that shows a message before it is sent."""

from typing import TYPE_CHECKING, Annotated

import typer

from certjob.cli.options import Locale, OptionalMentor, OrganisationSlug
from certjob.cli.session import Call, Commands
from certjob.errors import UsageError
from certjob.redaction import harmless

if TYPE_CHECKING:
    from certjob.mail.message import OutgoingMessage
    from certjob.reports.preview import Preview
    from certjob.settings import Settings

app = Commands(group="Reports")


@app.command(examples=("certjob preview M1042 --threshold 30", "certjob preview --digest berit@hlf.example"))
def preview(
    call: Call,
    mentor: OptionalMentor = None,
    *,
    digest: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Instead: the digest that this coordinator would get now.")
    ] = None,
    threshold: Annotated[
        int | None,
        typer.Option(metavar="DAYS", help="The reminder for this threshold, as on its day; negative = after expiry."),
    ] = None,
    locale: Annotated[
        Locale | None, typer.Option(metavar="LOCALE", help="In nb, nn or en. Default: the mentor's language.")
    ] = None,
    organisation: OrganisationSlug = None,
) -> int:
    """Show one mentor's reminder before certjob sends it: today's, otherwise the next.

    With --digest, show a coordinator's digest. It sends and stores no mail. Exits with 2 if no message matches.
    """
    from certjob.cli.documents import add_names

    if (mentor is None) == (digest is None) or (digest is not None and (threshold is not None or locale is not None)):
        clash = "preview takes a mentor, with --threshold or --locale if wanted, or --digest ADDRESS"
        raise UsageError(clash, next_step="see `certjob preview --help`")
    with call.session(interruptible=True):
        shown = _preview(call, mentor or "", digest, organisation, threshold_days=threshold, locale=locale)
        message, headers = shown.message, _headers(call.settings, shown.message)
        names = ("mentor_id", "threshold_days", "expires_on", "locale", "repeat", "text", "html")
        document = {"outcome": "ok", "explanation": shown.explanation, "sends_on": shown.sends_on, "reply_to": None}
        document |= {name.lower().replace("-", "_"): value for name, value in headers.items()}
        document |= {name: getattr(message, name) for name in names}
        if message.mentor_id is not None:
            add_names(call.connection, [document])
    lines = (*(f"{name}: {value}" for name, value in headers.items()), "", *message.text.splitlines())
    call.say(shown.explanation, "note")
    call.show(document, ["\n".join(map(harmless, lines))])
    return 0


def _preview(
    call: Call,
    mentor: str,
    digest: str | None,
    organisation: str | None,
    *,
    threshold_days: int | None,
    locale: str | None,
) -> "Preview":
    """Return the digest of this coordinator or, without one, the reminder of this mentor."""
    from certjob.facts.lookup import find_mentor
    from certjob.mail.messages.templates import Templates
    from certjob.reports.preview import preview_digest, preview_reminder

    connection, settings = call.connection, call.settings
    today, templates = settings.today, Templates(settings.templates_dir)
    if digest is None:
        mentor_id = find_mentor(connection, mentor, organisation=organisation)
        return preview_reminder(
            connection, mentor_id, today=today, threshold_days=threshold_days, locale=locale, templates=templates
        )
    return preview_digest(
        connection,
        digest,
        organisation=organisation,
        today=today,
        templates=templates,
        zone=settings.zone,
        app_url=settings.app_url or "",
        operator_address=settings.operator_address or "",
    )


def _headers(settings: "Settings", message: "OutgoingMessage") -> dict[str, str]:
    from certjob.domain.addresses import parse_own_sender
    from certjob.mail.channels.notify import REHEARSAL_SENDER

    is_rehearsal = (settings.notify_url or "").startswith("maildir:")
    no_sender = REHEARSAL_SENDER if is_rehearsal else "(CERTJOB_MAIL_FROM is not set)"
    sender = message.sender if message.sender and parse_own_sender(message.sender) else None
    reply_to = parse_own_sender(message.reply_to)
    return {
        "From": sender or settings.mail_from or no_sender,
        "To": message.to or "(no address)",
        "Subject": message.subject,
        **({"Reply-To": reply_to.specification} if reply_to is not None else {}),
    }
