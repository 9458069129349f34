"""The commands: parse, build, call one function, print, choose the exit code."""

from typing import Annotated

import typer

from certjob import __version__
from certjob.cli.commands import alerts, data, health, inspect, preview, runs
from certjob.cli.session import Commands

app = Commands(
    name="certjob",
    no_args_is_help=True,
    add_completion=False,
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
    """The nightly job of a peer-mentor programme: certificates, pauses, reminders, and the portal that must agree."""


runs.add_to(app)
alerts.add_to(app)
preview.add_to(app)
inspect.add_to(app)
health.add_to(app)
data.add_to(app)
