"""The commands that set certjob up and look after its database."""

from pathlib import Path
from typing import Annotated

import typer

from certjob.cli.logs import set_up_logs
from certjob.cli.options import parse_recipient
from certjob.cli.session import Call, Commands
from certjob.errors import Outcome

app = Commands(group="Setting up")
database = Commands(help="The database: schema and retention.")


@app.command(examples=("certjob check", "certjob check --send-test me@example.org"))
def check(
    call: Call,
    *,
    send_test: Annotated[
        str | None, typer.Option(parser=parse_recipient, metavar="ADDRESS", help="Send a test message to ADDRESS.")
    ] = None,
) -> int:
    """Test everything that a nightly run depends on: settings, database, portal, mail, templates.

    It does not write, and sends mail only with --send-test. Exits with 2 for a wrong configuration, 1 if a server
    cannot be reached, 3 for a warning.
    """
    from certjob.reports.check import everything
    from certjob.reports.check.findings import Finding, Verdict, check_page, exit_code_of, summary_line
    from certjob.settings import survey_settings

    found: list[Finding] = []
    with call.stop.interruptible():
        settings, problems = survey_settings(call.env_file)
        set_up_logs(verbose=call.verbose)
        with call.progress() as progress:
            advance = progress.phase("Checking")
            for finding in everything.check_everything(settings, problems=problems, test_to=send_test):
                found.append(finding)
                advance(len(found))
    code = exit_code_of(found)
    outcome = {0: Outcome.OK, 3: Outcome.ATTENTION}.get(code, Outcome.FAILED)
    shown = check_page(each for each in found if not call.quiet or each.verdict is not Verdict.OK)
    call.show({"outcome": outcome, "checks": [each.to_document() for each in found]}, shown, also_quiet=True)
    reason = summary_line(found)
    call.end(outcome, [reason] if reason else [])
    return code


@app.command(
    "edge-function",
    examples=("certjob edge-function supabase/functions",),
)
def edge_function(
    call: Call,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", show_default=False, help="The folder of the project's functions, such as supabase/functions."
        ),
    ],
) -> int:
    """Copy the portal's Edge Function into a new folder in DIR, and print its lines for config.toml.

    It overwrites no file.
    """
    from certjob.portal.edge_function import CONFIGURATION, copy_edge_function

    target = copy_edge_function(folder)
    call.say(f"copied to {target}; add these lines to config.toml", "note")
    call.show({"folder": str(target), "configuration": CONFIGURATION}, [CONFIGURATION.rstrip()])
    return 0


@database.command(
    "migrate",
    examples=("certjob db migrate", "certjob db migrate --sql > supabase/migrations/20270301120000_certjob.sql"),
)
def db_migrate(
    call: Call,
    *,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the schema as one SQL file instead of applying it.")
    ] = False,
    after: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --sql: only the migrations after number N.", show_default=False),
    ] = None,
) -> int:
    """Bring the schema up to date. It is safe to repeat, to run twice at once, and to kill.

    --sql is for a team whose own tool applies SQL files, such as Supabase's CLI. It needs no database.
    """
    from certjob.database import migrations
    from certjob.errors import UsageError

    if sql:
        text = migrations.script(after=after or 0)
        call.show({"sql": text}, [text])
        return 0
    if after is not None:
        message = "--after is for the SQL file"
        raise UsageError(message, next_step="add --sql")
    with call.session(need_schema=False, interruptible=True):
        applied = migrations.migrate(call.connection, warn=lambda text: call.say(text, "warning"))
    names = [f"{migration.version:04d}_{migration.name}" for migration in applied]
    call.show({"applied": names}, success="" if names else "the schema is up to date")
    for name in names:
        call.output.success(f"applied {name}")
    return 0


@database.command(
    "prune",
    examples=("certjob db prune --older-than 3y", "certjob db prune --older-than 18m"),
)
def db_prune(
    call: Call,
    *,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="The minimum age: 3y, 18m (months), 26w, 400d; at least 90 days.")
    ],
) -> int:
    """Delete finished rows older than AGE: portal events, resolved failures, audit, reminders, digests, runs.

    It never deletes open rows, or rows that prevent a second mail. It is safe to repeat, to run beside a nightly run,
    and to stop.
    """
    from certjob.database import retention
    from certjob.domain.explanations import number

    age = retention.parse_age(older_than)
    with call.session(), call.progress() as progress:
        deleted = retention.prune(
            call.connection,
            age,
            zone=call.settings.zone,
            stop=call.stop,
            on_progress=progress.phase("Deleting old rows"),
        )
    call.show({"deleted": deleted}, success=f"deleted {number(deleted, 'row')}")
    return 0


app.add_typer(database, name="db", rich_help_panel="Setting up")
