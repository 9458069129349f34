"""The commands: parse, build, call one function, print, choose the exit code."""

import typer

from certjob.cli import data, nights

app = typer.Typer(
    name="certjob",
    help="The nightly job of a peer-mentor programme: certificates, pauses, reminders, and the portal that must agree.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
nights.add_to(app)
data.add_to(app)
