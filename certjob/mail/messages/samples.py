"""Made-up messages in every situation: what a programme's own templates are tried on before a night depends on them."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta
from uuid import UUID

from certjob.domain.models import Certificate, Mentor, Organisation, Reminder
from certjob.errors import Cause
from certjob.mail.messages.content import NOTHING_TO_DO, Recipient, reminder_words, write_date, write_day, write_moment

_SOME_DAY = date(2027, 1, 31)
_SOME_MOMENT = datetime(2027, 1, 31, 3, 15)  # noqa: DTZ001 - only written, as it stands
_NAME = "Kari «Ea» O'Nordmann & <Sønn>"
_MOST = 25
_ID = UUID(int=1)
_URGENT = ("not_run", "held", "unreviewed", "visible")
_ABOUT_PUSHES = (
    Cause.CONTACT_NOT_FOUND,
    Cause.PORTAL_DOWN,
    Cause.NO_CONTACT_ID,
    Cause.CHANGE_REFUSED,
    Cause.QUEUED,
    Cause.PORTAL_STOPPED,
    Cause.HIDE_BY_HAND,
)

Words = dict[str, object]


def sample_reminders(language: str) -> Iterator[Words]:
    """Yield the words of made-up reminders: every situation, with and without what a mentor may lack."""
    for days_left, pauses, paused, repeat, complete in itertools.product(
        (60, 1, 0, -1, -14), (True, False), (True, False), (False, True), (True, False)
    ):
        due, recipient = _sample_reminder(
            language, days_left=days_left, pauses=pauses, paused=paused, complete=complete
        )
        yield reminder_words(due, recipient, today=_SOME_DAY, repeat=repeat)


def _sample_reminder(
    language: str, *, days_left: int, pauses: bool, paused: bool, complete: bool
) -> tuple[Reminder, Recipient]:
    """Make up a reminder and its recipient; one that is not ``complete`` lacks whatever it may lack."""
    kind = "likeperson" if complete else ""
    due = Reminder(cert_id=_ID, threshold_days=days_left, expires_on=_SOME_DAY + timedelta(days=days_left))
    mentor = Mentor(
        id=_ID,
        member_no="M1001",
        organisation=Organisation(
            id=_ID,
            slug="",
            has_portal=False,
            reminder_thresholds=(),
            optional_kinds=frozenset() if pauses else frozenset({kind}),
        ),
        left=False,
        portal_visible=None,
        has_contact=True,
        certified_until=None,
        due_by_calendar=True,
        certificates=(Certificate(id=_ID, kind=kind, issued_on=_SOME_DAY, expires_on=due.expires_on, revoked=False),),
        open_pauses=(),
    )
    return due, Recipient(
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


def sample_digests(language: str) -> Iterator[Words]:
    """Yield the words of made-up digests: sections with no, one, some and too many lines, alone and together."""
    sections = _sections(language)
    one = {name: items[:1] for name, items in sections.items()}
    many = {name: [*items, *itertools.repeat(items[0], _MOST)] for name, items in sections.items()}
    nothing: dict[str, list[Words]] = {name: [] for name in sections}
    for lists, repeat, name in (
        (sections, False, _NAME),
        (one, True, ""),
        (many, False, _NAME),
        *((nothing | {section: items}, False, _NAME) for section, items in sections.items()),
        *((nothing | {section: items}, True, "") for section, items in one.items()),
    ):
        yield {
            "language": language,
            "most": _MOST,
            "app_url": "https://example.org/app" if name else "",
            "name": name,
            "organisation": "Hørselshjelpen",
            "repeat": repeat,
            "has_portal": not repeat,
            "operator_address": "drift@example.org" if name else "",
            "urgent": [section for section in _URGENT if lists[section] and not repeat],
            "to_do": any(lists[section] for section in lists.keys() - NOTHING_TO_DO),
            "acknowledged": {
                "number": len(lists["unreviewed"]),
                "until": write_day(_SOME_DAY, locale=language) if name else "",
            },
            **lists,
        }


def _sections(language: str) -> dict[str, list[Words]]:
    day = write_date(_SOME_DAY, locale=language)
    who: Words = {"name": _NAME, "member_no": "M1001"}
    unnamed: Words = {"name": "M1002", "member_no": "M1002"}
    since = write_moment(_SOME_MOMENT, locale=language)
    pushes = {
        how: [
            {
                **mentor,
                "since": since,
                "cause": str(cause),
            }
            for mentor, cause in zip(itertools.cycle((who, unnamed)), _ABOUT_PUSHES, strict=False)
        ]
        for how in ("visible", "hidden")
    }
    held: Words = {"what": "pauses", "since": since, "mentors": 33}
    return {
        "not_run": [{"since": write_day(_SOME_DAY, locale=language), "ended": 3}],
        "held": [
            held,
            {**held, "mentors": 1},
            *({**held, "what": what} for what in ("returns", "reminders", "portal")),
        ],
        "unreviewed": [{**each, "since": since} for each in (who, unnamed)],
        **pushes,
        "paused": [
            {**who, "reopened": False, "lapses": [{"kind": "likeperson", "ended_on": day}]},
            {**who, "reopened": True, "lapses": [{"kind": "a", "ended_on": day}, {"kind": "b", "ended_on": ""}]},
            {**unnamed, "reopened": False, "lapses": []},
        ],
        "returned": [
            {**who, "still_paused": False},
            {**unnamed, "still_paused": True},
        ],
        "undelivered": [
            {
                **mentor,
                "expires_on": day,
                "days_left": days_left,
                "cause": str(cause),
            }
            for mentor, days_left, cause in (
                (who, 12, Cause.WRONG_ADDRESS),
                (who, -14, Cause.WRONG_ADDRESS),
                (unnamed, 12, Cause.NO_ADDRESS),
                (who, 12, Cause.MAIL_DELAYED),
                (who, 12, Cause.MAIL_STOPPED),
            )
        ],
        "uncertified": [who, unnamed],
        "expiring": [
            {**who, "kind": "likeperson", "expires_on": day, "days_left": days_left} for days_left in (12, 1, 0)
        ],
    }


SAMPLES: Mapping[str, Callable[[str], Iterator[Words]]] = {
    "reminder": sample_reminders,
    "digest": sample_digests,
}
"""The words of made-up messages in one language, by what there are templates for."""
