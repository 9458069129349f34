"""The command line: options in, one function called, a page or a JSON document out, an exit code."""

from typing import Annotated

import typer

from certjob import __version__
from certjob.cli.commands import data, every_night, looking, previewing, setting_up
from certjob.cli.help import EPILOG, GroupedHelp
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


for commands in (every_night, looking, previewing, data, setting_up):  # in the order of --help
    app.add_typer(commands.app)
