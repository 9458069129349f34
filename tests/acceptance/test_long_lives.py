"""Six years of one mentor, night by night, against a table written by hand from the rules of the design."""

from collections import defaultdict
from collections.abc import Callable
from datetime import date, timedelta

import pytest

from certjob.mail import stage
from certjob.outbox.retry import constant
from tests.support.facts import Facts
from tests.support.long_life import Life, born, days
from tests.support.mails import breakable

PEER, AID = "likeperson", "førstehjelp"
"""The two kinds of certificate: L1, L2, … are of the first, F1, F2, … of the second."""

EVENTS: list[tuple[str, Callable[[Life], None]]] = [
    ("2024-01-01", lambda life: life.certify("L1", PEER, "2022-02-28", "2024-02-29")),
    ("2024-01-01", lambda life: life.certify("F1", AID, "2023-06-15", "2025-06-15")),
    ("2024-02-26", lambda life: life.certify("L2", PEER, "2024-03-01", "2026-02-28")),  # renewed by a new row, in time
    ("2025-06-20", lambda life: life.pause("illness")),
    ("2025-07-01", lambda life: life.certify("F2", AID, "2025-07-01", "2027-06-30")),  # renewed by a new row, too late
    ("2025-07-31", lambda life: life.lift("illness")),
    ("2026-02-05", lambda life: life.change_expiry("L2", "2026-08-31")),  # extended in place
    ("2026-08-03", lambda life: life.change_expiry("L2", "2026-08-20")),  # a slip,
    ("2026-08-04", lambda life: life.change_expiry("L2", "2026-08-31")),  # corrected back,
    ("2026-08-05", lambda life: life.change_expiry("L2", "2026-08-20")),  # again,
    ("2026-08-06", lambda life: life.change_expiry("L2", "2026-08-31")),  # and again
    ("2026-08-20", lambda life: life.pause("leave")),
    ("2026-08-27", lambda life: life.revoke("F2")),
    ("2026-09-10", lambda life: life.certify("F3", AID, "2026-09-10", "2028-03-30")),
    ("2026-09-20", lambda life: life.certify("L3", PEER, "2026-09-15", "2028-03-30")),
    ("2026-10-01", lambda life: life.lift("leave")),
    ("2027-02-20", lambda life: life.change_expiry("F3", "2027-03-30")),  # the wrong year, still to come
    ("2027-02-22", lambda life: life.change_expiry("F3", "2028-03-30")),
    ("2027-09-01", lambda life: life.change_expiry("L3", "2026-09-30")),  # the wrong year, long past
    ("2027-09-02", lambda life: life.change_expiry("L3", "2028-03-30")),
    ("2028-02-10", lambda life: life.set_thresholds(90, 45, 30, 0, -3)),
    ("2028-03-10", lambda life: life.certify("F4", AID, "2028-03-10", "2030-03-10")),
    ("2028-05-02", lambda life: life.certify("L4", PEER, "2028-05-02", "2029-05-02")),
    ("2029-02-10", lambda life: life.set_thresholds()),
    ("2029-04-10", lambda life: life.set_thresholds(30, 14, 7, 1, -1)),
    ("2029-04-20", lambda life: life.certify("L5", PEER, "2029-05-03", "2031-05-03")),
    ("2029-04-24", lambda life: life.revoke("L5")),
    ("2029-04-26", lambda life: life.unrevoke("L5")),
    ("2029-06-01", lambda life: life.revoke("F4")),
    ("2029-06-15", lambda life: life.make_optional(AID)),
    ("2029-07-01", lambda life: life.certify("F5", AID, "2029-07-01", "2029-09-30")),
    ("2029-09-28", lambda life: life.leave()),
    ("2029-10-05", lambda life: life.come_back()),
]
"""What people did; each before the night of its day."""

