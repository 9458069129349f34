"""The commands of the day after: alerts, what opens them again, and what leaves one out for some time."""

from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer

from certjob.cli.help import EVERY_NIGHT, LOOKING
from certjob.cli.options import parse_day
from certjob.cli.session import Call, Commands, Session, delivery_from

if TYPE_CHECKING:
    from certjob.jobs.report import RunReport

app = Commands()


@app.command(
    group=LOOKING,
    without=("quiet",),
    short_help="Show what needs attention, and what to do.",
    examples=("watch certjob alerts", "certjob alerts --retry-all"),
)
def alerts(
    call: Call,
    *,
    retry_all: Annotated[
        bool,
        typer.Option("--retry-all", help="First retry every open push, blocked ones included."),
    ] = False,
    acknowledged: Annotated[
        bool, typer.Option("--acknowledged", help="Only what someone has acknowledged, until when, and why.")
    ] = False,
) -> int:
    """Show what needs attention, most harmful first: why, and what to do.

    Exits 3 while there is any.
    """
    from datetime import datetime

    from certjob.cli.documents import print_document
    from certjob.cli.pages import alerts as alerts_page
    from certjob.errors import Outcome
    from certjob.reports import alerts as alerts_reports

    if acknowledged and retry_all:
        message = "--acknowledged works without --retry-all"
        raise typer.BadParameter(message)
    report = None
    with call.session(interruptible=not retry_all) as opened:
        if retry_all:
            report = _retry_all(opened)
        today = opened.settings.today
        found = alerts_reports.read_alerts(opened.connection, today=today, acknowledged=acknowledged)
        number = 0 if acknowledged else alerts_reports.count_acknowledged(opened.connection, today=today)
        outcome = Outcome.ATTENTION if found and not acknowledged else Outcome.OK
        if report is not None and report.outcome is not Outcome.OK:
            outcome = report.outcome
        if call.json:
            document = report.to_document() if report is not None else {}
            document |= {"outcome": outcome, "alerts": [alert.to_document() for alert in found]}
            document |= {} if acknowledged else {"acknowledged": number}
            print_document(opened.connection, document)
        else:
            now = datetime.now(opened.settings.zone)
            alerts_page.show_alerts(opened.output, found, now=now, acknowledged=number)
    return call.end(outcome, report.reasons if report is not None else ())


def _retry_all(opened: Session) -> "RunReport":
    from certjob.jobs import runs

    delivery = delivery_from(opened.settings)
    with opened.output.progress() as progress:
        return runs.retry_all(
            opened.connection,
            today=opened.settings.today,
            delivery=delivery,
            stop=opened.stop,
            progress=progress,
            run_id=opened.run_id,
        )


@app.command(
    group=EVERY_NIGHT,
    short_help="Leave one alert out of lists, exit codes and digests.",
    examples=("certjob acknowledge hlf:held:pauses --because import --until 2027-01-15",),
)
def acknowledge(
    call: Call,
    alert: Annotated[
        str, typer.Argument(metavar="ALERT", help="Its id, as `certjob alerts` prints it.", show_default=False)
    ],
    *,
    because: Annotated[
        str, typer.Option(metavar="TEXT", help="Why nothing has to be done now.", show_default=False)
    ] = "",
    until: Annotated[
        date | None,
        typer.Option(parser=parse_day, metavar="DATE", help="The last day, at most 31 days ahead."),
    ] = None,
) -> int:
    """Leave one alert out of lists, exit codes and digests up to a day, or until its cause changes.

    --until may be left out for a contact of no mentor, and for a hide that certjob can no longer make.
    """
    from certjob.cli.terminal import plain
    from certjob.jobs import acknowledge as job

    with call.session() as opened:
        today = opened.settings.today
        who = job.acknowledge(opened.connection, alert, because=because, until=until, today=today)
        if call.json:
            plain.print_json({"outcome": "ok", "alert_id": alert, "until": until, "by": who})
        elif opened.output.interactive:
            opened.output.result(f"{alert} is acknowledged" + (f" until {until}." if until else "."))
    return 0
