"""Two years of one mentor, against a diary that was written by hand from docs/rules.md."""

from datetime import date, timedelta

from certjob.errors import Outcome
from tests.support.facts import Facts
from tests.support.nights import CollectingChannel, night
from tests.support.portal_server import PortalServer

CERTIFY = (
    "INSERT INTO certificates (id, mentor_id, kind, issued_on, expires_on)"
    " SELECT md5('{0}')::uuid, id, '{1}', '{2}', '{3}' FROM mentors"
)
EXTEND = "UPDATE certificates SET expires_on = '{1}' WHERE id = md5('{0}')::uuid"
REVOKE = "UPDATE certificates SET revoked_at = now() WHERE id = md5('{0}')::uuid"
PAUSE = "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, '{0}', 'coordinator' FROM mentors"
LIFT = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE reason = '{0}'"
CHANGES = [  # by people, before the night of the day
    ("2025-01-01", CERTIFY.format("L2", "likeperson", "2024-03-01", "2026-02-28")),
    ("2025-01-01", CERTIFY.format("F1", "førstehjelp", "2023-06-15", "2025-06-15")),
    ("2025-06-20", PAUSE.format("illness")),
    ("2025-07-01", CERTIFY.format("F2", "førstehjelp", "2025-07-01", "2027-06-30")),
    ("2025-07-31", LIFT.format("illness")),
    ("2026-02-05", EXTEND.format("L2", "2026-08-31")),
    ("2026-08-03", EXTEND.format("L2", "2026-08-20")),
    ("2026-08-04", EXTEND.format("L2", "2026-08-31")),
    ("2026-08-05", EXTEND.format("L2", "2026-08-20")),
    ("2026-08-06", EXTEND.format("L2", "2026-08-31")),
    ("2026-08-20", PAUSE.format("leave")),
    ("2026-08-27", REVOKE.format("F2")),
    ("2026-09-05", CERTIFY.format("F3", "førstehjelp", "2026-09-10", "2028-03-30")),
    ("2026-09-20", CERTIFY.format("L3", "likeperson", "2026-09-15", "2028-03-30")),
    ("2026-10-01", LIFT.format("leave")),
    ("2028-02-10", "UPDATE organisations SET reminder_thresholds = '{90,45,30,0,-3}'"),
]
DIARY = """
2025-01-01 L2 recorded → valid
2025-01-01 F1 recorded → valid
# No night ran on the sixtieth day (16 April).
2025-04-19 F1 valid → expiring
2025-04-19 mail 60 about 2025-06-15
2025-05-16 mail 30 about 2025-06-15
# No night ran with 14 and with 7 days left: one mail, for the more urgent threshold.
2025-06-09 mail 7 about 2025-06-15
2025-06-14 mail 1 about 2025-06-15
# The certificate is in force on its last day. L2 does not help, because each kind must be in force.
2025-06-16 F1 expiring → expired
2025-06-16 pause
2025-06-16 portal hide
2025-06-16 mail -1 about 2025-06-15
# The renewal ends certjob's pause. The coordinator's pause hides the mentor until the 31st.
2025-07-01 F1 expired → renewed
2025-07-01 F2 recorded → valid
2025-07-01 lift
2025-07-31 portal show
2025-12-30 L2 valid → expiring
2025-12-30 mail 60 about 2026-02-28
2026-01-29 mail 30 about 2026-02-28
# The extension starts the reminders again. The portal learns each new last visible day.
2026-02-05 L2 expiring → valid
2026-02-05 portal show
2026-07-02 L2 valid → expiring
2026-07-02 mail 60 about 2026-08-31
2026-08-01 mail 30 about 2026-08-31
# A wrong date is mailed once, and neither it nor the corrected date a second time.
2026-08-03 portal show
2026-08-03 mail 30 about 2026-08-20
2026-08-04 portal show
2026-08-05 portal show
2026-08-06 portal show
2026-08-17 mail 14 about 2026-08-31
# A coordinator's pause hides the mentor. A paused mentor is reminded.
2026-08-20 portal hide
2026-08-24 mail 7 about 2026-08-31
# After the revocation nothing continues F1, which expired long ago: no mail. The mentor is hidden already.
2026-08-27 F1 renewed → expired
2026-08-27 F2 valid → revoked
2026-08-27 pause
2026-08-30 mail 1 about 2026-08-31
2026-09-01 L2 expiring → expired
2026-09-01 mail -1 about 2026-08-31
# F3 renews F1 when it begins, not when it is recorded. The pause ends when both kinds are in force.
2026-09-05 F3 recorded → upcoming
2026-09-10 F1 expired → renewed
2026-09-10 F3 upcoming → valid
2026-09-20 L2 expired → renewed
2026-09-20 L3 recorded → valid
2026-09-20 lift
2026-10-01 portal show
# Both kinds end on one day.
2028-01-30 F3 valid → expiring
2028-01-30 L3 valid → expiring
2028-01-30 mail 60 about 2028-03-30
2028-01-30 mail 60 about 2028-03-30
# With the new thresholds, 90 is due now.
2028-02-10 mail 90 about 2028-03-30
2028-02-10 mail 90 about 2028-03-30
2028-02-14 mail 45 about 2028-03-30
2028-02-14 mail 45 about 2028-03-30
"""
CERTJOB_WROTE = """
    SELECT at, name || ' ' || from_status || ' → ' || to_status
        FROM certificate_transitions JOIN named ON named.id = certificate_id
    UNION ALL SELECT paused_at, 'pause' FROM mentor_pauses WHERE actor = 'certjob'
    UNION ALL SELECT lifted_at, 'lift' FROM mentor_pauses WHERE lifted_by = 'certjob'
    ORDER BY 1
"""


