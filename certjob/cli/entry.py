"""The entry point: signals in, exit codes out, every error as one line (or one JSON document)."""

import errno
import functools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from certjob.cli.output import discard_results, forgiving, print_json, say
from certjob.errors import (
    CertjobError,
    ConfigurationError,
    DatabaseError,
    DatabaseUnavailableError,
    DiskFullError,
    InternalError,
    UsageError,
)
from certjob.redaction import without_people, without_secrets
from certjob.stopping import STOP_SIGNALS, StopFlag, stop_on_signals

if TYPE_CHECKING:
    import psycopg

_TypersUsageError: Any = typer.BadParameter.__base__  # click is a part of some versions of Typer

WORKS_READ_ONLY = (
    "What works here: alerts, changes, check, explain, list, organisation show, preview, status, and with --dry-run "
    "reconcile and run"
)


@functools.cache
def _commands() -> Any:
    from certjob.cli.app import app

    return typer.main.get_command(app)


def main() -> NoReturn:
    """Run the command that was typed and exit with the documented code."""
    if os.environ.get("_CERTJOB_COMPLETE"):  # the shell asks for completions
        _commands().main(prog_name="certjob")
    if os.environ.get("COLUMNS") == "0":  # Rich would print nothing
        del os.environ["COLUMNS"]
    stop = stop_on_signals()
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)  # None: the parent process closed it
        setattr(sys, name, Path(os.devnull).open("w") if stream is None else forgiving(stream))  # noqa: SIM115
    code = run(sys.argv[1:], stop=stop)
    for number in STOP_SIGNALS:  # during the shutdown of the interpreter a signal would kill it without a line
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: Sequence[str], *, stop: StopFlag) -> int:
    """Run one command and return its exit code. Only a bug in this module raises."""
    code = _run(arguments, stop=stop)
    if stop.at_end is not None:
        stop.at_end(code)
    return code


def _run(arguments: Sequence[str], *, stop: StopFlag) -> int:
    command = _commands()
    try:
        try:
            with command.make_context("certjob", list(arguments), obj=stop) as context:
                result = command.invoke(context)
        except typer.Exit as ended:
            result = ended.exit_code
        finally:
            stop.end()
        sys.stdout.flush()  # a full disk is noticed here at the latest
    except KeyboardInterrupt:
        return _fail(arguments, stop.error())
    except Exception as error:  # noqa: BLE001 - any error becomes one line and the right exit code
        # An interrupted wait may cause other errors. The signal is the reason.
        return _fail(arguments, stop.error() if stop.is_set() and not isinstance(error, CertjobError) else error)
    return result if isinstance(result, int) else 0


def _fail(arguments: Sequence[str], error: Exception) -> int:
    """Print an error and return its exit code."""
    ours = to_certjob_error(error, arguments)
    needs_action = ours.exit_code == 3
    try:
        if "--json" in arguments:
            document = {key: text and without_secrets(text) for key, text in ours.to_document().items()}
            print_json({"outcome": "attention" if needs_action else "failed", "error": document})
        sys.stdout.flush()
    except OSError:  # stdout is on the full disk, and would fail again at the end
        discard_results()
    command = " ".join(["certjob", *_command_words(arguments)])
    is_traced = isinstance(ours, InternalError) and bool({"-v", "--verbose"} & set(arguments))
    say(command, str(ours), level="attention" if needs_action else "failed", error=error if is_traced else None)
    return ours.exit_code


def _command_words(arguments: Sequence[str]) -> list[str]:
    """Return the first arguments if they name a command, such as ``db migrate``."""
    words: list[str] = []
    command = _commands()
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument)
        if command is None:
            break
        words.append(argument)
    return words


def to_certjob_error(error: Exception, arguments: Sequence[str]) -> CertjobError:
    """Return any error as one of certjob's own."""
    if isinstance(error, CertjobError):
        return error
    if isinstance(error, _TypersUsageError):
        return _usage(error, arguments)
    if isinstance(error, UnicodeEncodeError) and "surrogate" in error.reason:
        return UsageError("an argument holds bytes that are not UTF-8", next_step="type it again")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFullError("no space is left on the disk", next_step="make room and run it again")
    import psycopg

    if isinstance(error, psycopg.Error):
        return _of_the_database(error)
    text = f"{type(error).__name__}: {without_people(str(error))}"
    return InternalError(f"internal error ({text})", next_step="run it again with -v and report it")


def _usage(error: Exception, arguments: Sequence[str]) -> UsageError:
    step = f"see `{' '.join(['certjob', *_command_words(arguments), '--help'])}`"
    text = getattr(error, "format_message", lambda: str(error))()
    return UsageError(text.removeprefix("Invalid value: ").replace("Value error, ", "").rstrip("."), next_step=step)


def _of_the_database(error: "psycopg.Error") -> CertjobError:
    import psycopg

    from certjob.database import is_lost
    from certjob.database.connection_errors import explain_late_rejection

    cause = without_people(error.diag.message_primary or str(error)).rstrip(".\n")
    step = "committed work is kept; run it again"
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        right = "grant it or use another user"
        return ConfigurationError(f"the database user lacks a right: {cause}", next_step=right)
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        primary = f"use the primary, or remove default_transaction_read_only. {WORKS_READ_ONLY}"
        return DatabaseUnavailableError(f"the database is read-only ({cause})", next_step=primary)
    rejection = explain_late_rejection(error) if isinstance(error, psycopg.OperationalError) else None
    if rejection is not None:
        return type(rejection)(without_people(rejection.message), next_step=rejection.next_step)
    if is_lost(error):
        return DatabaseUnavailableError(f"the database went away: {cause}", next_step=step)
    if isinstance(error, psycopg.OperationalError):
        return DatabaseError(f"the database could not do it now: {cause}", next_step=step)
    report = f"{step}, and if the error remains, report it"
    return DatabaseError(f"the database rejected a statement: {cause}", next_step=report)
