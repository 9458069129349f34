"""`certjob alerts` for a coordinator: who, since when, why, and what to do; the most harmful first."""

import re
import shlex
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from certjob.cli.pages.alerts import NOTHING, plain_lines, show_alerts
from certjob.database import Connection
from certjob.errors import FailureCode
from certjob.views.alerts import read_alerts
from tests.conftest import Certjob
from tests.support.command_line import without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.intents import claim, make_due, review
from tests.support.nights import night
from tests.support.portal_answers import Behaviour, error
from tests.support.portal_server import PortalServer
from tests.support.terminals import HOSTILE, assert_in_order, flat, terminal

VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"
HIDDEN = "Dynamics sync pending — mentor may still be hidden on portal"
OSLO = ZoneInfo("Europe/Oslo")
MORNING = datetime(2026, 11, 25, 7, 0, tzinfo=UTC)
"""Eight in Oslo."""
LONG_AGO = date(2025, 1, 1)
BUSY: dict[str, Any] = {"kind": "transient", "error": "503", "calls": 3}


def ago(**elapsed: float) -> datetime:
    return MORNING - timedelta(**elapsed)


@pytest.fixture
def organisation(facts: Facts) -> UUID:
    return facts.organisation()


def alert(
    facts: Facts,
    organisation: UUID,
    full_name: str | None = "Kari Nordmann",
    *,
    member_no: str | None = None,
    kind: str = "permanent",
    error: str | None = "the portal answered 404 contact_not_found",
    calls: int = 1,
    failed_at: datetime = ago(hours=6),  # noqa: B008 - a constant
    **push: object,
) -> None:
    """A mentor whose push waits; with ``error`` None nothing has failed."""
    mentor_id = facts.mentor(organisation, full_name=full_name, member_no=member_no)
    push = {"visible": False, "wanted_at": ago(days=2), "next_attempt_at": MORNING} | push
    status = "blocked" if kind == "permanent" and error else "pending"
    facts.insert("portal_sync_events", mentor_id=mentor_id, status=status, attempts=min(calls, 1), **push)
    if error is not None:
        code = FailureCode.CONTACT_NOT_FOUND if kind == "permanent" else FailureCode.PORTAL_FAILED
        failure = {"kind": kind, "attempts": calls, "error": error, "failure_code": code, "last_failed_at": failed_at}
        facts.insert("dynamics_sync_failures", mentor_id=mentor_id, visible=push["visible"], **failure)


def page(connection: Connection, *, columns: int = 100, zone: ZoneInfo = OSLO, now: datetime = MORNING) -> str:
    """What a person reads: nothing that the terminal would obey, and no line too wide for it."""
    output, shown = terminal(columns)
    now = now.astimezone(zone)
    show_alerts(output, read_alerts(connection, today=now.date()), now=now)
    for order in ("\x1b[2J", "\x1b]0", "\x07", "\u202e"):
        assert order not in shown.getvalue()
    text = without_escapes(shown.getvalue())
    assert all(cell_len(line) <= columns for line in text.splitlines()), text
    return text


