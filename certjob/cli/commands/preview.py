"""The command that shows a message before it is sent: preview."""

from typing import TYPE_CHECKING, Annotated

import typer

from certjob.cli.help import LOOKING
from certjob.cli.options import Locale, MentorArgument, OrganisationSlug, parse_recipient
from certjob.cli.session import Call, Commands, Session
from certjob.errors import UsageError

if TYPE_CHECKING:
    from certjob.reports.preview import Preview

app = Commands()


@app.command(
    group=LOOKING,
    without=("quiet",),
    short_help="Show a reminder before it is sent.",
    examples=("certjob preview M1042 --threshold 30", "certjob preview M1042 --send-to me@example.org"),
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
    send_to: Annotated[
        str | None,
        typer.Option(
            parser=parse_recipient,
            metavar="ADDRESS",
            help="Send it there, marked as a preview; nothing is noted in the database.",
        ),
    ] = None,
    organisation: OrganisationSlug = None,
) -> int:
    """Show one mentor's reminder as it will go out: the one that is due today, else the next. Nothing is changed.

    Exits 2 when there is no reminder to show, 3 when the mail server does not take it.
    """
    from certjob.cli.documents import print_document
    from certjob.cli.terminal.plain import print_note, print_result
    from certjob.facts.lookup import find_mentor
    from certjob.mail.messages.checking import open_templates
    from certjob.reports.preview import preview_reminder

    if html and (call.json or send_to is not None):
        message = "--html prints one part alone"
        raise UsageError(message, next_step="leave out --json and --send-to")
    with call.session(interruptible=True) as opened:
        shown = preview_reminder(
            opened.connection,
            find_mentor(opened.connection, mentor, organisation=organisation),
            today=opened.settings.today,
            threshold_days=threshold,
            locale=locale,
            templates=open_templates(opened.settings.templates_dir),
        )
        if send_to is not None:
            return _send(call, opened, shown, to=send_to)
        if call.json:
            print_document(opened.connection, {"outcome": "ok"} | _document(opened, shown))
            return 0
    print_note(call.command, shown.explanation)
    if html:
        print_result(shown.message.html.rstrip("\n"))
    else:
        _print(opened, shown)
    return 0


def _send(call: Call, opened: Session, shown: "Preview", *, to: str) -> int:
    from certjob.cli.documents import print_document
    from certjob.cli.terminal import plain
    from certjob.errors import ConfigurationError, NotifyError
    from certjob.mail.channels.notify import open_channel
    from certjob.reports.preview import send_copy

    channel = open_channel(opened.settings)
    if channel is None:
        message = "CERTJOB_NOTIFY_URL is not set, and --send-to needs it"
        raise ConfigurationError(message, next_step="set it, or leave out --send-to")
    try:
        send_copy(shown, channel, to=to)
    except NotifyError as error:
        if call.json:
            document = error.to_document() | {"code": "not_sent"}
            print_document(opened.connection, {"outcome": "attention", "error": document} | _document(opened, shown))
        call.attention(f"not sent: {error}")
        return 3
    if call.json:
        print_document(opened.connection, {"outcome": "ok", "sent_to": to} | _document(opened, shown))
    else:
        plain.print_note(call.command, shown.explanation)
    opened.output.line(f"sent to {to}")
    return 0


def _headers(opened: Session, shown: "Preview") -> dict[str, str]:
    from certjob.domain.addresses import parse_own_sender
    from certjob.mail.channels.notify import REHEARSAL_SENDER

    settings, message = opened.settings, shown.message
    url = settings.notify_url.get_secret_value() if settings.notify_url else ""
    no_sender = REHEARSAL_SENDER if url.startswith("maildir:") else "(CERTJOB_MAIL_FROM is not set)"
    usual = settings.mail_from or no_sender
    reply_to = parse_own_sender(message.reply_to)
    return {
        "From": message.sender if message.sender and parse_own_sender(message.sender) else usual,
        "To": message.to or "(no address)",
        "Subject": message.subject,
        **({"Reply-To": reply_to.specification} if reply_to is not None else {}),
    }


def _document(opened: Session, shown: "Preview") -> dict[str, object]:
    message = shown.message
    return {
        "mentor_id": message.mentor_id,
        "reply_to": None,
        **{name.lower().replace("-", "_"): value for name, value in _headers(opened, shown).items()},
        "explanation": shown.explanation,
        "sends_on": shown.sends_on,
        "threshold_days": message.threshold_days,
        "expires_on": message.expires_on,
        "locale": message.locale,
        "repeat": message.repeat,
        "text": message.text,
        "html": message.html,
    }


def _print(opened: Session, shown: "Preview") -> None:
    headers = [f"{name}: {value}" for name, value in _headers(opened, shown).items()]
    for line in (*headers, "", *shown.message.text.splitlines()):
        opened.output.text(line)
