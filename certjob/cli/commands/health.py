"""The commands that watch over certjob itself: check, status."""

from typing import Annotated

import typer

from certjob.cli.help import LOOKING, SETTING_UP
from certjob.cli.options import parse_duration, parse_recipient
from certjob.cli.session import Call, Commands, set_up_logs

app = Commands()


@app.command(
    group=SETTING_UP,
    short_help="Test everything that a nightly run depends on.",
    examples=("certjob check", "certjob check --send-test me@example.org"),
)
def check(
    call: Call,
    *,
    send_test: Annotated[
        str | None, typer.Option(parser=parse_recipient, metavar="ADDRESS", help="Send a test message to ADDRESS.")
    ] = None,
) -> int:
    """Test everything that a nightly run depends on: settings, database, portal, mail, templates.

    Changes nothing, and sends nothing without --send-test. Exits 2 for a wrong configuration, 1 for something that
    cannot be reached, 3 for a warning.
    """
    from certjob.cli.pages import check as checks_page
    from certjob.cli.terminal import output as console
    from certjob.cli.terminal import plain
    from certjob.reports.check import everything
    from certjob.reports.check.findings import Finding, Verdict, exit_code_of
    from certjob.settings import survey_settings

    found: list[Finding] = []

    with call.stop.interruptible():
        settings, problems = survey_settings(call.env_file)
        set_up_logs(verbose=call.verbose, log_format=settings.log_format)
        output = console.Output(quiet=call.quiet)
        with output.progress() as progress:
            advance = progress.phase("Checking")
            for finding in everything.check_everything(settings, problems=problems, test_to=send_test):
                found.append(finding)
                advance(len(found))
    code = exit_code_of(found)
    if call.json:
        outcome = {0: "ok", 3: "attention"}.get(code, "failed")
        plain.print_json({"outcome": outcome, "checks": [finding.to_document() for finding in found]})
    else:
        shown = [finding for finding in found if finding.verdict is not Verdict.OK] if call.quiet else found
        checks_page.show_findings(output, shown)
    reason = checks_page.closing_line(found)
    if reason is not None:
        say = plain.print_attention if code == 3 else plain.print_error
        say(call.command, reason)
    return code


@app.command(
    group=LOOKING,
    short_help="Show whether the nightly runs work, and what waits.",
    examples=("certjob status", "certjob status -q --max-age 26h"),
)
def status(
    call: Call,
    *,
    max_age: Annotated[
        float,
        typer.Option(
            parser=parse_duration,
            metavar="TIME",
            show_default=False,
            help="How long ago the last good run may have ended.  [default: 26h]",
        ),
    ] = 26 * 3600.0,
) -> int:
    """Show whether the nightly runs work, what waits and since when, the last runs, and what comes. Changes nothing.

    A night is good when it came to its end over all organisations, even if someone has to act. Exits 3 when the
    last good one is older than --max-age, or there is none, and while `certjob alerts` shows anything.
    """
    from datetime import timedelta

    from certjob.cli.pages import status as status_page
    from certjob.cli.terminal import plain
    from certjob.reports.status import read_status, to_document

    with call.session(interruptible=True) as opened:
        settings = opened.settings
        found = read_status(
            opened.connection,
            today=settings.today,
            max_age=timedelta(seconds=max_age),
            mail_waits_until=settings.mail_waits_until,
        )
    if call.json:
        plain.print_json(to_document(found))
    elif not call.quiet:
        status_page.show_status(opened.output, found, zone=opened.settings.zone)
    reason = status_page.closing_line(found, zone=opened.settings.zone)
    if reason is not None:
        call.attention(reason)
    return found.exit_code
