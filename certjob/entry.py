"""The command's outermost layer: signals in, exit codes out, every error as one line (or one JSON document)."""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import typer

from certjob.errors import CertjobError
from certjob.stopping import StopFlag, stop_on_signals

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer has click inside or beside it, as its version goes


def main() -> NoReturn:
    """Run the command that was typed and exit with the documented code."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure:
            reconfigure(errors="backslashreplace")  # a terminal that cannot show a name must not end the night
    code = run(sys.argv[1:], stop=stop_on_signals())
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `certjob alerts | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def run(arguments: Sequence[str], *, stop: StopFlag) -> int:
    """Run one command and return its exit code; nothing but a bug in here raises."""
    from certjob.cli import app

    try:
        result = typer.main.get_command(app).main(list(arguments), prog_name="certjob", obj=stop, standalone_mode=False)
    except typer.Exit as ended:
        return ended.exit_code
    except BrokenPipeError:
        return 0
    except (typer.Abort, KeyboardInterrupt):
        return _fail(arguments, stop.error())
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line and the right exit code
        return _fail(arguments, error)
    return result if isinstance(result, int) else 0


def _fail(arguments: Sequence[str], error: Exception) -> int:
    code, name, message = _describe(error, arguments)
    if "--json" in arguments:
        from certjob.console import print_json

        print_json({"outcome": "failed" if code != 3 else "attention", "error": {"code": name, "message": message}})
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    print(f"certjob {command}".strip() + ": " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    if name == "internal" and {"-v", "--verbose"} & set(arguments):
        traceback.print_exception(error)
    return code


def _describe(error: Exception, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Return (exit code, code of the JSON document, message)."""
    if isinstance(error, CertjobError):
        return error.exit_code, error.code, str(error)
    if isinstance(error, _UsageError):
        message = getattr(error, "format_message", lambda: str(error))()
        words = [word for word in arguments[:2] if not word.startswith("-")]
        return 2, "usage", f"{message} See `certjob {' '.join([*words[:1], '--help'])}`."
    import psycopg

    if isinstance(error, psycopg.Error):
        return _describe_database(error)
    return 1, "internal", f"internal error ({type(error).__name__}: {error}); run again with -v and report it"


def _describe_database(error: Exception) -> tuple[int, str, str]:
    import psycopg

    cause = (error.diag.message_primary if isinstance(error, psycopg.Error) else None) or str(error)
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return 2, "configuration", f"the database user lacks a right: {cause}; grant it or use another user"
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return 1, "database_unavailable", f"the database is read-only ({cause}); use the primary, or --dry-run"
    if isinstance(error, psycopg.OperationalError):
        return 1, "database_unavailable", f"the database went away: {cause}; what was committed is kept, run again"
    return 1, "database", f"the database refused a statement: {cause}"
