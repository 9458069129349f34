"""Four years of one mentor, night by night, against a table written by hand from the rules of the design."""

from collections import defaultdict
from datetime import date, timedelta

from certjob.errors import Outcome
from tests.support.facts import Facts
from tests.support.mails import breakable
from tests.support.nights import CollectingChannel, FlakyPortal, night

EVENTS = """
2025-01-01 certify L2 likeperson 2024-03-01 2026-02-28
2025-01-01 certify F1 førstehjelp 2023-06-15 2025-06-15
2025-06-20 pause illness
2025-07-01 certify F2 førstehjelp 2025-07-01 2027-06-30
2025-07-31 lift illness
2026-02-05 change L2 2026-08-31
2026-08-03 change L2 2026-08-20
2026-08-04 change L2 2026-08-31
2026-08-05 change L2 2026-08-20
2026-08-06 change L2 2026-08-31
2026-08-20 pause leave
2026-08-27 revoke F2
2026-09-10 certify F3 førstehjelp 2026-09-10 2028-03-30
2026-09-20 certify L3 likeperson 2026-09-15 2028-03-30
2026-10-01 lift leave
2028-02-10 thresholds 90,45,30,0,-3
2028-03-05 certify F4 førstehjelp 2028-03-10 2030-03-10
2028-05-02 certify L4 likeperson 2028-05-02 2029-05-02
"""
"""What people did; each before the night of its day."""

IN_SQL = {
    "certify": "INSERT INTO certificates (id, mentor_id, kind, issued_on, expires_on)"
    " SELECT md5('{0}')::uuid, id, '{1}', '{2}', '{3}' FROM mentors",
    "change": "UPDATE certificates SET expires_on = '{1}' WHERE id = md5('{0}')::uuid",
    "revoke": "UPDATE certificates SET revoked_at = now() WHERE id = md5('{0}')::uuid",
    "pause": "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, '{0}', 'coordinator' FROM mentors",
    "lift": "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE reason = '{0}'",
    "thresholds": "UPDATE organisations SET reminder_thresholds = '{{{0}}}'",
}


def days(first: str, last: str) -> frozenset[date]:
    """Every day from the first to the last one."""
    begin, end = date.fromisoformat(first), date.fromisoformat(last)
    return frozenset(begin + timedelta(days=number) for number in range((end - begin).days + 1))


MISSED = days("2025-04-14", "2025-04-18") | days("2025-06-01", "2025-06-08") | days("2028-04-02", "2028-04-05")
"""Nights on which certjob did not run."""

DIARY = """
# L2, F1 and the organisation come to certjob on this day.
2025-01-01 L2 recorded → valid; F1 recorded → valid
# The night of the sixtieth day (16 April) was missed.
2025-04-19 F1 valid → expiring; mail 60: expires on 15 June, in 57 days (“førstehjelp”)
2025-05-16 mail 30: expires on 15 June, in 30 days (“førstehjelp”)
# The nights with 14 and with 7 days left were both missed: one message, the more urgent one.
2025-06-09 mail 7: expires on 15 June, in 6 days (“førstehjelp”)
2025-06-14 mail 1: Expires tomorrow, 15 June: your certificate (“førstehjelp”)
# The 15th itself is still in force. L2 does not help: each kind must be in force.
2025-06-16 F1 expiring → expired; pause; portal hide
2025-06-16 mail -1: Expired yesterday, 15 June: your certificate (“førstehjelp”)
# The renewal ends certjob's pause; the coordinator's, open since 20 June, keeps the mentor hidden until the 31st.
2025-07-01 F1 expired → renewed; F2 recorded → valid; lift
2025-07-31 portal show
2025-12-30 L2 valid → expiring; mail 60: expires on 28 February, in 60 days (“likeperson”)
2026-01-29 mail 30: expires on 28 February, in 30 days (“likeperson”)
# Extended in place before 14 days were left; the reminders begin anew, those of 60 and of 30 days again.
# The portal hears of each new last visible day.
2026-02-05 L2 expiring → valid; portal show
2026-07-02 L2 valid → expiring; mail 60: expires on 31 August, in 60 days (“likeperson”)
2026-08-01 mail 30: expires on 31 August, in 30 days (“likeperson”)
# The slip is mailed about once: with 17 days left the threshold of 30 is due, and this is the third date for it.
# Corrected on the 4th, slipped again on the 5th, corrected on the 6th: all these dates were mailed about already.
2026-08-03 portal show; mail 30: expires on 20 August, in 17 days (“likeperson”)
2026-08-04 portal show
2026-08-05 portal show
2026-08-06 portal show
2026-08-17 mail 14: expires on 31 August, in 14 days (“likeperson”)
# A coordinator's pause hides the mentor, and a paused mentor is reminded.
2026-08-20 portal hide
2026-08-24 mail 7: expires on 31 August, in 7 days (“likeperson”)
# With F2 revoked nothing continues F1 any more: it is expired again, long ago, so nobody is mailed. A second pause is
# open beside the coordinator's; the portal has known since the 20th.
2026-08-27 F1 renewed → expired; F2 valid → revoked; pause
2026-08-30 mail 1: Expires tomorrow, 31 August: your certificate (“likeperson”)
# Paused by certjob already, for the other kind.
2026-09-01 L2 expiring → expired; mail -1: Expired yesterday, 31 August: your certificate (“likeperson”)
# One kind in force is not enough: the pause ends on the 20th only. L3 was recorded five days after it began.
2026-09-10 F1 expired → renewed; F3 recorded → valid
2026-09-20 L2 expired → renewed; L3 recorded → valid; lift
2026-10-01 portal show
# Both kinds end on one day.
2028-01-30 F3 valid → expiring; L3 valid → expiring; mail 60: expires on 30 March, in 60 days (“førstehjelp”)
2028-01-30 mail 60: expires on 30 March, in 60 days (“likeperson”)
# New thresholds, the ordinary rule: 90 is due now and was never sent.
2028-02-10 mail 90: expires on 30 March, in 49 days (“førstehjelp”)
2028-02-10 mail 90: expires on 30 March, in 49 days (“likeperson”)
2028-02-14 mail 45: expires on 30 March, in 45 days (“førstehjelp”)
2028-02-14 mail 45: expires on 30 March, in 45 days (“likeperson”)
# Thirty days before, on the leap day.
2028-02-29 mail 30: expires on 30 March, in 30 days (“førstehjelp”)
2028-02-29 mail 30: expires on 30 March, in 30 days (“likeperson”)
# From now on nobody is reminded of F3; it is renewed when F4 begins, not when it is recorded.
2028-03-05 F4 recorded → upcoming
2028-03-10 F3 expiring → renewed; F4 upcoming → valid
2028-03-30 mail 0: Expires today, 30 March: your certificate (“likeperson”)
# Nothing on the day after: "today" would be wrong, and the notice after the expiry comes on the third day. That night
# was missed, and so were the three after it.
2028-03-31 L3 expiring → expired; pause; portal hide
2028-04-06 mail -3: expired on 30 March (“likeperson”)
2028-05-02 L3 expired → renewed; L4 recorded → valid; lift; portal show
2029-02-01 L4 valid → expiring; mail 90: expires on 2 May, in 90 days (“likeperson”)
"""

