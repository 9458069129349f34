"""The commands that set certjob up and look after its database."""

from pathlib import Path
from typing import Annotated

import typer

from certjob.cli.help import SETTING_UP
from certjob.cli.options import EnvFile, Json, Quiet, Verbose, parse_recipient
from certjob.cli.session import Call, Commands, set_up_logs
from certjob.cli.terminal import plain

app = Commands(group=SETTING_UP)
database = Commands(help="The database: schema and retention.", no_args_is_help=True)


@app.command(
    short_help="Test everything that a nightly run depends on.",
    examples=("certjob check", "certjob check --send-test me@example.org"),
)
def check(
    context: typer.Context,
    *,
    send_test: Annotated[
        str | None, typer.Option(parser=parse_recipient, metavar="ADDRESS", help="Send a test message to ADDRESS.")
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    env_file: EnvFile = None,
) -> int:
    """Test everything that a nightly run depends on: settings, database, portal, mail, templates.

    It does not write, and sends mail only with --send-test. Exits with 2 for a wrong configuration, 1 if a server
    cannot be reached, 3 for a warning.
    """
    from certjob.cli.pages import check as page
    from certjob.cli.terminal import output as console
    from certjob.reports.check import everything
    from certjob.reports.check.findings import Finding, Verdict, exit_code_of
    from certjob.settings import survey_settings

    call = Call(context=context, json=json, verbose=verbose, quiet=quiet, env_file=env_file)
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
        page.show_findings(output, [each for each in found if not (call.quiet and each.verdict is Verdict.OK)])
    if reason := page.summary_line(found):
        (plain.print_attention if code == 3 else plain.print_error)(call.command, reason)
    return code


@app.command(
    "edge-function",
    short_help="Copy the portal's Edge Function into a Supabase project.",
    examples=("certjob edge-function supabase/functions",),
)
def edge_function(
    context: typer.Context,
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", show_default=False, help="The folder of the project's functions, such as supabase/functions."
        ),
    ],
    *,
    json: Json = False,
    verbose: Verbose = False,
) -> int:
    """Copy the portal's Edge Function into a new folder in DIR, and print its lines for config.toml.

    It overwrites no file.
    """
    from certjob.portal.edge_function import CONFIGURATION, copy_edge_function

    call = Call(context=context, json=json, verbose=verbose)
    target = copy_edge_function(folder)
    if call.json:
        plain.print_json({"outcome": "ok", "folder": str(target), "configuration": CONFIGURATION})
        return 0
    plain.print_note(call.command, f"copied to {target}; add these lines to config.toml")
    plain.print_result(CONFIGURATION.rstrip())
    return 0


@database.command(
    "migrate",
    short_help="Bring the schema up to date.",
    examples=("certjob db migrate", "certjob db migrate --sql > supabase/migrations/20270301120000_certjob.sql"),
)
def db_migrate(
    context: typer.Context,
    *,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the schema as one SQL file instead of applying it.")
    ] = False,
    after: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --sql: only the migrations after number N.", show_default=False),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    env_file: EnvFile = None,
) -> int:
    """Bring the schema up to date. It is safe to repeat, to run twice at once, and to kill.

    --sql is for a team whose own tool applies SQL files, such as Supabase's CLI. It needs no database.
    """
    from certjob.database import migrations
    from certjob.errors import UsageError

    call = Call(context=context, json=json, verbose=verbose, quiet=quiet, env_file=env_file)
    if sql:
        text = migrations.script(after=after or 0)
        if call.json:
            plain.print_json({"outcome": "ok", "sql": text})
        else:
            plain.print_result(text)
        return 0
    if after is not None:
        message = "--after is for the SQL file"
        raise UsageError(message, next_step="add --sql")
    with call.session(need_schema=False, interruptible=True) as opened:
        applied = migrations.migrate(opened.connection, warn=lambda text: plain.print_warning(call.command, text))
    names = [f"{migration.version:04d}_{migration.name}" for migration in applied]
    if call.json:
        plain.print_json({"outcome": "ok", "applied": names})
    for line in [f"applied {name}" for name in names] or ["the schema is up to date"]:
        opened.output.line(line)
    return 0


@database.command(
    "prune",
    short_help="Delete old, finished rows.",
    examples=("certjob db prune --older-than 3y", "certjob db prune --older-than 18m"),
)
def db_prune(
    context: typer.Context,
    *,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="The minimum age: 3y, 18m (months), 26w, 400d; at least 90 days.")
    ],
    json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    env_file: EnvFile = None,
) -> int:
    """Delete finished rows older than AGE: portal events, resolved failures, audit, reminders, digests, runs.

    It never deletes open rows, or rows that prevent a second mail. It is safe to repeat, to run beside a nightly run,
    and to stop.
    """
    from certjob.database import retention

    call = Call(context=context, json=json, verbose=verbose, quiet=quiet, env_file=env_file)
    age = retention.parse_age(older_than)
    with call.session() as opened, opened.output.progress() as progress:
        deleted = retention.prune(
            opened.connection,
            age,
            zone=opened.settings.zone,
            stop=opened.stop,
            on_progress=progress.phase("Deleting old rows"),
        )
    if call.json:
        plain.print_json({"outcome": "ok", "deleted": deleted})
    elif opened.output.interactive:
        opened.output.line(f"deleted {deleted:,} {'row' if deleted == 1 else 'rows'}")
    return 0


app.add_typer(database, name="db", rich_help_panel=SETTING_UP)
