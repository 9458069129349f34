"""A terminal of a given width, what it shows, and a text that would disturb it."""

import io
from typing import Any

from rich.console import Console

from certjob.cli.terminal.output import Output

HOSTILE = "[red]M[/red]\x1b[2J\x1b]0;gotcha\x07\u202e:smile:\\"


def terminal(columns: int, lines: int = 25) -> tuple[Output, io.StringIO]:
    """An output on a terminal of this size, without colours, and what it shows."""
    output, shown = Output(quiet=False), io.StringIO()
    output.on_terminal = True
    size: dict[str, Any] = {"width": columns, "height": lines, "_environ": {"TERM": "xterm"}}
    output.out = Console(file=shown, force_terminal=True, color_system=None, emoji=False, highlight=False, **size)
    return output, shown


def flat(text: str) -> str:
    """The same without its line ends, for sentences that are wrapped."""
    return " ".join(text.split())


def assert_in_order(text: str, *phrases: str) -> None:
    places = [text.find(phrase) for phrase in phrases]
    assert -1 not in places, (phrases[places.index(-1)], text)
    assert places == sorted(places), text
