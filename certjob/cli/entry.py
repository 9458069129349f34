"""The command's outermost layer: signals in, exit codes out, every error as one line (or one JSON document)."""

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from certjob.cli.terminal.streams import discard_results, forgiving
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

_TypersUsageError: Any = typer.BadParameter.__base__  # typer has click inside or beside it, as its version goes

WORKS_READ_ONLY = (
    "What works here: alerts, check, explain, forecast, list, organisation list, organisation show, preview, status, "
    "and with --dry-run reconcile and run"
)


def main() -> NoReturn:
    """Run the command that was typed and exit with the documented code."""
    if os.environ.get("_CERTJOB_COMPLETE"):  # the shell asks for completions
        from certjob.cli.app import app

        typer.main.get_command(app).main(prog_name="certjob")
    stop = stop_on_signals()
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - it serves until the end
        else:
            setattr(sys, name, forgiving(stream))
    code = run(sys.argv[1:], stop=stop)
    try:
        sys.stdout.flush()
    except OSError as error:
        discard_results()
        code = _fail(sys.argv[1:], error)
    # While the interpreter shuts down they would kill it, without a line.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: Sequence[str], *, stop: StopFlag) -> int:
    """Run one command and return its exit code; nothing but a bug in here raises."""
    code = _run(arguments, stop=stop)
    if stop.at_end is not None:
        stop.at_end(code)
    return code


def _run(arguments: Sequence[str], *, stop: StopFlag) -> int:
    from certjob.cli.app import app

    command = typer.main.get_command(app)
    try:
        try:
            with command.make_context("certjob", list(arguments), obj=stop) as context:
                result = command.invoke(context)
        finally:
            stop.end()
    except typer.Exit as ended:
        return ended.exit_code
    except KeyboardInterrupt:
        return _fail(arguments, stop.error())
    except Exception as error:  # noqa: BLE001 - the last line of defence: one line and the right exit code
        # What a broken off wait leaves behind may break, too: the signal is the reason.
        return _fail(arguments, stop.error() if stop.is_set() and not isinstance(error, CertjobError) else error)
    return result if isinstance(result, int) else 0


def _fail(arguments: Sequence[str], error: Exception) -> int:
    from certjob.cli.session import set_up_logs
    from certjob.cli.terminal.logs import writes_json
    from certjob.cli.terminal.plain import print_attention, print_error, print_json

    if not writes_json():  # it failed before it set up its logs
        set_up_logs(verbose=False)
    ours = _as_ours(error, arguments)
    code = ours.exit_code
    try:
        if "--json" in arguments:
            said = {key: text and without_secrets(text) for key, text in ours.to_document().items()}
            print_json({"outcome": "failed" if code != 3 else "attention", "error": said})
        sys.stdout.flush()
    except OSError:  # a full disk: stdout is what failed, and would fail again at the end
        discard_results()
    trace = isinstance(ours, InternalError) and bool({"-v", "--verbose"} & set(arguments))
    name_of_command = " ".join(["certjob", *_command_words(arguments)])
    if code == 3:
        print_attention(name_of_command, str(ours))
    else:
        print_error(name_of_command, str(ours), error=error if trace else None)
    return code


def _command_words(arguments: Sequence[str]) -> list[str]:
    """Return the words that name a command, such as ``db migrate``, as far as there is one of that name."""
    from certjob.cli.app import app

    words: list[str] = []
    command: Any = typer.main.get_command(app)
    for argument in arguments:
        command = getattr(command, "commands", {}).get(argument)
        if command is None:
            break
        words.append(argument)
    return words


def _as_ours(error: Exception, arguments: Sequence[str]) -> CertjobError:
    """Return what went wrong as one of certjob's own errors, whoever raised it."""
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
    said = f"{type(error).__name__}: {without_people(str(error))}"
    return InternalError(f"internal error ({said})", next_step="run it again with -v and report it")


def _usage(error: Exception, arguments: Sequence[str]) -> UsageError:
    step = f"see `{' '.join(['certjob', *_command_words(arguments), '--help'])}`"
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the whole help
        return UsageError("no command was given", next_step=step)
    said = getattr(error, "format_message", lambda: str(error))()
    said = said.removeprefix("Invalid value: ").replace("Value error, ", "").rstrip(".")
    said = re.sub(r"Input should (be [^,]*).*", r"it must \1", said)
    return UsageError(f"{said[:1].lower()}{said[1:]}", next_step=step)


def _of_the_database(error: "psycopg.Error") -> CertjobError:
    import psycopg

    from certjob.database import is_lost
    from certjob.database.connection_errors import explain_late_refusal

    cause = without_people(error.diag.message_primary or str(error))
    kept = "what was committed is kept, run it again"
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        step = "grant it or use another user"
        return ConfigurationError(f"the database user lacks a right: {cause}", next_step=step)
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        step = f"use the primary, or remove default_transaction_read_only. {WORKS_READ_ONLY}"
        return DatabaseUnavailableError(f"the database is read-only ({cause})", next_step=step)
    if not isinstance(error, psycopg.OperationalError) and not is_lost(error):
        step = f"{kept}, and if it stays so, report it"
        return DatabaseError(f"the database refused a statement: {cause}", next_step=step)
    refusal = explain_late_refusal(error) if isinstance(error, psycopg.OperationalError) else None
    if refusal is not None:
        return type(refusal)(without_people(refusal.message), next_step=refusal.next_step)
    if is_lost(error):
        return DatabaseUnavailableError(f"the database went away: {cause}", next_step=kept)
    return DatabaseError(f"the database could not do it now: {cause}", next_step=kept)