@pytest.fixture
def everything(connection: Connection, facts: Facts, organisation: UUID) -> None:
    """Alerts of every kind but the readings of the portal."""
    mentors = [facts.certified_mentor(organisation, LONG_AGO, member_no=f"M{number}") for number in (1, 2)]
    counts = {"mentors": 33, "ended_by_calendar": 3, "facts_changed": 30, "may_be_shown": 28}
    held = {"what": "pauses", "since": ago(hours=30), "as_of": TODAY, "reason": "33 mentors would be paused"}
    facts.insert("held_reviews", organisation_id=organisation, mentor_ids=mentors, **held, **counts)
    facts.insert("review_problems", mentor_id=mentors[1], reason="a rule refused it", since=ago(days=2), as_of=TODAY)
    reminder = {"threshold_days": 7, "expires_on": "2026-12-02"}
    for mentor_id in mentors:
        about = reminder | {"cert_id": uuid4(), "queued_at": ago(days=400)}
        facts.insert("cert_notification_log", mentor_id=mentor_id, **about)
    failed = {"status": "failed", "last_error": "in certjob's words"}
    for name, code in (("Siv", "no_address"), ("Tor", "no_address"), ("Eva", "address_refused")):
        about = reminder | {"cert_id": uuid4(), "failure_code": code, "queued_at": MORNING}
        mentor_id = facts.mentor(organisation, full_name=name)
        facts.insert("cert_notification_log", mentor_id=mentor_id, **about, **failed)
    for full_name, email in ((HOSTILE, "a@example.org"), (None, "berit@example.org")):
        coordinator = facts.insert("coordinators", organisation_id=organisation, full_name=full_name, email=email)
        about = {"coordinator_id": coordinator, "digest_on": "2026-11-24", "failure_code": "message_refused"}
        facts.insert("coordinator_digests", **about, **failed)
    alert(facts, organisation, "Shown", visible=True, wanted_at=ago(days=300), error=None, calls=0)
    alert(facts, organisation, "New", wanted_at=ago(hours=5), error="404 not found (b)")
    alert(facts, organisation, "Per [b]", **BUSY, wanted_at=ago(days=4), failed_at=ago(hours=1))
    alert(facts, organisation, "Pål", **BUSY, wanted_at=ago(days=4), failed_at=ago(hours=2))
    alert(facts, organisation, "Old", wanted_at=ago(days=9), error="404 not found (a)")


@pytest.mark.usefixtures("everything")
def test_the_most_harmful_comes_first_then_the_oldest(connection: Connection, facts: Facts) -> None:
    """What is held, who was not reviewed, who may be visible, who may be hidden, the mail; each with what to do.

    The page of one mentor stands in README word for word.
    """
    text = flat(page(connection))

    assert_in_order(
        text,
        "HLF is held: nothing was applied to 33 mentors",
        "33 mentors would be paused, since 24 November 02:00, 1 day",
        "If the changes are right, run `certjob run --organisation hlf --allow-mass-change`.",
        "- 3 have ended by the calendar",
        "- 30 have facts that were changed since the last review",
        "- 28 may be shown on the portal and must not be: Kari Nordmann (M1), Kari Nordmann (M2) and 26 more",
        "1 mentor could not be reviewed",
        "a rule refused it What to do: end what is in the way, then `certjob resync M2 --organisation hlf`.",
        "- Kari Nordmann (M2 of hlf): since 23 November 08:00, 2 days",
        "4 mentors may STILL BE VISIBLE on the portal, and must not be",
        VISIBLE,
        "The portal has no contact with this ID. (2 mentors)",
        "Old (M1008 of hlf): since 16 November 08:00, 9 days Last failure today 02:00: 404 not found (a)",
        "New (M1005 of hlf): since today 03:00, 5 hours Last failure today 02:00: 404 not found (b)",
        "Per [b] (M1006 of hlf): since 21 November 08:00, 4 days",
        "Pål (M1007 of hlf): since 21 November 08:00, 4 days Last failure today 07:00: 503",
        "1 mentor may STILL BE HIDDEN on the portal",
        HIDDEN,
        "Shown (M1004 of hlf): since 29 January 08:00, 300 days",
        "3 reminders not delivered",
        "There is no e-mail address. (2 reminders) What to do: add the mentor's address in the app; certjob sends the "
        "reminder after that automatically.",
        "Siv (M1001 of hlf): certificate until 2 December 2026",
        "The mail server refused the address. What to do: ask for the right address, then correct the mentor's address",
        "Eva (M1003 of hlf): certificate until 2 December 2026 Reason: in certjob's words",
        "2 digests not delivered",
        "The message was refused. (2 digests)",
        "correct the coordinator's address in the app",
        "[red]M[/red]",
        "berit@example.org (hlf): of 24 November 2026 Reason: in certjob's words",
        "Mail has waited for more than a day",
        "2 reminders, the oldest, since 21 October 2025 09:00, 400 days",
        "`certjob deliver` sends what waits.",
    )
    assert text.count("503") == 1
    pushes = read_alerts(connection, today=TODAY).pushes
    view = facts.rows("SELECT mentor_id, sentence, error, attempts FROM portal_alerts")  # what the dashboard shows
    assert [(push.mentor_id, push.sentence, push.error, push.calls) for push in pushes] == view
    connection.execute("UPDATE held_reviews SET may_be_shown = 1")  # the first of the two who are stored
    assert "- 1 may be shown on the portal and must not be: Kari Nordmann (M1)\n" in page(connection)
    connection.execute("UPDATE held_reviews SET may_be_shown = 28, mentor_ids = ARRAY[gen_random_uuid()]")  # deleted
    assert "- 28 may be shown on the portal and must not be\n" in page(connection)


