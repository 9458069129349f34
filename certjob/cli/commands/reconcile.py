"""The command that reads the portal: reconcile."""

from typing import Annotated

import typer

from certjob.cli.commands.runs import report_on
from certjob.cli.help import EVERY_NIGHT
from certjob.cli.options import AcceptDate, Allow, parse_allowed
from certjob.cli.session import Call, Commands, delivery_from

app = Commands()


@app.command(
    group=EVERY_NIGHT,
    starts_again=True,
    short_help="Read what the portal shows and push what differs.",
    examples=("certjob reconcile --dry-run",),
)
def reconcile(
    call: Call,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the portal and print the differences; change nothing.")
    ] = False,
    allow: Allow = [],  # noqa: B006 - typer copies it
    accept_date: AcceptDate = None,
) -> int:
    """Read what the portal shows, compare it with what certjob wants, and push only the differences.

    Run it every night after `certjob run`. If the portal lists none of more than 20 mentors who should be visible, it
    shows no one. It reports contacts of no mentor until they are gone or acknowledged. Exits 3 when something was held
    back or is left to do.
    """
    from certjob.jobs import reconcile as reconciling

    with call.session() as opened:
        with opened.output.progress() as progress:
            report = reconciling.reconcile(
                opened.connection,
                today=opened.settings.today,
                dry_run=dry_run,
                allow=parse_allowed(allow),
                accept_date=accept_date,
                run_id=opened.run_id,
                delivery=delivery_from(opened.settings),
                stop=opened.stop,
                progress=progress,
            )
        return report_on(call, opened, report)
