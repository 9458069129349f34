"""What is printed without Rich: a harmless line, the line that says why, the one JSON document of a command."""

import json
import logging
import re
import sys
from datetime import UTC, date, datetime

from certjob.cli.terminal.logs import traceback_lines, writes_json
from certjob.redaction import harmless, without_secrets

_UNSEEN = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]")
"""What json.dumps leaves as it is, although a terminal obeys it or a person does not see it."""


def print_result(text: str) -> None:
    """Print a line of what was asked for."""
    print(text)  # noqa: T201


def print_json(document: object) -> None:
    """Print a command's document, in which no terminal finds an order: times are UTC, dates ISO, ids texts."""
    text = json.dumps(document, ensure_ascii=False, indent=2, default=_as_json)
    print_result(_UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text))


def print_error(command: str, message: str, *, error: BaseException | None = None) -> None:
    """Say why a command failed: one line on stderr, a JSON one of level error if the log is JSON.

    With ``error`` its traceback follows.
    """
    _say(logging.ERROR, command, message, event="failed", error=error)


def print_attention(command: str, message: str) -> None:
    """Print why somebody has to act (exit 3): one line on stderr, whatever -q says."""
    _say(logging.WARNING, command, message, event="attention")


def print_warning(command: str, message: str) -> None:
    """Print a warning about something beside the work: the exit code does not show it."""
    _say(logging.WARNING, command, message, event="warning", prefix="warning: ")


def print_note(command: str, message: str) -> None:
    """Print on stderr what a result is, so that it does not go into a pipe with the result."""
    _say(logging.INFO, command, message, event="note")


_STYLES = {logging.ERROR: "bold red", logging.WARNING: "bold magenta"}
"""Colours that can be read on black and on white."""


def _say(
    level: int, command: str, message: str, *, event: str, prefix: str = "", error: BaseException | None = None
) -> None:
    line = without_secrets(" ".join(harmless(message).split()))
    if writes_json():
        logger = logging.getLogger("certjob")
        about = {"command": command, "event": event}
        trace = (type(error), error, error.__traceback__) if error is not None else None
        # No level holds it back: -q leaves out what is well, never why the exit code is not 0.
        logger.handle(logger.makeRecord(logger.name, level, "", 0, line, (), trace, extra=about))
        return
    _print_message(f"{command}: {prefix}{line}", style=_STYLES.get(level, ""))
    if error is not None:
        print(*traceback_lines(error), sep="\n", file=sys.stderr)  # noqa: T201


def _print_message(text: str, *, style: str) -> None:
    """Print a line on stderr: wrapped and in colour for a person, whole for a program."""
    if not sys.stderr.isatty():
        print(text, file=sys.stderr)  # noqa: T201
        return
    from rich.console import Console

    from certjob.cli.terminal.lines import PageLine, wrap

    console = Console(stderr=True, highlight=False, emoji=False)
    print("\r", end="", file=sys.stderr)  # noqa: T201 - over the ^C that the terminal has echoed
    for piece in wrap(console, [PageLine(text=text, style=style)]):
        console.print(piece, soft_wrap=True)


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.isoformat() if isinstance(value, date) else str(value)