MISSED = (
    days("2025-04-14", "2025-04-18")
    | days("2025-06-01", "2025-06-08")
    | days("2027-05-01", "2027-07-31")
    | days("2028-04-02", "2028-04-05")
)
"""Nights on which certjob did not run."""

WITHOUT_MAIL = days("2029-09-15", "2029-09-24")
"""Nights on which the mail server was down."""

DIARY = """
# The first night comes a day after the sixtieth before L1's end: the message says the days that are left, 59.
2024-01-01 L1 recorded → expiring
2024-01-01 F1 recorded → valid
2024-01-01 mail 60: expires in 59 days, on 29 February (“likeperson”)
2024-01-30 mail 30: expires in 30 days, on 29 February (“likeperson”)
2024-02-15 mail 14: expires in 14 days, on 29 February (“likeperson”)
2024-02-22 mail 7: expires in 7 days, on 29 February (“likeperson”)
# L2 begins on the day after the leap day on which L1 ends, so there is no gap: nothing more about L1, neither on the
# 28th (1 day left) nor on the 1st, and no pause. L1 is renewed when L2 begins, not when it is recorded.
2024-02-26 L2 recorded → upcoming
2024-03-01 L1 expiring → renewed
2024-03-01 L2 upcoming → valid

# The night of the sixtieth day (16 April) was missed.
2025-04-19 F1 valid → expiring
2025-04-19 mail 60: expires in 57 days, on 15 June (“førstehjelp”)
2025-05-16 mail 30: expires in 30 days, on 15 June (“førstehjelp”)
# The nights with 14 and with 7 days left were both missed: one message, the more urgent one.
2025-06-09 mail 7: expires in 6 days, on 15 June (“førstehjelp”)
2025-06-14 mail 1: expires tomorrow, 15 June (“førstehjelp”)
# The 15th itself is still in force. L2 does not help: each kind must be in force.
2025-06-16 F1 expiring → expired
2025-06-16 pause
2025-06-16 portal hide
2025-06-16 mail -1: expired yesterday, 15 June (“førstehjelp”)
# The renewal ends certjob's pause; the coordinator's, open since 20 June, keeps the mentor hidden until the 31st.
2025-07-01 F1 expired → renewed
2025-07-01 F2 recorded → valid
2025-07-01 lift
2025-07-31 portal show

2025-12-30 L2 valid → expiring
2025-12-30 mail 60: expires in 60 days, on 28 February (“likeperson”)
2026-01-29 mail 30: expires in 30 days, on 28 February (“likeperson”)
# Extended in place before 14 days were left; the reminders begin anew, those of 60 and of 30 days again.
2026-02-05 L2 expiring → valid
2026-07-02 L2 valid → expiring
2026-07-02 mail 60: expires in 60 days, on 31 August (“likeperson”)
2026-08-01 mail 30: expires in 30 days, on 31 August (“likeperson”)
# The slip is mailed about once: with 17 days left the threshold of 30 is due, and this is the third date for it.
# Corrected on the 4th, slipped again on the 5th, corrected on the 6th: all these dates were mailed about already.
2026-08-03 mail 30: expires in 17 days, on 20 August (“likeperson”)
2026-08-17 mail 14: expires in 14 days, on 31 August (“likeperson”)
# A coordinator's pause hides the mentor, and a paused mentor is reminded.
2026-08-20 portal hide
2026-08-24 mail 7: expires in 7 days, on 31 August (“likeperson”)
# With F2 revoked nothing continues F1 any more: it is expired again, long ago, so nobody is mailed. A second pause is
# open beside the coordinator's; the portal has known since the 20th.
2026-08-27 F1 renewed → expired
2026-08-27 F2 valid → revoked
2026-08-27 pause
2026-08-30 mail 1: expires tomorrow, 31 August (“likeperson”)
# Paused by certjob already, for the other kind.
2026-09-01 L2 expiring → expired
2026-09-01 mail -1: expired yesterday, 31 August (“likeperson”)
# One kind in force is not enough: the pause ends on the 20th only. L3 was recorded five days after it began.
2026-09-10 F1 expired → renewed
2026-09-10 F3 recorded → valid
2026-09-20 L2 expired → renewed
2026-09-20 L3 recorded → valid
2026-09-20 lift
2026-10-01 portal show

# F3's year mistyped for two nights, with 38 days left in the wrong one.
2027-02-20 F3 valid → expiring
2027-02-20 mail 60: expires in 38 days, on 30 March (“førstehjelp”)
2027-02-22 F3 expiring → valid
# L3's year mistyped for one night: paused and hidden, but a notice 336 days after the expiry is too late for anybody.
2027-09-01 L3 valid → expired
2027-09-01 pause
2027-09-01 portal hide
2027-09-02 L3 expired → valid
2027-09-02 lift
2027-09-02 portal show

# Both kinds end on one day. F3's 60 days were used up by the slip of 2027, which was about another date.
2028-01-30 F3 valid → expiring
2028-01-30 L3 valid → expiring
2028-01-30 mail 60: expires in 60 days, on 30 March (“førstehjelp”)
2028-01-30 mail 60: expires in 60 days, on 30 March (“likeperson”)
# New thresholds, the ordinary rule: 90 is due now and was never sent.
2028-02-10 mail 90: expires in 49 days, on 30 March (“førstehjelp”)
2028-02-10 mail 90: expires in 49 days, on 30 March (“likeperson”)
2028-02-14 mail 45: expires in 45 days, on 30 March (“førstehjelp”)
2028-02-14 mail 45: expires in 45 days, on 30 March (“likeperson”)
# Thirty days before, on the leap day.
2028-02-29 mail 30: expires in 30 days, on 30 March (“førstehjelp”)
2028-02-29 mail 30: expires in 30 days, on 30 March (“likeperson”)
2028-03-10 F3 expiring → renewed
2028-03-10 F4 recorded → valid
2028-03-30 mail 0: expires today, 30 March (“likeperson”)
# Nothing on the day after: "today" would be wrong, and the notice after the expiry comes on the third day. That night
# was missed, and so were the three after it.
2028-03-31 L3 expiring → expired
2028-03-31 pause
2028-03-31 portal hide
2028-04-06 mail -3: expired on 30 March (“likeperson”)
2028-05-02 L3 expired → renewed
2028-05-02 L4 recorded → valid
2028-05-02 lift
2028-05-02 portal show

2029-02-01 L4 valid → expiring
2029-02-01 mail 90: expires in 90 days, on 2 May (“likeperson”)
# No thresholds: nothing is expiring, nobody is reminded, for two months.
2029-02-10 L4 expiring → valid
2029-04-10 L4 valid → expiring
2029-04-10 mail 30: expires in 22 days, on 2 May (“likeperson”)
2029-04-18 mail 14: expires in 14 days, on 2 May (“likeperson”)
# L5 silences L4 before it begins. While it is revoked by a mistake L4 is reminded (with 8 days left there is nothing
# new, with 7 there is); afterwards it is silent again.
2029-04-20 L5 recorded → upcoming
2029-04-24 L5 upcoming → revoked
2029-04-25 mail 7: expires in 7 days, on 2 May (“likeperson”)
2029-04-26 L5 revoked → upcoming
2029-05-03 L4 expiring → renewed
2029-05-03 L5 upcoming → valid

# With F4 revoked the row that counts is F3. F1 is still followed by it, and F2 stays revoked.
2029-06-01 F3 renewed → expired
2029-06-01 F4 valid → revoked
2029-06-01 pause
2029-06-01 portal hide
# The organisation no longer asks for the kind.
2029-06-15 lift
2029-06-15 portal show
2029-07-01 F3 expired → renewed
2029-07-01 F5 recorded → valid
2029-08-31 F5 valid → expiring
2029-08-31 mail 30: expires in 30 days, on 30 September (“førstehjelp”)
# The mail server was down from the 15th to the 24th. What was due with 14 days left (the 16th) is overtaken by what was
# due with 7 (the 23rd), and that one says how many are left when it is sent.
2029-09-25 mail 7: expires in 5 days, on 30 September (“førstehjelp”)
# Left on the 28th: no word about the last day, but the row is looked after all the same.
2029-09-28 portal hide
2029-10-01 F5 expiring → expired
# Back within 14 days of the notice after the expiry. No pause: the kind is optional.
2029-10-05 portal show
2029-10-05 mail -1: expired on 30 September (“førstehjelp”)
"""

