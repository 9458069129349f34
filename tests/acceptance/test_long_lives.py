"""Two years of one mentor, against a diary that was written by hand from docs/rules.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

from certjob.errors import Outcome
from tests.support.facts import Facts
from tests.support.nights import CollectingChannel, night
from tests.support.portal_server import PortalServer


def certify(kind: str, issued_on: str, expires_on: str) -> str:
    return (
        "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
        f" SELECT id, '{kind}', '{issued_on}', '{expires_on}' FROM mentors"
    )


def extend_course(expires_on: str) -> str:
    return f"UPDATE certificates SET expires_on = '{expires_on}' WHERE kind = 'course' AND issued_on = '2024-03-01'"


PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'illness', 'coordinator' FROM mentors"
LIFT = (
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator'"
    " WHERE reason = 'illness' AND lifted_at IS NULL"
)
REVOKE_FIRST_AID = "UPDATE certificates SET revoked_at = now() WHERE kind = 'first aid' AND issued_on = '2025-07-01'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The changes by people before a night, and the work of the night.

    The name of a certificate is its kind and first year. A mail has its threshold and a last day.
    """

    on: str
    people: Sequence[str] = field(default=(), compare=False)
    statuses: Mapping[str, str] = field(default_factory=dict)
    pauses: int = 0
    resumes: int = 0
    shown: bool | None = None
    mails: Sequence[tuple[int | None, str]] = field(default_factory=list)


DIARY = [
    Entry(
        on="2025-01-01",
        people=[certify("course", "2024-03-01", "2026-02-28"), certify("first aid", "2023-06-15", "2025-06-15")],
        statuses={"course 2024": "valid", "first aid 2023": "valid"},
    ),
    # No night ran on the sixtieth day (16 April).
    Entry(on="2025-04-19", statuses={"first aid 2023": "expiring"}, mails=[(60, "2025-06-15")]),
    Entry(on="2025-05-16", mails=[(30, "2025-06-15")]),
    # No night ran with 14 and with 7 days left: one mail, for the more urgent threshold.
    Entry(on="2025-06-09", mails=[(7, "2025-06-15")]),
    Entry(on="2025-06-14", mails=[(1, "2025-06-15")]),
    # The certificate is in force on its last day. The course does not help, because each kind must be in force.
    Entry(on="2025-06-16", statuses={"first aid 2023": "expired"}, pauses=1, shown=False, mails=[(-1, "2025-06-15")]),
    Entry(on="2025-06-20", people=[PAUSE]),
    # The renewal ends certjob's pause. The coordinator's pause hides the mentor until the 31st.
    Entry(
        on="2025-07-01",
        people=[certify("first aid", "2025-07-01", "2027-06-30")],
        statuses={"first aid 2023": "renewed", "first aid 2025": "valid"},
        resumes=1,
    ),
    Entry(on="2025-07-31", people=[LIFT], shown=True),
    Entry(on="2025-12-30", statuses={"course 2024": "expiring"}, mails=[(60, "2026-02-28")]),
    Entry(on="2026-01-29", mails=[(30, "2026-02-28")]),
    # The extension starts the reminders again. The portal learns each new last visible day.
    Entry(on="2026-02-05", people=[extend_course("2026-08-31")], statuses={"course 2024": "valid"}, shown=True),
    Entry(on="2026-07-02", statuses={"course 2024": "expiring"}, mails=[(60, "2026-08-31")]),
    Entry(on="2026-08-01", mails=[(30, "2026-08-31")]),
    # A wrong date is mailed once, and neither it nor the corrected date a second time.
    Entry(on="2026-08-03", people=[extend_course("2026-08-20")], shown=True, mails=[(30, "2026-08-20")]),
    Entry(on="2026-08-04", people=[extend_course("2026-08-31")], shown=True),
    Entry(on="2026-08-17", mails=[(14, "2026-08-31")]),
    # A coordinator's pause hides the mentor. A paused mentor is reminded.
    Entry(on="2026-08-20", people=[PAUSE], shown=False),
    Entry(on="2026-08-24", mails=[(7, "2026-08-31")]),
    # The revocation ends the renewal of the first certificate, which expired long ago: no mail.
    Entry(
        on="2026-08-27",
        people=[REVOKE_FIRST_AID],
        statuses={"first aid 2023": "expired", "first aid 2025": "revoked"},
        pauses=1,
    ),
    Entry(on="2026-08-30", mails=[(1, "2026-08-31")]),
    Entry(on="2026-09-01", statuses={"course 2024": "expired"}, mails=[(-1, "2026-08-31")]),
    # A certificate renews when it begins, not when it is recorded. The pause ends when both kinds are in force.
    Entry(
        on="2026-09-05",
        people=[certify("first aid", "2026-09-10", "2028-03-30")],
        statuses={"first aid 2026": "upcoming"},
    ),
    Entry(on="2026-09-10", statuses={"first aid 2023": "renewed", "first aid 2026": "valid"}),
    Entry(
        on="2026-09-20",
        people=[certify("course", "2026-09-15", "2028-03-30")],
        statuses={"course 2024": "renewed", "course 2026": "valid"},
        resumes=1,
    ),
    Entry(on="2026-10-01", people=[LIFT], shown=True),
]
MISSED = [("2025-04-14", "2025-04-18"), ("2025-06-01", "2025-06-08")]
CHANGED_STATUSES = """
    SELECT c.kind || to_char(c.issued_on, ' YYYY'), t.to_status
    FROM certificate_transitions AS t JOIN certificates AS c ON c.id = t.certificate_id WHERE t.as_of = %s
"""


def test_two_years_of_a_mentor_are_as_the_diary_says(facts: Facts, portal: PortalServer) -> None:
    """The nights before those of the diary, and one in forty of the others, make no change."""
    facts.mentor(facts.organisation())
    channel = CollectingChannel()

    def run_night(on: str) -> Entry:
        calls, mails = len(portal.requests), len(channel.sent)
        report = night(facts.connection, date.fromisoformat(on), portal=portal, channel=channel)
        assert report.outcome is Outcome.OK, report.reasons
        assert report.review is not None
        pushed = [request.visible for request in portal.requests[calls:]]
        assert len(pushed) <= 1
        return Entry(
            on=on,
            statuses={str(name): str(status) for name, status in facts.rows(CHANGED_STATUSES, on)},
            pauses=report.review.paused,
            resumes=report.review.reinstated,
            shown=pushed[0] if pushed else None,
            mails=[(message.threshold_days, str(message.expires_on)) for message in channel.sent[mails:]],
        )

    expected = {each.on: each for each in DIARY}
    for number in range(650):
        today = date(2025, 1, 1) + timedelta(days=number)
        on, tomorrow = str(today), str(today + timedelta(days=1))
        if any(first <= on <= last for first, last in MISSED):
            continue
        if on in expected or tomorrow in expected or number % 40 == 0:
            planned = expected.get(on, Entry(on=on))
            for statement in planned.people:
                assert facts.connection.execute(statement.encode()).rowcount == 1, (on, statement)
            assert run_night(on) == planned

    assert len({message.idempotency_key for message in channel.sent}) == len(channel.sent)
