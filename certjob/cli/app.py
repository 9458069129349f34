"""The commands: parse, build, call one function, print, choose the exit code."""

from typing import Annotated

import typer

from certjob import __version__
from certjob.cli.commands import (
    alerts,
    bounces,
    data,
    edge_function,
    health,
    inspect,
    organisation,
    preview,
    reconcile,
    runs,
    schema,
)
from certjob.cli.help import DATA, EPILOG, SETTING_UP, GroupedHelp
from certjob.cli.session import Commands

app = Commands(
    name="certjob",
    cls=GroupedHelp,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"certjob {__version__}")
        raise typer.Exit


@app.callback()
def certjob(
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Nightly job for peer-mentor programmes: updates certificates and pauses, sends reminders, syncs the portal."""


for commands in (runs, reconcile, bounces, health, alerts, inspect, preview, data):  # in the order of --help
    app.add_typer(commands.app)
app.add_typer(
    organisation.app,
    name="organisation",
    rich_help_panel=DATA,
    short_help="The member organisations: rules, contacts, coordinators.",
)
app.add_typer(edge_function.app)
app.add_typer(schema.app, name="db", rich_help_panel=SETTING_UP)
