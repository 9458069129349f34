"""The command that shows a message before it is sent: preview."""

from typing import TYPE_CHECKING, Annotated

import typer

from certjob.cli.help import LOOKING
from certjob.cli.options import Locale, MentorArgument, OrganisationSlug
from certjob.cli.session import Call, Commands
from certjob.errors import UsageError

if TYPE_CHECKING:
    from certjob.mail.message import OutgoingMessage
    from certjob.settings import Settings

app = Commands()


@app.command(
    group=LOOKING,
    without=("quiet",),
    short_help="Show a reminder before it is sent.",
    examples=("certjob preview M1042 --threshold 30", "certjob preview M1042 --html > page.html"),
)
def preview(
    call: Call,
    mentor: MentorArgument,
    *,
    threshold: Annotated[
        int | None,
        typer.Option(metavar="DAYS", help="The reminder for this threshold, as it reads on its day; negative = after."),
    ] = None,
    locale: Annotated[
        Locale | None, typer.Option(metavar="LOCALE", help="In nb, nn or en.  [default: the mentor's own]")
    ] = None,
    html: Annotated[bool, typer.Option("--html", help="Print the HTML part, and nothing else.")] = False,
    organisation: OrganisationSlug = None,
) -> int:
    """Show one mentor's reminder as it will be sent: the one that is due today, else the next. Changes nothing.

    Exits 2 if there is no reminder to show.
    """
    from certjob.cli.documents import print_document
    from certjob.cli.terminal.plain import print_note, print_result
    from certjob.facts.lookup import find_mentor
    from certjob.mail.messages.checking import open_templates
    from certjob.reports.preview import preview_reminder

    if html and call.json:
        clash = "--html prints one part alone"
        raise UsageError(clash, next_step="leave out --json")
    with call.session(interruptible=True) as opened:
        shown = preview_reminder(
            opened.connection,
            find_mentor(opened.connection, mentor, organisation=organisation),
            today=opened.settings.today,
            threshold_days=threshold,
            locale=locale,
            templates=open_templates(opened.settings.templates_dir),
        )
        message, headers = shown.message, _headers(opened.settings, shown.message)
        if call.json:
            document = {
                "outcome": "ok",
                "mentor_id": message.mentor_id,
                "reply_to": None,
                **{name.lower().replace("-", "_"): value for name, value in headers.items()},
                "explanation": shown.explanation,
                "sends_on": shown.sends_on,
                "threshold_days": message.threshold_days,
                "expires_on": message.expires_on,
                "locale": message.locale,
                "repeat": message.repeat,
                "text": message.text,
                "html": message.html,
            }
            print_document(opened.connection, document)
            return 0
    print_note(call.command, shown.explanation)
    if html:
        print_result(message.html.rstrip("\n"))
        return 0
    for line in (*(f"{name}: {value}" for name, value in headers.items()), "", *message.text.splitlines()):
        opened.output.text(line)
    return 0


def _headers(settings: "Settings", message: "OutgoingMessage") -> dict[str, str]:
    from certjob.domain.addresses import parse_own_sender
    from certjob.mail.channels.notify import REHEARSAL_SENDER

    url = settings.notify_url.get_secret_value() if settings.notify_url else ""
    no_sender = REHEARSAL_SENDER if url.startswith("maildir:") else "(CERTJOB_MAIL_FROM is not set)"
    sender = message.sender if message.sender and parse_own_sender(message.sender) else None
    reply_to = parse_own_sender(message.reply_to)
    return {
        "From": sender or settings.mail_from or no_sender,
        "To": message.to or "(no address)",
        "Subject": message.subject,
        **({"Reply-To": reply_to.specification} if reply_to is not None else {}),
    }
