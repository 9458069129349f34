"""The commands around the database itself: db migrate, db prune."""

from typing import Annotated

import typer

from certjob.cli.session import Call, Commands

app = Commands(help="The database: schema and retention.", no_args_is_help=True)


@app.command("migrate", short_help="Bring the schema up to date.", examples=("certjob db migrate",))
def db_migrate(call: Call) -> int:
    """Bring the schema up to date. Safe to repeat, to run twice at once, and to kill."""
    from certjob.cli.terminal import plain
    from certjob.cli.terminal.plain import print_warning
    from certjob.database import migrations

    with call.session(need_schema=False, interruptible=True) as opened:
        applied = migrations.migrate(opened.connection, warn=lambda text: print_warning(call.command, text))
    if call.json:
        plain.print_json({"outcome": "ok", "applied": [f"{m.version:04d}_{m.name}" for m in applied]})
    for migration in applied:
        opened.output.line(f"applied {migration.version:04d}_{migration.name}")
    if not applied:
        opened.output.line("the schema is up to date")
    return 0


@app.command(
    "prune",
    short_help="Delete old, finished rows.",
    examples=("certjob db prune --older-than 3y", "certjob db prune --older-than 18m"),
)
def db_prune(
    call: Call,
    *,
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE", help="How old it must be: 3y, 18m (months), 26w, 400d; at least 90 days."),
    ],
) -> int:
    """Delete finished rows older than AGE: portal events, resolved failures, audit, reminders, digests, runs.

    It never deletes anything open, or anything that a later run needs: what the portal confirmed last, whether this
    reminder was sent. Safe to repeat, to run beside a nightly run, and to stop.
    """
    from certjob.cli.terminal import plain
    from certjob.database import retention

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
