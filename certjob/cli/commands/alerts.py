"""The command of the day after: alerts, and what opens them again."""

from typing import TYPE_CHECKING, Annotated

import typer

from certjob.cli.help import LOOKING
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
) -> int:
    """Show what needs attention, most harmful first: why, and what to do.

    Exits 3 while there is any.
    """
    from datetime import datetime

    from certjob.cli.documents import print_document
    from certjob.cli.pages import alerts as alerts_page
    from certjob.errors import Outcome
    from certjob.reports import alerts as alerts_reports

    report = None
    with call.session(interruptible=not retry_all) as opened:
        if retry_all:
            report = _retry_all(opened)
        found = alerts_reports.read_alerts(opened.connection, today=opened.settings.today)
        outcome = Outcome.ATTENTION if found else Outcome.OK
        if report is not None and report.outcome is not Outcome.OK:
            outcome = report.outcome
        if call.json:
            document = report.to_document() if report is not None else {}
            document |= {"outcome": outcome, "alerts": [alert.to_document() for alert in found]}
            print_document(opened.connection, document)
        else:
            alerts_page.show_alerts(opened.output, found, now=datetime.now(opened.settings.zone))
    return call.end(outcome, report.reasons if report is not None else ())


def _retry_all(opened: Session) -> "RunReport":
    from certjob.jobs import nightly

    delivery = delivery_from(opened.settings)
    with opened.output.progress() as progress:
        return nightly.retry_all(
            opened.connection,
            today=opened.settings.today,
            delivery=delivery,
            stop=opened.stop,
            progress=progress,
            run_id=opened.run_id,
        )