@pytest.mark.usefixtures("everything")
def test_off_a_terminal_each_alert_is_one_line_with_everything(connection: Connection) -> None:
    """Each with its own command; who is tried again automatically needs none."""
    now = read_alerts(connection, today=MORNING.date())
    held, problem, *pushed, untried, reminder, _, _, digest, _, mail = plain_lines(now, now=MORNING.astimezone(OSLO))

    correct = "what to do: correct the contact ID in the app, then `certjob resync {} --organisation hlf`"
    assert held.startswith("Held: hlf: 33 mentors would be paused, since 2026-11-24 02:00; 3 have ended by the")
    assert problem == (
        "Not reviewed: Kari Nordmann (M2 of hlf), since 2026-11-23 08:00: a rule refused it; what to do: end what is "
        "in the way, then `certjob resync M2 --organisation hlf`"
    )
    assert pushed == [
        f"{VISIBLE}: Old (M1008 of hlf), since 2026-11-16 08:00, 1 call: 404 not found (a); {correct.format('M1008')}",
        f"{VISIBLE}: New (M1005 of hlf), since 2026-11-25 03:00, 1 call: 404 not found (b); {correct.format('M1005')}",
        f"{VISIBLE}: Per [b] (M1006 of hlf), since 2026-11-21 08:00, 3 calls: 503",
        f"{VISIBLE}: Pål (M1007 of hlf), since 2026-11-21 08:00, 3 calls: 503",
    ]
    assert untried == (
        f"{HIDDEN}: Shown (M1004 of hlf), since 2026-01-29 08:00: Not tried yet, although it has waited for more than "
        "an hour; what to do: `certjob resync M1004 --organisation hlf` does it now. Tell the operator that `certjob "
        "deliver` does not run, or cannot keep up"
    )
    assert reminder == (
        "Reminder not delivered: Siv (M1001 of hlf), certificate until 2 December 2026: There is no e-mail address; "
        "what to do: add the mentor's address in the app; certjob sends the reminder after that automatically"
    )
    assert digest.startswith("Digest not delivered: [red]M[/red]\ufffd[2J")
    assert mail.startswith("Mail waits: 2 reminders, the oldest, since 2025-10-21 09:00; what to do: `certjob check`")


def test_a_cause_that_many_share_is_said_once_and_the_first_are_named(
    connection: Connection, facts: Facts, organisation: UUID
) -> None:
    """2,000 mentors and a wrong key: one reason, one thing to do, 20 names; the heading again, as it scrolled away."""
    connection.execute(
        "WITH m AS (INSERT INTO mentors (organisation_id, member_no, full_name, dynamics_contact_id)"
        "    SELECT %s, 'N' || n, 'Name' || n, gen_random_uuid() FROM generate_series(1, 2000) AS n"
        "    RETURNING id, member_no),"
        " e AS (INSERT INTO portal_sync_events (mentor_id, visible, wanted_at)"
        "    SELECT id, false, %s + make_interval(secs => substr(member_no, 2)::int) FROM m)"
        " INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error, failure_code)"
        " SELECT id, false, 'stage', 'portal: the portal answered 401 unauthorized; check CERTJOB_PORTAL_KEY',"
        " 'portal_key_refused' FROM m",
        (organisation, ago(hours=4)),
    )

    text = page(connection, columns=80)

    assert flat(text).count("contact the operator") == flat(text).count("check CERTJOB_PORTAL_KEY") == 1
    assert re.findall(r"- (Name\d+) ", text) == [f"Name{number}" for number in range(1, 21)]
    assert "    … and 1,980 more; `certjob alerts --json` lists all\n" in text
    assert "certjob resync" not in text
    assert len(text.splitlines()) < 40
    assert text.endswith("\n\n2,000 mentors may STILL BE VISIBLE on the portal, and must not be\n")