CYCLES = [
    # Corrected back, the row stays as it was: about the date that was mailed about last.
    "L2 30: 2026-02-28 sent, 2026-08-31 sent, 2026-08-20 sent",
    "L2 60: 2026-02-28 sent, 2026-08-31 sent",
]
"""About which dates a row of the log was, one after the other, where it was more than one date or was not sent."""


def lines(table: str) -> list[str]:
    """What a table written by hand says, one thing a line, without its comments."""
    written = [line for line in table.splitlines() if line and not line.startswith("#")]
    return [f"{line[:10]} {part}" for line in written for part in line[11:].split("; ")]


CERTJOB_WROTE = """
    SELECT at, name || ' ' || from_status || ' → ' || to_status
        FROM certificate_transitions JOIN named ON named.id = certificate_id
    UNION ALL SELECT paused_at, 'pause' FROM mentor_pauses WHERE actor = 'certjob'
    UNION ALL SELECT lifted_at, 'lift' FROM mentor_pauses WHERE lifted_by = 'certjob'
    ORDER BY 1
"""
"""All that is in the audit and in its own pauses, oldest first."""
CYCLES_OF_ROWS = """
    SELECT name || ' ' || threshold_days || ': '
            || string_agg(entry ->> 'expires_on' || ' ' || (entry ->> 'status'), ', ' ORDER BY place)
        FROM cert_notification_log AS l JOIN named ON named.id = cert_id, jsonb_array_elements(
            history || jsonb_build_object('expires_on', expires_on, 'status', status)
        ) WITH ORDINALITY AS e (entry, place)
        WHERE history <> '[]' OR status <> 'sent' GROUP BY l.id, name
"""


def test_the_years_of_one_mentor_are_as_they_were_written_down_beforehand(facts: Facts) -> None:
    """Each message, status, pause and value for the portal on its day, nothing else, and nothing twice.

    A mentor of an organisation with a portal, reading English.
    """
    facts.mentor(facts.organisation(), locale="en")
    facts.connection.execute("SET synchronous_commit = off")  # hundreds of nights, and no power cut
    facts.connection.execute(
        "CREATE TABLE named AS SELECT md5(name)::uuid AS id, name FROM unnest('{L2,L3,L4,F1,F2,F3,F4}'::text[]) AS name"
    )
    portal, channel = FlakyPortal(), CollectingChannel()

    def lived(today: date) -> list[str]:
        """Run one night; return what was seen of it, as lines of the diary."""
        before, calls, mails = len(facts.rows(CERTJOB_WROTE)), len(portal.calls), len(channel.sent)
        report = night(facts.connection, today, portal=portal, channel=channel)
        assert report.outcome is Outcome.OK, report.reasons
        seen = [str(what) for _, what in facts.rows(CERTJOB_WROTE)[before:]]
        seen += [f"portal {'show' if visible else 'hide'}" for _, visible, _ in portal.calls[calls:]]
        for message in channel.sent[mails:]:
            subject = breakable(message.subject).removeprefix("Your certificate ")
            seen.append(f"mail {message.threshold_days}: {subject}")
        return [f"{today} {line}" for line in seen]

    events = defaultdict(list)
    for line in lines(EVENTS):
        events[date.fromisoformat(line[:10])].append(line[11:].split())
    # Whatever happens, happens on its day and not the night before; of the other nights one in forty shows that.
    busy = {date.fromisoformat(line[:10]) for line in lines(DIARY)} | events.keys()
    busy |= {day - timedelta(days=1) for day in busy}
    diary, again = list[str](), list[str]()
    for number, today in enumerate(sorted(days("2025-01-01", "2029-03-01") - MISSED)):
        for verb, *words in events.pop(today, ()):
            changed = facts.connection.execute(IN_SQL[verb].format(*(words or [""])).encode())
            assert changed.rowcount == 1, (today, verb)
        if today in busy or number % 40 == 0:
            seen = lived(today)
            diary += seen
            again += lived(today) if seen else []

    assert sorted(diary) == sorted(lines(DIARY))
    assert (again, dict(events)) == ([], {})
    assert sorted(str(row[0]) for row in facts.rows(CYCLES_OF_ROWS)) == CYCLES
    assert len({message.idempotency_key for message in channel.sent}) == len(channel.sent)
