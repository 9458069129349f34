"""The command line: options in, one function called, a page or a JSON document out, an exit code."""

from typing import Annotated, Final

import typer

from certjob import __version__
from certjob.cli.commands import data, every_night, looking, previewing, setting_up

EPILOG: Final = """\b
In trouble:
  certjob status            whether the nightly runs work, and the backlog
  certjob alerts            the problems, by mentor, and what to do
  certjob explain MENTOR    one mentor's history, and the next change

\b
Settings (environment variables, or lines of the file that --env-file names):
  CERTJOB_DATABASE_URL                        required
  CERTJOB_TIME_ZONE                           default Europe/Oslo
  CERTJOB_PORTAL_URL, _KEY                    the Edge Function of the portal
  CERTJOB_NOTIFY_URL, _USER, _PASSWORD        mail server or folder
  CERTJOB_MAIL_FROM                           sender of mails
  CERTJOB_BOUNCE_ADDRESS                      address for undeliverable mails
  CERTJOB_TEMPLATES_DIR                       your own message templates
  CERTJOB_APP_URL                             the app that digests link to
  CERTJOB_OPERATOR_ADDRESS                    contact address in digests
  CERTJOB_PING_URL                            an external monitor

\b
Exit codes:
  0  done
  1  failed: no database, an internal error, or stopped by a signal
  2  wrong usage or configuration
  3  finished, but someone has to act
  75 `bounces` only: the report was not saved, and the mail server retries
"""

app = typer.Typer(
    name="certjob",
    epilog=EPILOG,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
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
