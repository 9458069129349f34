"""Sample messages in every situation."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from certjob.domain.causes import HELD_REASONS
from certjob.domain.models import Reminder
from certjob.errors import Cause
from certjob.mail.messages.content import LONGEST_LIST, Recipient, Words, digest_words, reminder_words
from tests.support import people

_TODAY = date(2027, 1, 31)
_SINCE = datetime(2027, 1, 31, 3, 15, tzinfo=UTC)
_NAME = "Kari «Ea» O'Nordmann & <Sønn>"


def sample_reminders(language: str) -> Iterator[Words]:
    """Yield the variables of reminders in every situation, with and without everything that a mentor may lack."""
    for days_left, pauses, paused, repeat, complete in itertools.product(
        (60, 1, 0, -1, -14), (True, False), (True, False), (False, True), (True, False)
    ):
        kind, expires_on = "likeperson" if complete else "", _TODAY + timedelta(days=days_left)
        certificate = people.certificate(expires_on, issued_on=_TODAY, kind=kind)
        mentor = people.mentor(
            certificate, organisation=people.organisation(has_portal=False, optional_kinds=[] if pauses else [kind])
        )
        recipient = Recipient(
            mentor=mentor,
            full_name=_NAME if complete else None,
            email=None,
            locale=language,
            paused=paused,
            organisation_name="Hørselshjelpen",
            contact_email="kontakt@example.org" if complete else None,
            contact_phone="+47 22 00 00 00" if complete else None,
            renewal_url="https://example.org/forny?a=1&b=2" if complete else None,
            sender=None,
        )
        due = Reminder(cert_id=certificate.id, threshold_days=days_left, expires_on=expires_on)
        yield reminder_words(due, recipient, today=_TODAY, repeat=repeat)


def sample_digests(language: str) -> Iterator[Words]:
    """Yield the variables of digests: lists with none, one, some and too many items, alone and together."""
    some = _sections()
    one = {section: rows[:1] for section, rows in some.items()}
    many = {section: [*rows, *itertools.repeat(rows[0], LONGEST_LIST)] for section, rows in some.items()}
    none: dict[str, list[Words]] = {section: [] for section in some}
    for sections, complete in (
        (some, True),
        (one, False),
        (many, True),
        *((none | {section: rows}, True) for section, rows in some.items()),
        *((none | {section: rows}, False) for section, rows in one.items()),
    ):
        yield digest_words(
            sections,
            news={},
            language=language,
            name=_NAME if complete else None,
            organisation="Hørselshjelpen",
            has_portal=complete
            or any(sections[section] for section in ("visible", "hidden", "unknown", "corrected", "dated")),
            acknowledged=(len(sections["unreviewed"]), _TODAY if complete else None),
            zone=UTC,
            is_first=not complete,
            repeat=not complete,
            app_url="https://example.org/app" if complete else "",
            operator_address="drift@example.org" if complete else "",
        )


def _sections() -> dict[str, list[Words]]:
    """Return rows as the database has them."""
    named, unnamed = {"name": _NAME, "member_no": "M1001"}, {"name": "M1002", "member_no": "M1002"}
    causes = (
        Cause.CONTACT_NOT_FOUND,
        Cause.PORTAL_DOWN,
        Cause.NO_CONTACT_ID,
        Cause.CHANGE_REFUSED,
        Cause.LATER_DAY_ON_PORTAL,
        Cause.QUEUED,
        Cause.PORTAL_STOPPED,
        Cause.HIDE_BY_HAND,
    )
    pushes = [
        mentor | {"since": _SINCE, "cause": cause}
        for mentor, cause in zip(itertools.cycle((named, unnamed)), causes, strict=False)
    ]
    expired, revoked = {"kind": "likeperson", "ended_on": _TODAY}, {"kind": "b", "ended_on": ""}

    days = {"old_on": _TODAY, "new_on": None}
    held = [named | days | {"reason": reason} for reason in HELD_REASONS]

    def ends_in(days: int) -> Words:
        return {"expires_on": _TODAY + timedelta(days=days), "days_left": days}

    return {
        "not_run": [{"since": _TODAY, "visible": 3}],
        "held": [
            {"what": "changes", "since": _SINCE, "mentors": 33, "is_danger": True, "named": held},
            {"what": "changes", "since": _SINCE, "mentors": 1, "is_danger": False, "named": held[-1:]},
            {"what": "portal", "since": _SINCE, "mentors": 33, "is_danger": False, "named": []},
        ],
        "facts_missing": [{"since": _SINCE}],
        "unreviewed": [mentor | {"since": _SINCE} for mentor in (named, unnamed)],
        "visible": pushes,
        "by_hand": [mentor | {"by": "Eva", "since": _SINCE} for mentor in (named, unnamed)],
        "unknown": [{"name": str(UUID(int=number)), "since": _SINCE} for number in (1, 2)],
        "hidden": [push for push in pushes if push["cause"] is not Cause.HIDE_BY_HAND],
        "paused": [
            named | {"reopened": False, "lapses": [expired]},
            named | {"reopened": True, "lapses": [expired | {"kind": "a"}, revoked]},
            unnamed | {"reopened": False, "lapses": []},
        ],
        "reinstated": [named | {"still_paused": False}, unnamed | {"still_paused": True}],
        "corrected": [named | {"what": "hidden"}, unnamed | {"what": "shown"}, named | {"what": "last_day"}],
        "dated": [named, unnamed],
        "undelivered": [
            named | ends_in(12) | {"cause": Cause.WRONG_ADDRESS},
            named | ends_in(-14) | {"cause": Cause.WRONG_ADDRESS},
            unnamed | ends_in(12) | {"cause": Cause.NO_ADDRESS},
            named | ends_in(12) | {"cause": Cause.MAIL_DELAYED},
            named | ends_in(12) | {"cause": Cause.MAIL_STOPPED},
        ],
        "uncertified": [named | {"begins": _TODAY + timedelta(days=40)}, unnamed | {"begins": None}],
        "expiring": [named | ends_in(days) | {"kind": "likeperson"} for days in (12, 1, 0)],
    }


SAMPLES: Mapping[str, Callable[[str], Iterator[Words]]] = {"reminder": sample_reminders, "digest": sample_digests}
"""The functions that yield variables of sample messages in one language."""