def test_the_command_on_the_page_finds_the_mentor(
    connection: Connection, facts: Facts, organisation: UUID, here: Certjob
) -> None:
    """As a shell reads it, with spaces in the number and the number in two organisations."""
    alert(facts, organisation, member_no="M 7 $HOME")
    facts.mentor(facts.organisation("nhf"), member_no="M 7 $HOME")

    found = re.search("`certjob ([^`]*)`", page(connection))
    assert found is not None
    result = here(*shlex.split(found[1]))

    assert (result.returncode, result.stderr.count("portal")) == (3, 1), result


def test_how_long_is_counted_in_hours_that_passed_and_days_are_those_of_the_zone(
    connection: Connection, facts: Facts, organisation: UUID
) -> None:
    """Also over the hour that comes twice. The largest unit, rounded down; clocks that differ make it not negative."""
    alert(facts, organisation)

    for wanted_at, now, said in (
        (MORNING - timedelta(seconds=-5), MORNING, "just now"),
        (MORNING - timedelta(seconds=59), MORNING, "just now"),
        (MORNING - timedelta(seconds=60), MORNING, "1 minute"),
        (MORNING - timedelta(minutes=59), MORNING, "59 minutes"),
        (MORNING - timedelta(hours=47), MORNING, "23 November 09:00, 1 day"),
        (MORNING - timedelta(days=1234), MORNING, "10 July 2023 09:00, 1,234 days"),
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 45, tzinfo=UTC), "today 02:30, 1 hour"),
        (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 25, 1, 15, tzinfo=UTC), "02:30, 45 minutes"),
        (datetime(2026, 11, 24, 23, 30, tzinfo=UTC), MORNING, "today 00:30, 7 hours"),
    ):
        connection.execute("UPDATE portal_sync_events SET wanted_at = %s", (wanted_at,))
        text = page(connection, now=now.astimezone(OSLO))
        assert re.search(rf"since (.*)?{re.escape(said)}$", text, re.MULTILINE), (said, text)
    assert "since 24 November 18:30, 7 hours" in page(connection, zone=ZoneInfo("America/New_York"))


def test_the_next_try_is_said_once_for_all(connection: Connection, facts: Facts, organisation: UUID) -> None:
    """Of several the first; one that is due comes with the next delivery, one in work is left alone."""
    alert(facts, organisation, **BUSY, next_attempt_at=ago(minutes=1))
    due = flat(page(connection))
    make_due(facts)
    claim(connection)
    claimed = flat(page(connection))
    connection.execute("UPDATE portal_sync_events SET next_attempt_at = now() - interval '1 second'")
    run_out = flat(page(connection))  # as after a crash
    connection.execute("UPDATE portal_sync_events SET claim_token = NULL, next_attempt_at = %s", (ago(minutes=-75),))
    later = flat(page(connection))
    alert(facts, organisation, "Ola", **BUSY, next_attempt_at=ago(days=-1))
    two = flat(page(connection))

    assert "certjob tries again automatically when `certjob deliver` runs next" in due
    assert "certjob is working on it right now. What to do: nothing; look again in five minutes." in claimed
    assert "working on it" not in run_out
    assert "certjob tries again automatically at 09:15, or soon after." in later
    assert "(2 mentors) What to do: nothing; certjob tries again automatically at 09:15, or soon after." in two