CYCLES = """
# About which dates a row of the log was, one after the other, where it was more than one date or was not sent.
L2 60: 2026-02-28 sent, 2026-08-31 sent
# Corrected back, the row stays as it was: about the date that was mailed about last.
L2 30: 2026-02-28 sent, 2026-08-31 sent, 2026-08-20 sent
F3 60: 2027-03-30 sent, 2028-03-30 sent
F5 14: 2029-09-30 superseded
"""


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tries for a mail server that is down, without the seconds between them."""
    monkeypatch.setattr(stage, "exponential", lambda **_: constant(seconds=0))


@pytest.mark.usefixtures("no_waits")
def test_six_years_of_one_mentor_are_as_they_were_written_down_beforehand(facts: Facts) -> None:
    """Each message, status, pause and value for the portal on its day, nothing else, and nothing twice."""
    events = defaultdict(list)
    for day, event in EVENTS:
        events[date.fromisoformat(day)].append(event)
    # Whatever happens, happens on its day and not the night before; of the other nights one in twenty shows that.
    busy = {date.fromisoformat(line[:10]) for line in lines(DIARY)} | events.keys() | WITHOUT_MAIL
    busy |= {day - timedelta(days=1) for day in busy}
    nights = sorted(
        day
        for number, day in enumerate(sorted(days("2024-01-01", "2029-12-31") - MISSED))
        if day in busy or number % 20 == 0
    )

    with born(facts) as life:
        life.live(nights, events, without_mail=WITHOUT_MAIL)

    assert sorted(life.diary) == sorted(lines(DIARY))
    assert life.again == []
    assert life.attention == days("2029-09-16", "2029-09-24"), "a message waits for the mail server"
    assert sorted(cycles(life)) == sorted(lines(CYCLES))
    assert len({message["Message-ID"] for message in life.messages}) == len(life.messages)
    # An optional kind pauses nobody: only since it is one do the messages about it say no word of a pause.
    assert [breakable(str(mail["Subject"])) for mail in life.messages if not speaks_of_a_pause(mail)] == [
        f"Your certificate {words} 30 September (“førstehjelp”)"
        for words in ("expires in 30 days, on", "expires in 5 days, on", "expired on")
    ]


def lines(table: str) -> list[str]:
    """The lines of a table written by hand, without its comments."""
    return [line for line in table.splitlines() if line and not line.startswith("#")]


def cycles(life: Life) -> list[str]:
    """The rows of the log that have a history or were not sent, in the form of CYCLES."""
    names = {certificate_id: name for name, certificate_id in life.certificates.items()}
    found = []
    for cert_id, threshold, expires_on, status, history in life.facts.rows(
        "SELECT cert_id, threshold_days, expires_on, status, history FROM cert_notification_log"
        " WHERE history <> '[]' OR status <> 'sent'"
    ):
        entries = [*history, {"expires_on": expires_on, "status": status}]  # type: ignore[misc]
        told = ", ".join(f"{entry['expires_on']} {entry['status']}" for entry in entries)
        found.append(f"{names[cert_id]} {threshold}: {told}")  # type: ignore[index]
    return found


def speaks_of_a_pause(message: object) -> bool:
    part = message.get_body(("plain",))  # type: ignore[attr-defined]
    return "pause" in part.get_content()
