"""The commands that watch over certjob itself: check, status."""

from typing import Annotated

import typer

from certjob.cli.session import ENV_FILE, Json, LogFormat, Quiet, Verbose, parse_duration, session, set_up_logs


def check(
    context: typer.Context,
    *,
    send_test: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Send one message there that says that it is a test.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """Look at everything a night depends on, each with the next step: settings, database, portal, mail, templates.

    Changes nothing, and sends nothing without --send-test. Exits 2 for a wrong configuration, 1 for something that
    cannot be reached, 3 for a warning.
    """
    from certjob.cli.pages import check as checks_page
    from certjob.cli.terminal import output as console
    from certjob.cli.terminal import plain
    from certjob.settings import survey_settings
    from certjob.views.check import everything
    from certjob.views.check.findings import Finding, exit_code_of

    set_up_logs(verbose=verbose, log_format=log_format)
    _check_address(send_test)
    found: list[Finding] = []

    with context.obj.interruptible():
        settings, problems = survey_settings(context.meta.get(ENV_FILE))
        set_up_logs(verbose=verbose, log_format=log_format or settings.log_format)
        output = console.Output(quiet=quiet)
        for finding in everything.check_everything(settings, problems=problems):
            found.append(finding)
            if not json:
                checks_page.show_findings(output, [finding], quiet=quiet)
        if send_test is not None:
            found.append(everything.send_test(settings, to=send_test))
            if not json:
                checks_page.show_findings(output, found[-1:], quiet=quiet)
    code = exit_code_of(found)
    if json:
        outcome = {0: "ok", 3: "attention"}.get(code, "failed")
        plain.print_json({"outcome": outcome, "checks": [finding.to_document() for finding in found]})
    reason = checks_page.closing_line(found)
    if reason is not None:
        say = plain.print_attention if code == 3 else plain.print_error
        say("certjob check", reason)
    return code


def status(
    context: typer.Context,
    *,
    max_age: Annotated[
        str, typer.Option(metavar="TIME", help="How long ago the last good night may have ended, such as 26h.")
    ] = "26h",
    days: Annotated[
        int | None, typer.Option(min=1, max=366, help="List each of so many coming nights, today's first.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: LogFormat = None,
) -> int:
    """Show whether the nights run, what waits and since when, the last runs, and what comes. Changes nothing.

    A night is good when it came to its end over all organisations, even if someone has to act. Exits 3 when the
    last good one is older than --max-age, or there is none.
    """
    from datetime import timedelta

    from certjob.cli.pages import status as status_page
    from certjob.cli.terminal import plain
    from certjob.views.status import COMING_DAYS, read_status, to_document

    oldest = timedelta(seconds=parse_duration(max_age))
    with session(context, quiet=quiet, verbose=verbose, log_format=log_format, interruptible=True) as opened:
        settings = opened.settings
        found = read_status(
            opened.connection,
            today=settings.today,
            max_age=oldest,
            coming_days=days or COMING_DAYS,
            mail_waits_until=settings.mail_waits_until,
        )
    if json:
        plain.print_json(to_document(found))
    elif not quiet:
        status_page.show_status(opened.output, found, zone=opened.settings.zone, every_night=days is not None)
    reason = status_page.closing_line(found, zone=opened.settings.zone)
    if reason is not None:
        plain.print_attention("certjob status", reason)
    return 3 if found.stale else 0


def _check_address(address: str | None) -> None:
    """Refuse what no channel could send to, before anything is opened."""
    from certjob.domain.addresses import parse_address

    if address is None:
        return
    try:
        parse_address(address)
    except ValueError as error:
        message = f"--send-test {error}"
        raise typer.BadParameter(message) from None


def add_to(app: typer.Typer) -> None:
    """Register the commands, in the order in which --help shows them."""
    app.command(short_help="Look at everything a night depends on.")(check)
    app.command(short_help="Show the last runs and what waits.")(status)
