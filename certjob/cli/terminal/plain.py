"""Output without Rich: lines of a result, the lines on stderr, and the JSON document of a command."""

import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Final

from certjob.cli.terminal.logs import traceback_lines, writes_json
from certjob.redaction import printed_line, without_secrets

_UNSEEN = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]")
"""Invisible characters and terminal commands that json.dumps does not escape."""


def print_result(text: str) -> None:
    """Print a line of the result."""
    print(text)  # noqa: T201


def print_json(document: Mapping[str, object]) -> None:
    """Print a command's document without characters that control a terminal. Times are UTC, dates ISO, ids texts.

    A value that is an iterator is printed as a list, entry by entry, because it may not fit into memory.
    """
    for place, (key, value) in enumerate(document.items()):
        print("," if place else "{", f"\n  {json.dumps(key)}: ", sep="", end="")  # noqa: T201
        if not isinstance(value, Iterator):
            print(_to_json(value, indent="  "), end="")  # noqa: T201
            continue
        count = 0
        for count, entry in enumerate(value, start=1):
            print("[" if count == 1 else ",", f"\n    {_to_json(entry, indent='    ')}", sep="", end="")  # noqa: T201
        print("\n  ]" if count else "[]", end="")  # noqa: T201
    print_result("\n}")


def _to_json(value: object, *, indent: str) -> str:
    """Return a value as JSON whose lines after the first are indented."""
    text = json.dumps(value, ensure_ascii=False, indent=2, default=_as_json).replace("\n", f"\n{indent}")
    return _UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text)


ERROR_STYLE: Final = "bold #ffffff on #af0000"
WARNING_STYLE: Final = "#000000 on #ffd75f"
"""Each style has a background, so it is readable on every palette (contrast 7.9 and 15)."""


def print_error(command: str, message: str, *, error: BaseException | None = None) -> None:
    """Print why a command failed, with the traceback of ``error``: one line on stderr, as JSON if the log is."""
    _say(logging.ERROR, command, message, event="failed", error=error)


def print_attention(command: str, message: str) -> None:
    """Print why someone has to act (exit 3): one line on stderr, also with -q."""
    _say(logging.WARNING, command, message, event="attention")


def print_warning(command: str, message: str) -> None:
    """Print a warning that does not change the exit code."""
    _say(logging.WARNING, command, message, event="warning")


def print_note(command: str, message: str) -> None:
    """Print an explanation of the result on stderr, because stdout may be a pipe."""
    _say(logging.INFO, command, message, event="note")


def _say(level: int, command: str, message: str, *, event: str, error: BaseException | None = None) -> None:
    line = without_secrets(printed_line(message))
    if writes_json():
        logger = logging.getLogger("certjob")
        trace = (type(error), error, error.__traceback__) if error is not None else None
        # Not logger.log(), because no level may suppress the reason for an exit code.
        about = {"command": command, "event": event}
        logger.handle(logger.makeRecord(logger.name, level, "", 0, line, (), trace, extra=about))
        return
    if sys.stderr.isatty():
        _print_on_terminal(level, command, line)
    else:
        print(f"{command}: {'warning: ' if event == 'warning' else ''}{line}", file=sys.stderr)  # noqa: T201
    if error is not None:
        print(*traceback_lines(error), sep="\n", file=sys.stderr)  # noqa: T201


def _print_on_terminal(level: int, command: str, line: str) -> None:
    """Print a wrapped line with a coloured word for its level."""
    from rich.console import Console

    from certjob.cli.terminal.lines import PageLine, wrap

    word, style = _WORDS.get(level, ("", ""))
    console = Console(stderr=True, highlight=False, emoji=False)
    print("\r", end="", file=sys.stderr)  # noqa: T201 - overwrites the ^C that the terminal has echoed
    for number, piece in enumerate(wrap(console, [PageLine(text=f"{command}: {word}{line}")])):
        if word and not number:
            piece.stylize(style, len(command) + 2, len(command) + 1 + len(word))
        console.print(piece, soft_wrap=True)


_WORDS: Final = {logging.ERROR: ("error: ", ERROR_STYLE), logging.WARNING: ("warning: ", WARNING_STYLE)}


def _as_json(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value.isoformat() if isinstance(value, date) else str(value)