@pytest.mark.parametrize(
    ("behaviour", "why", "what_to_do"),
    [
        (
            error(503, "token_unavailable"),
            "The portal did not answer or could not make the change.",
            "nothing; certjob",
        ),
        (error(429, "throttled", retry_after="7200"), "certjob stopped before it came to this.", "nothing; certjob"),
        (error(401, "unauthorized"), "certjob cannot update the portal for anyone", "contact the operator and pass on"),
    ],
)
def test_what_the_portal_answered_in_plain_words(
    connection: Connection, facts: Facts, organisation: UUID, behaviour: Behaviour, why: str, what_to_do: str
) -> None:
    """And what it really said, for the operator, as a real night leaves it."""
    facts.certified_mentor(organisation, LONG_AGO)
    with PortalServer() as portal:
        portal.then(*[behaviour] * 3)
        night(connection, portal=portal)

    text = flat(page(connection, now=datetime.now(UTC)))

    assert_in_order(text, why, f"What to do: {what_to_do}", "the portal a")


def test_a_contact_id_is_asked_for_until_it_is_there_and_right(
    connection: Connection, facts: Facts, organisation: UUID
) -> None:
    """Missing, whether to hide or to show; unknown to the portal; corrected, reviewed, delivered and off the page."""
    facts.certified_mentor(organisation, LONG_AGO, contact_id=None)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    with PortalServer() as portal:
        night(connection, portal=portal)
        alert(facts, organisation, "Ola", visible=True, error=None)
        connection.execute("UPDATE mentors SET dynamics_contact_id = NULL")
        missing = flat(page(connection))
        connection.execute("UPDATE dynamics_sync_failures SET kind = 'stage', error = '', failure_code = 'no_url'")
        lines = plain_lines(read_alerts(connection, today=TODAY), now=MORNING)
        said = [line.partition(": ")[2].partition(": ")[2] for line in lines]
        connection.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
        connection.execute("UPDATE portal_sync_events SET status = 'withdrawn' WHERE visible")
        portal.then(error(404, "contact_not_found"))
        night(connection, portal=portal)
        unknown = flat(page(connection, now=soon))
        connection.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
        corrected = flat(page(connection, now=soon))
        review(connection)
        reviewed = flat(page(connection, now=soon))
        night(connection, portal=portal)
        delivered = page(connection)

    why = "The app has no contact ID from Dynamics. What to do: add the contact ID in the app, then"
    assert missing.count(why) == 2
    assert "no dynamics_contact_id" not in missing
    assert "Not tried yet" not in missing
    assert all(each.startswith("The app has no contact ID from Dynamics; what to do: add") for each in said), said
    assert "The portal has no contact with this ID. What to do: correct the contact ID in the app" in unknown
    assert "The contact ID was changed in the app" in corrected
    assert "The last try failed. It was reopened since then" in reviewed
    for text in (corrected, reviewed):
        assert "What to do: nothing; certjob does it automatically when `certjob deliver` runs next" in text
    assert delivered == f"{NOTHING}\n"


def test_hostile_names_are_shown_and_obeyed_by_nobody(connection: Connection, facts: Facts, organisation: UUID) -> None:
    """No order to the terminal, no markup, no emoji codes; nothing wider than the terminal, nothing lost."""
    alert(facts, organisation, HOSTILE, error=f"{HOSTILE} contact_not_found", member_no=HOSTILE)
    alert(facts, organisation, "Ø" * 200, error="e" * 300 + " contact_not_found", member_no="L" * 60)
    alert(facts, organisation, "👩‍🚀 北京 " * 12)
    alert(facts, organisation, None, member_no="only a number")

    for columns in (40, 80):
        text = page(connection, columns=columns)
        assert text.count("Ø") == 200
        for phrase in ("[red]M[/red]", ":smile:\\", "- only a number of hlf: ", "北京"):
            assert phrase in text


def test_a_command_a_date_and_the_designs_sentence_are_never_broken(
    connection: Connection, facts: Facts, organisation: UUID
) -> None:
    """Whoever copies a command copies one line, at whatever size of letters."""
    alert(facts, organisation)
    alert(facts, facts.organisation("nhf"), "Ola Nordmann", error=None, calls=0)

    for columns in range(len(VISIBLE), 120, 3):
        text = page(connection, columns=columns)
        assert f"\n{VISIBLE}\n" in text
        for unbroken in ("`certjob resync M1001 --organisation hlf`", "`certjob deliver`", "23 November 08:00"):
            assert unbroken in text, columns
