"""The parts of --help other than the options: commands in groups, examples, settings, exit codes."""

import re
from importlib.metadata import metadata
from typing import Any, Final

from typer.core import TyperCommand, TyperGroup

EVERY_NIGHT: Final = "Every night"
REPORTS: Final = "Reports"
DATA: Final = "Data"
SETTING_UP: Final = "Setting up"

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
  CERTJOB_NOTIFY_URL, _USER, _PASSWORD        mail server, webhook or folder
  CERTJOB_MAIL_FROM, _MAIL_HOURS              sender and hours of mails
  CERTJOB_BOUNCE_ADDRESS                      address for undeliverable mails
  CERTJOB_TEMPLATES_DIR                       your own message templates
  CERTJOB_APP_URL                             the app that digests link to
  CERTJOB_OPERATOR_ADDRESS                    contact address in digests
  CERTJOB_PING_URL                            an external monitor
  CERTJOB_LOG_FORMAT                          text (the default) or json

\b
Exit codes:
  0  done
  1  failed: no database, an internal error, or stopped by a signal
  2  wrong usage or configuration
  3  finished, but someone has to act
  75 `bounces` only: the report was not saved, and the mail server retries
"""


class GroupedHelp(TyperGroup):
    """A list of commands under headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each heading with its commands, in the order of their registration."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            heading = getattr(command, "rich_help_panel", "")
            groups.setdefault(heading, []).append((name, command.get_short_help_str(limit=70)))
        for heading, commands in groups.items():
            with formatter.section(heading):
                formatter.write_dl(commands)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the epilog, and the address of the documents at the end."""
        super().format_epilog(ctx, formatter)
        for url in metadata("certjob").get_all("Project-URL") or ():
            if url.startswith("Documentation, "):
                formatter.write(f"\n  Documents: {url.partition(', ')[2]}\n")


class PlainHelp(TyperCommand):
    """A command without the braces and types that some versions of Typer print around arguments and ranges."""

    def get_help(self, ctx: Any) -> str:
        """Return the help text."""
        text = re.sub(r"\{(\w[\w.]*)\}", r"\1", super().get_help(ctx))
        text = re.sub(r"(\d+)<=x<=(\d+)", r"\1 to \2", text)
        return re.sub("<(str|path)>", lambda word: " " * len(word[0]), text)


def examples(*lines: str) -> str:
    """Return the examples at the end of a command's help."""
    return "\n".join(("\b", "Examples:" if len(lines) > 1 else "Example:", *(f"  {line}" for line in lines)))
