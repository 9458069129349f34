"""Explain the rules in words: the status of a certificate, the kinds that a mentor has had, and coming changes."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, datetime

from certjob.domain import rules
from certjob.domain.models import IN_FORCE, OWN_PAUSE_REASON, Certificate, Mentor, Reminder, Status, Transition


def day_words(day: date, today: date) -> str:
    """Return a date as people write it, without the current year.

    >>> day_words(date(2026, 3, 12), date(2026, 1, 1)), day_words(date(2027, 3, 12), date(2026, 1, 1))
    ('12 March', '12 March 2027')
    """
    return f"{day.day} {day:%B}" + ("" if day.year == today.year else f" {day.year:04}")


def whole_date(day: date) -> str:
    """Return a date with its year, such as 12 March 2027."""
    return f"{day.day} {day:%B} {day.year:04}"


def moment_words(at: datetime, today: date) -> str:
    """Return a local time with its day, for sentences. Tables and lines for programs have ISO dates.

    >>> moment_words(datetime(2026, 3, 9, 8, 5), date(2026, 3, 9)), moment_words(datetime(2026, 3, 9), date(2026, 4, 1))
    ('today 08:05', '9 March 00:00')
    """
    return f"{'today' if at.date() == today else day_words(at.date(), today)} {at:%H:%M}"


def distance_words(day: date, today: date) -> str:
    """Return the distance of a day from today.

    >>> distance_words(date(2026, 3, 12), date(2026, 3, 10)), distance_words(date(2026, 3, 9), date(2026, 3, 10))
    ('in 2 days', '1 day ago')
    """
    days = (day - today).days
    if days == 0:
        return "today"
    return f"in {number(days, 'day')}" if days > 0 else f"{number(-days, 'day')} ago"


def why_status(certificate: Certificate, mentor: Mentor, today: date, *, revoked_on: date | None = None) -> str:
    """Return the rule that gives a certificate its status today, with its dates."""
    status = rules.status_of(certificate, mentor, today)
    last_day = f"{day_words(certificate.expires_on, today)}, {distance_words(certificate.expires_on, today)}"
    match status:
        case Status.REVOKED:
            return "it was revoked" + (f" on {day_words(revoked_on, today)}" if revoked_on else "")
        case Status.UPCOMING:
            first_day = certificate.issued_on
            return f"it begins on {day_words(first_day, today)}, {distance_words(first_day, today)}"
        case Status.RENEWED:
            later = _span(rules.replacement(certificate, mentor, today), today)
            return f"it was replaced by a later certificate{later}"
        case Status.EXPIRED:
            return f"its last day was {last_day}"
    thresholds = mentor.organisation.reminder_thresholds
    if not thresholds:
        slug = mentor.organisation.slug
        return f"its last day is {last_day}; {slug} has no reminder thresholds, so no certificate counts as expiring"
    place = "within" if status is Status.EXPIRING else "before"
    return f"its last day is {last_day}, {place} the {max(thresholds):,}-day reminder period"


def why_certified(mentor: Mentor, today: date) -> Iterator[str]:
    """Yield for each kind of the mentor's certificates whether it is in force, and whether it is optional."""
    all_kinds_count = replace(mentor, organisation=replace(mentor.organisation, optional_kinds=frozenset()))
    lapsed = {certificate.kind: certificate for certificate in rules.lapsed_certificates(all_kinds_count, today)}
    statuses = rules.statuses(mentor, today)
    last_days: dict[str, date] = {}
    for certificate in mentor.certificates:
        if statuses[certificate.id] in IN_FORCE:
            last_days[certificate.kind] = max(certificate.expires_on, last_days.get(certificate.kind, date.min))
    for kind in sorted({certificate.kind for certificate in mentor.certificates}):
        if kind in last_days:
            text = f"{kind} is in force until {day_words(last_days[kind], today)}"
        elif kind not in lapsed:
            text = f"{kind} has not begun yet"
        elif lapsed[kind].revoked:
            text = f"{kind} was revoked"
        else:
            ended_on = lapsed[kind].expires_on
            text = f"{kind} ended on {day_words(ended_on, today)}, {distance_words(ended_on, today)}"
        yield text + (" (optional: its expiry causes no pause)" if kind in mentor.organisation.optional_kinds else "")
    stored = {kind for pause in mentor.open_pauses for kind in pause.lapsed_kinds}
    for kind in sorted(stored - last_days.keys() - lapsed.keys() - mentor.organisation.optional_kinds):
        yield f"{kind} had lapsed, and its certificate was deleted or moved; certjob's pause ends with a new one"


def why_no_reminder(certificate: Certificate, mentor: Mentor, today: date) -> str | None:
    """Return why certjob sends no reminder about a certificate unless a fact changes, or None."""
    if rules.status_of(certificate, mentor, today) not in (Status.VALID, Status.EXPIRING, Status.EXPIRED):
        return None
    if mentor.left:
        return "the mentor has left"
    if not mentor.organisation.reminder_thresholds:
        return f"{mentor.organisation.slug} has no reminder thresholds"
    following = rules.continuation(certificate, mentor)
    return f"the next one{_span(following, today)} continues it without a gap" if following else None


def reminder_name(reminder: Reminder, today: date) -> str:
    """Return the name of a reminder: its threshold and the last day."""
    return f"reminder {threshold_words(reminder.threshold_days)} ({day_words(reminder.expires_on, today)})"


def threshold_words(days: int) -> str:
    """Return a threshold in words.

    >>> threshold_words(30), threshold_words(0), threshold_words(-1)
    ('30 days before the last day', 'on the last day', '1 day after the last day')
    """
    distance = "on" if days == 0 else f"{number(abs(days), 'day')} {'before' if days > 0 else 'after'}"
    return f"{distance} the last day"


def transition_words(change: Transition, certificate: Certificate, today: date) -> str:
    """Return a certificate's change of status in words."""
    which = f"{certificate.kind} until {day_words(certificate.expires_on, today)}"
    if change.from_status is Status.RECORDED:
        return f"{which} is noted as {change.to_status}"
    return f"{which}: {change.from_status} → {change.to_status}"


def reason_words(reason: str) -> str:
    """Return the reason of a pause. Only certjob's own reason is translated."""
    return "no valid certificate" if reason == OWN_PAUSE_REASON else reason


def _span(certificate: Certificate | None, today: date) -> str:
    if certificate is None:
        return ""
    return f" ({day_words(certificate.issued_on, today)} to {day_words(certificate.expires_on, today)})"


def number(count: int, noun: str) -> str:
    """Return a number with its noun in the right form."""
    return f"{count:,} {noun}" if abs(count) == 1 else f"{count:,} {noun}s"


def duration_words(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> duration_words(26 * 3600), duration_words(3.21), duration_words(0.2), duration_words(9 * 86_400)
    ('1 d 2 h', '3 s', 'under 1 s', '9 d')
    """
    if seconds < 1:
        return "under 1 s"
    parts: list[tuple[int, str]] = []
    rest = int(seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, length)
        if number or parts:
            parts.append((number, unit))
    return " ".join(f"{number} {unit}" for number, unit in parts[:2] if number)
