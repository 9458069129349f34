"""The options of several commands, and the parsers of their values."""

import re
from collections import Counter
from collections.abc import Iterable
from datetime import date
from typing import Annotated, Literal

import typer

from certjob.errors import UsageError


def parse_duration(text: str | float) -> float:
    """Return the seconds in a text such as ``90s``, ``30m``, ``2h`` or ``1h30m``. A default is in seconds.

    >>> parse_duration("1h30m"), parse_duration(" 2H "), parse_duration("90s"), parse_duration("45")
    (5400.0, 7200.0, 90.0, 45.0)
    """
    if not isinstance(text, str):
        return text
    match = _DURATION.fullmatch(text.strip().lower())
    if not match or not any(match.groups()):
        message = f"{text[:40]!r} is not a valid duration"
        raise UsageError(message, next_step="give one such as 90s, 30m or 2h")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(hours * 3600 + minutes * 60 + seconds)


def parse_day(text: str) -> date:
    """Return the date in a text such as ``2026-12-31``."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        message = f"{text[:40]!r} is not a valid date"
        raise UsageError(message, next_step="give one such as 2026-12-31") from None


def parse_allowed(texts: Iterable[str]) -> Counter[str]:
    """Return the numbers in texts such as ``hlf=60``, by organisation.

    >>> parse_allowed(["hlf=60", "nhf=5"])
    Counter({'hlf': 60, 'nhf': 5})
    """
    allowed = Counter[str]()
    for text in texts:
        slug, _, count = text.partition("=")
        if not re.fullmatch(r"[0-9]{1,9}", count) or not slug or slug in allowed:
            message = f"--allow {text[:60]} is not an organisation and a number"
            raise UsageError(message, next_step="give each organisation once, such as --allow hlf=60")
        allowed[slug] = int(count)
    return allowed


def parse_recipient(text: str) -> str:
    """Return an address that a channel can send to."""
    from certjob.domain.addresses import parse_address

    try:
        parse_address(text)
    except ValueError as error:
        message = f"the address {error}"
        raise typer.BadParameter(message) from None
    return text


_DURATION = re.compile(r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s?)?")

_MENTOR_HELP = "Id, member number, e-mail address or part of a name."
MentorArgument = Annotated[str, typer.Argument(metavar="MENTOR", help=_MENTOR_HELP, show_default=False)]
OptionalMentor = Annotated[str | None, typer.Argument(metavar="MENTOR", help=_MENTOR_HELP, show_default=False)]
OrganisationSlug = Annotated[
    str | None, typer.Option("--organisation", metavar="SLUG", help="Only this organisation's mentors.")
]
Allow = Annotated[
    list[str],
    typer.Option(
        "--allow",
        metavar="ORGANISATION=N",
        help="Permit at most N surprising changes of this organisation in this run; may be repeated.",
    ),
]
AcceptDate = Annotated[
    date | None,
    typer.Option(
        "--accept-date",
        parser=parse_day,
        metavar="DATE",
        help="Accept DATE, this machine's date, although the database server or an earlier run has another.",
    ),
]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV (RFC 4180, UTF-8) with a header.")]
Locale = Literal["nb", "nn", "en"]
HiddenByHand = Annotated[
    bool, typer.Option("--hidden-by-hand", help="Store that a person has hidden the contact; needs --because.")
]
HiddenBecause = Annotated[str, typer.Option(metavar="TEXT", help="Why it was hidden by hand.", show_default=False)]
