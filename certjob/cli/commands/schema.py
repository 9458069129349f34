"""The commands around the database itself: db migrate, db status, db prune."""

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
    "status", without=("quiet",), examples=("certjob db status",), short_help="Show which migrations are applied."
)
def db_status(call: Call) -> int:
    """Show which migrations are applied. Exits 3 while one is pending."""
    from certjob.cli.terminal import output, plain
    from certjob.database import migrations

    with call.session(need_schema=False, interruptible=True) as opened:
        found = migrations.status(opened.connection)
    pending = sum(migration.applied_at is None for migration in found)
    names = [f"{migration.version:04d}_{migration.name}" for migration in found]
    times = [m.applied_at and m.applied_at.astimezone(opened.settings.zone) for m in found]
    if call.json:
        document = [{"migration": name, "applied_at": at} for name, at in zip(names, times, strict=True)]
        plain.print_json({"outcome": "attention" if pending else "ok", "migrations": document})
    else:
        rows = [(name, f"{at:%Y-%m-%d %H:%M}" if at else "pending") for name, at in zip(names, times, strict=True)]
        output.show_rows(opened.output, ("Migration", "Applied"), rows)
    if pending:
        what = "1 migration is" if pending == 1 else f"{pending} migrations are"
        call.attention(f"{what} pending; run `certjob db migrate`")
    return 3 if pending else 0


@app.command(
    "prune",
    short_help="Delete what is done and old.",
    examples=("certjob db prune --older-than 3y --dry-run", "certjob db prune --older-than 18m"),
)
def db_prune(
    call: Call,
    *,
    older_than: Annotated[
        str,
        typer.Option(metavar="AGE", help="How old it must be: 3y, 18m (months), 26w, 400d; at least 90 days."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would be deleted.")] = False,
) -> int:
    """Delete what is done and older than AGE: portal events, resolved failures, audit, reminders, digests, runs.

    Never anything open, never an unresolved failure, and nothing that a later run needs: what the portal
    confirmed last, whether this reminder was sent. Safe to repeat, to run beside a nightly run, and to stop.
    """
    from certjob.cli.terminal import output, plain
    from certjob.database import retention

    age = retention.parse_age(older_than)
    with (
        call.session(outlasts_restarts=True) as opened,
        opened.output.progress() as progress,
    ):
        pruning = retention.prune(
            opened.connection,
            age,
            today=opened.settings.today,
            zone=opened.settings.zone,
            dry_run=dry_run,
            stop=opened.stop,
            on_progress=progress.phase("Counting old rows" if dry_run else "Deleting old rows"),
        )
    if call.json:
        document = {"outcome": "ok", "dry_run": dry_run, "before": pruning.before}
        plain.print_json(document | {"would_delete" if dry_run else "deleted": pruning.rows})
    elif dry_run or opened.output.interactive:
        rows = [(name.replace("_", " "), f"{number:,}") for name, number in pruning.rows.items()]
        heading = f"{'Done' if dry_run else 'Deleted, done'} before {pruning.before:%Y-%m-%d}"
        output.show_rows(opened.output, (heading, ">Rows"), rows)
    return 0
