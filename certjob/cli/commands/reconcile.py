"""The command that reads the portal: reconcile."""

import os
from typing import Annotated

import typer

from certjob.cli.commands.runs import report_on
from certjob.cli.help import EVERY_NIGHT
from certjob.cli.options import AcceptDate
from certjob.cli.session import Call, Commands, Session, delivery_from
from certjob.errors import UsageError

app = Commands()


@app.command(
    group=EVERY_NIGHT,
    starts_again=True,
    short_help="Read what the portal shows and push what differs.",
    examples=(
        "certjob reconcile --dry-run",
        "certjob reconcile --accept CONTACT --because 'works in the office'",
    ),
)
def reconcile(
    call: Call,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the portal and print the differences; change nothing.")
    ] = False,
    allow_mass_change: Annotated[
        bool, typer.Option("--allow-mass-change", help="Show also those whom the guard would hold back.")
    ] = False,
    accept: Annotated[
        str | None,
        typer.Option(
            metavar="CONTACT",
            help="Note that this contact, which is no mentor's, is shown on purpose. Reads nothing; needs --because.",
        ),
    ] = None,
    because: Annotated[str | None, typer.Option(metavar="TEXT", help="Why it is shown; for --accept.")] = None,
    accept_date: AcceptDate = None,
) -> int:
    """Read what the portal shows, compare it with what certjob wants, and push only the differences.

    Run it every night after `certjob run`. Too many mentors to be shown at once are held back; hides never are.
    Contacts that are no mentor's are reported until they are gone, or until somebody accepts them. Exits 3 when
    something was held back or is left to do.
    """
    from certjob.jobs import reconcile as reconciling

    if (accept is None) != (because is None):
        message = "--accept and --because belong together: the contact, and why it is shown"
        raise typer.BadParameter(message)
    if accept is not None and (dry_run or allow_mass_change):
        message = "--accept reads nothing and shows nobody"
        raise UsageError(message, next_step="give it without --dry-run and --allow-mass-change")
    with call.session() as opened:
        if accept is not None:
            return _accept(opened, accept, because=because or "", json=call.json)
        with opened.output.progress() as progress:
            report = reconciling.reconcile(
                opened.connection,
                today=opened.settings.today,
                dry_run=dry_run,
                allow_mass_change=allow_mass_change,
                accept_date=accept_date,
                run_id=opened.run_id,
                delivery=delivery_from(opened.settings),
                stop=opened.stop,
                progress=progress,
            )
        return report_on(call, opened, report)


def _accept(opened: Session, contact: str, *, because: str, json: bool) -> int:
    from uuid import UUID

    from certjob.cli.terminal import plain
    from certjob.errors import ConfigurationError
    from certjob.portal import comparison

    try:
        contact_id = UUID(contact)
    except ValueError:
        message = f"{contact[:60]!r} is not a contact ID"
        raise UsageError(message, next_step="`certjob alerts` shows them") from None
    if not because.strip():
        message = "--because is empty"
        raise UsageError(message, next_step="say why this contact is shown")
    who = os.environ.get("LOGNAME") or os.environ.get("USER") or f"user {os.geteuid()}"
    if not comparison.accept(opened.connection, contact_id, because=because.strip()[:1000], who=who[:200]):
        message = f"the last reading of the portal did not find {contact_id} as an unknown contact"
        raise ConfigurationError(message, next_step="nothing was changed; `certjob alerts` lists those that it found")
    if json:
        plain.print_json({"outcome": "ok", "accepted": str(contact_id), "by": who})
    elif opened.output.interactive:
        opened.output.result(f"{contact_id} is accepted: it is no longer reported while it is shown.")
    return 0