MISSED = [("2025-04-14", "2025-04-18"), ("2025-06-01", "2025-06-08")]


def test_two_years_of_a_mentor_are_as_the_diary_says(facts: Facts, portal: PortalServer) -> None:
    """Each transition, pause, mail and push comes on its day; nothing else happens, and nothing happens twice."""
    facts.mentor(facts.organisation())
    facts.connection.execute(
        "CREATE TABLE named AS SELECT md5(name)::uuid AS id, name FROM unnest('{L2,L3,F1,F2,F3}'::text[]) AS name"
    )
    channel = CollectingChannel()

    def run_night(today: date) -> list[str]:
        """Run one night; return its lines of the diary."""
        before, calls, mails = len(facts.rows(CERTJOB_WROTE)), len(portal.requests), len(channel.sent)
        report = night(facts.connection, today, portal=portal, channel=channel)
        assert report.outcome is Outcome.OK, report.reasons
        seen = [str(what) for _, what in facts.rows(CERTJOB_WROTE)[before:]]
        seen += [f"portal {'show' if push.visible else 'hide'}" for push in portal.requests[calls:]]
        seen += [f"mail {message.threshold_days} about {message.expires_on}" for message in channel.sent[mails:]]
        return [f"{today} {line}" for line in seen]

    expected = [line for line in DIARY.splitlines() if line and not line.startswith("#")]
    busy = {line[:10] for line in expected} | {day for day, _ in CHANGES}
    diary = list[str]()
    for number in range(1_140):
        today = date(2025, 1, 1) + timedelta(days=number)
        for statement in [statement for day, statement in CHANGES if day == str(today)]:
            assert facts.connection.execute(statement.encode()).rowcount == 1, (today, statement)
        if any(first <= str(today) <= last for first, last in MISSED):
            continue
        # Run the nights of the diary, the nights before them, and one in forty of the others.
        if {str(today), str(today + timedelta(days=1))} & busy or number % 40 == 0:
            diary += run_night(today) + (run_night(today) if str(today) in busy else [])

    assert sorted(diary) == sorted(expected)
    assert len({message.idempotency_key for message in channel.sent}) == len(channel.sent)
