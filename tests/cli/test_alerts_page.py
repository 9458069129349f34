"""`certjob alerts` for a coordinator: who, since when, why, and what to do; the most harmful first."""

import re
import shlex
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from certjob.cli.pages.alerts import NOTHING, plain_lines, show_alerts
from certjob.cli.terminal.output import Output
from certjob.database import Connection
from certjob.errors import FailureCode
from certjob.views.alerts import read_alerts
from tests.conftest import Certjob
from tests.support import portal_answers
from tests.support.command_line import without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.intents import claim, make_due, review
from tests.support.nights import night
from tests.support.portal_answers import error
from tests.support.portal_server import PortalServer
from tests.support.terminals import HOSTILE, assert_in_order, flat, terminal

VISIBLE = "Dynamics sync pending — mentor may still be visible on portal"
HIDDEN = "Dynamics sync pending — mentor may still be hidden on portal"
OSLO = ZoneInfo("Europe/Oslo")
MORNING = datetime(2026, 11, 25, 7, 0, tzinfo=UTC)
"""Eight in Oslo."""
LONG_AGO = date(2025, 1, 1)


def alert(
    facts: Facts,
    organisation: UUID,
    full_name: str | None = "Kari Nordmann",
    *,
    visible: bool = False,
    wanted_at: datetime = MORNING - timedelta(days=2),
    error: str | None = "the portal answered 404 contact_not_found",
    kind: str = "permanent",
    calls: int = 1,
    failed_at: datetime = MORNING - timedelta(hours=6),
    next_attempt_at: datetime = MORNING,
    member_no: str | None = None,
) -> UUID:
    """A mentor whose push waits; with ``error`` None nothing has failed."""
    mentor_id = facts.mentor(organisation, full_name=full_name, member_no=member_no)
    status = "blocked" if kind == "permanent" and error else "pending"
    code = FailureCode.CONTACT_NOT_FOUND if kind == "permanent" else FailureCode.PORTAL_FAILED
    facts.connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, next_attempt_at, attempts)"
        " VALUES (%s, %s, %s, %s, %s, %s)",
        (mentor_id, visible, status, wanted_at, next_attempt_at, 1 if calls else 0),
    )
    if error is not None:
        facts.connection.execute(
            "INSERT INTO dynamics_sync_failures"
            " (mentor_id, visible, kind, attempts, error, failure_code, last_failed_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            (mentor_id, visible, kind, calls, error, code, failed_at),
        )
    return mentor_id


def failed_reminder(
    facts: Facts, organisation: UUID, full_name: str, error: str, code: FailureCode = FailureCode.NO_ADDRESS
) -> UUID:
    mentor_id = facts.mentor(organisation, full_name=full_name)
    facts.connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status, last_error,"
        " failure_code) VALUES (%s, 7, %s, '2026-12-02', 'failed', %s, %s)",
        (mentor_id, uuid4(), error, code),
    )
    return mentor_id


def failed_digest(facts: Facts, organisation: UUID, full_name: str | None, error: str) -> None:
    ((coordinator,),) = facts.rows(
        "INSERT INTO coordinators (organisation_id, full_name, email) VALUES (%s, %s, %s) RETURNING id",
        organisation,
        full_name,
        f"{uuid4()}@example.org" if full_name else "berit@example.org",
    )
    facts.connection.execute(
        "INSERT INTO coordinator_digests (coordinator_id, digest_on, status, last_error, failure_code)"
        " VALUES (%s, '2026-11-24', 'failed', %s, 'message_refused')",
        (coordinator, error),
    )


def lines(connection: Connection) -> list[str]:
    """What a program reads."""
    return list(plain_lines(read_alerts(connection, today=MORNING.date()), zone=OSLO, now=MORNING))


def page(connection: Connection, *, columns: int = 100, zone: ZoneInfo = OSLO, now: datetime = MORNING) -> str:
    """What a person reads."""
    output, shown = terminal(columns)
    show_alerts(output, read_alerts(connection, today=now.astimezone(zone).date()), zone=zone, now=now)
    text = without_escapes(shown.getvalue())
    for line in text.splitlines():
        assert cell_len(line) <= columns, line
    return text


# The page as a whole.


def test_what_is_held_comes_first_then_who_was_not_reviewed_and_mail_that_waits_last(
    connection: Connection, facts: Facts
) -> None:
    """Each with since when, why, who, and the command."""
    hlf = facts.organisation("hlf")
    shown = facts.certified_mentor(hlf, LONG_AGO, member_no="M1", full_name="Kari Nordmann")
    broken = facts.certified_mentor(hlf, LONG_AGO, member_no="M2", full_name="Ola Hansen")
    connection.execute(
        "INSERT INTO held_reviews (organisation_id, what, since, as_of, reason, mentors, ended_by_calendar,"
        " facts_changed, may_be_shown, mentor_ids)"
        " VALUES (%s, 'pauses', %s, %s, '33 mentors would be paused', 33, 3, 30, 28, %s)",
        (hlf, MORNING - timedelta(hours=30), TODAY, [shown, broken]),
    )
    connection.execute(
        "INSERT INTO review_problems (mentor_id, reason, since, as_of) VALUES (%s, 'a rule refused it', %s, %s)",
        (broken, MORNING - timedelta(days=2), TODAY),
    )
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, queued_at)"
        " SELECT id, 7, gen_random_uuid(), '2026-11-30', %s FROM mentors",
        (MORNING - timedelta(days=400),),
    )

    shown_page = page(connection)

    assert_in_order(
        flat(shown_page),
        "HLF is held: nothing was applied to 33 mentors",
        "33 mentors would be paused, since 24 November 02:00, 1 day",
        "If the changes are right, run `certjob run --organisation hlf --allow-mass-change`.",
        "- 3 have ended by the calendar",
        "- 30 have facts that were changed since the last review",
        "- 28 may be shown on the portal and must not be: Kari Nordmann (M1), Ola Hansen (M2) and 26 more",
        "1 mentor could not be reviewed",
        "a rule refused it",
        "end what is in the way, then `certjob resync M2 --organisation hlf`.",
        "- Ola Hansen (M2 of hlf): since 23 November 08:00, 2 days",
        "Mail has waited for more than a day",
        "2 reminders, the oldest, since 21 October 2025 09:00, 400 days",
        "`certjob deliver` sends what waits.",
    )
    held, problem, mail = lines(connection)
    assert held.startswith(
        "Held: hlf: 33 mentors would be paused, since 2026-11-24 02:00; 3 have ended by the calendar;"
    )
    assert problem == (
        "Not reviewed: Ola Hansen (M2 of hlf), since 2026-11-23 08:00: a rule refused it; what to do: end what is in "
        "the way, then `certjob resync M2 --organisation hlf`"
    )
    assert mail.startswith("Mail waits: 2 reminders, the oldest, since 2025-10-21 09:00; what to do: `certjob check`")


def test_how_many_held_mentors_may_be_shown_is_said_when_none_of_those_named_is_left(
    connection: Connection, facts: Facts
) -> None:
    """They were named when they were held, and deleted since."""
    hlf = facts.organisation("hlf")
    facts.certified_mentor(hlf, LONG_AGO)
    connection.execute(
        "INSERT INTO held_reviews (organisation_id, what, since, as_of, reason, mentors, ended_by_calendar,"
        " facts_changed, may_be_shown, mentor_ids)"
        " VALUES (%s, 'pauses', %s, %s, '33 mentors would be paused', 33, 3, 30, 28, %s)",
        (hlf, MORNING, TODAY, [uuid4()]),
    )

    assert "- 28 may be shown on the portal and must not be" in page(connection)


def test_the_page_of_one_mentor(connection: Connection, facts: Facts) -> None:
    """Word for word, as it was found good."""
    alert(facts, facts.organisation(), error="the portal answered 404 contact_not_found (no contact with this id)")

    assert (
        page(connection, columns=80)
        == f"""\
1 mentor may STILL BE VISIBLE on the portal, and must not be
{VISIBLE}
They are paused or have left, but the portal has not confirmed that it hides
them: people may still find them there. If it cannot wait, hide them by hand in
Dynamics.

  The portal has no contact with this ID.
  What to do: correct the contact ID in the app, then
  `certjob resync M1001 --organisation hlf`.
    - Kari Nordmann (M1001 of hlf): since 23 November 08:00, 2 days
    Last try today 02:00, 1 call so far: the portal answered 404
    contact_not_found (no contact with this id)
"""
    )


def test_the_most_harmful_comes_first_then_the_oldest(connection: Connection, facts: Facts) -> None:
    """Who may be visible, who may be hidden, then the mail; each begins with whoever has waited longest."""
    organisation = facts.organisation()
    failed_digest(facts, organisation, HOSTILE, "550 no such user")
    failed_digest(facts, organisation, None, "550 no such user")
    failed_reminder(facts, organisation, "Mail Missing", "no address")
    alert(facts, organisation, "Shown Old", visible=True, wanted_at=MORNING - timedelta(days=300))
    alert(facts, organisation, "Hidden New", wanted_at=MORNING - timedelta(hours=5))
    alert(facts, organisation, "Hidden Other", wanted_at=MORNING - timedelta(days=4), error="503", kind="transient")
    alert(facts, organisation, "Hidden Old", wanted_at=MORNING - timedelta(days=9))

    text = page(connection)

    assert_in_order(
        flat(text),
        "3 mentors may STILL BE VISIBLE on the portal, and must not be",
        VISIBLE,
        "The portal has no contact with this ID. (2 mentors)",
        "Hidden Old (M1005 of hlf): since 16 November 08:00, 9 days",
        "Hidden New (M1003 of hlf): since today 03:00, 5 hours",
        "Hidden Other (M1004 of hlf): since 21 November 08:00, 4 days",
        "1 mentor may STILL BE HIDDEN on the portal",
        HIDDEN,
        "Shown Old (M1002 of hlf): since 29 January 08:00, 300 days",
        "1 reminder not delivered",
        "Mail Missing (M1001 of hlf): certificate until 2 December 2026",
        "2 digests not delivered",
        "The message was refused. (2 digests)",
        "correct the coordinator's address in the app",
        "[red]M[/red]",
        "berit@example.org (hlf): of 24 November",
        "Reason: 550 no such user",
    )
    assert [line.partition(":")[0] for line in lines(connection)] == [
        *[VISIBLE] * 3,
        HIDDEN,
        "Reminder not delivered",
        *["Digest not delivered"] * 2,
    ]
    assert "\x1b" not in text + "".join(lines(connection))


def test_a_cause_that_many_share_is_said_once_and_the_first_are_named(connection: Connection, facts: Facts) -> None:
    """2,000 mentors and a wrong key: one reason, one thing to do, 20 names."""
    organisation = facts.organisation()
    facts.connection.execute(
        "WITH m AS (INSERT INTO mentors (organisation_id, member_no, full_name, dynamics_contact_id)"
        "    SELECT %s, 'N' || n, 'Name' || n, gen_random_uuid() FROM generate_series(1, 2000) AS n"
        "    RETURNING id, member_no),"
        " e AS (INSERT INTO portal_sync_events (mentor_id, visible, wanted_at)"
        "    SELECT id, false, %s + make_interval(secs => substr(member_no, 2)::int) FROM m)"
        " INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error, failure_code)"
        " SELECT id, false, 'stage', 'portal: the portal answered 401 unauthorized; check CERTJOB_PORTAL_KEY',"
        " 'portal_key_refused' FROM m",
        (organisation, MORNING - timedelta(hours=4)),
    )

    text = page(connection, columns=80)

    assert flat(text).count("contact the operator") == flat(text).count("check CERTJOB_PORTAL_KEY") == 1
    assert "2,000 mentors may STILL BE VISIBLE" in text
    assert re.findall(r"- (Name\d+) ", text) == [f"Name{number}" for number in range(1, 21)]
    assert "    … and 1,980 more; `certjob alerts --json` lists all\n" in text
    assert "certjob resync" not in text
    assert len(text.splitlines()) < 40
    assert text.endswith(
        "\n\n2,000 mentors may STILL BE VISIBLE on the portal, and must not be\n"
    )  # it had scrolled away


def test_reasons_that_differ_stand_under_their_mentors(connection: Connection, facts: Facts) -> None:
    """The operator needs to know which is whose; one that is the same for all stands once, after the last of them."""
    organisation = facts.organisation()
    alert(facts, organisation, "Kari", error="404 contact_not_found (a)", wanted_at=MORNING - timedelta(days=3))
    alert(facts, organisation, "Ola", error="404 contact_not_found (b)")
    other = {"kind": "transient", "error": "503", "failed_at": MORNING - timedelta(hours=1), "calls": 3}
    alert(facts, organisation, "Per", **other)  # type: ignore[arg-type]
    alert(facts, organisation, "Pål", **other | {"failed_at": MORNING - timedelta(hours=2)})  # type: ignore[arg-type]

    text = page(connection)

    assert_in_order(text, "Kari", "contact_not_found (a)", "Ola", "contact_not_found (b)", "Per", "Pål", ": 503\n")
    assert text.count("    Last try today 07:00: 503\n") == 1


def test_the_command_on_the_page_finds_the_mentor(connection: Connection, facts: Facts, certjob: Certjob) -> None:
    """As a shell reads it, with spaces in the number and the number in two organisations."""
    alert(facts, facts.organisation("hlf"), member_no="M 7 $HOME")
    facts.mentor(facts.organisation("nhf"), member_no="M 7 $HOME")

    found = re.search("`certjob ([^`]*)`", page(connection))
    assert found is not None
    result = certjob(*shlex.split(found[1]))

    assert (result.returncode, result.stderr.count("portal")) == (3, 1), result


# Times.


def test_times_are_those_of_the_zone(connection: Connection, facts: Facts) -> None:
    """Days, too: what is today there may be yesterday here."""
    alert(facts, facts.organisation(), wanted_at=datetime(2026, 11, 24, 23, 30, tzinfo=UTC))

    assert "since today 00:30, 7 hours" in page(connection)
    assert "since 24 November 18:30, 7 hours" in page(connection, zone=ZoneInfo("America/New_York"))


def test_how_long_is_counted_in_hours_that_passed(connection: Connection, facts: Facts) -> None:
    """Over the night in which an hour comes twice, with everybody in the same zone."""
    alert(facts, facts.organisation(), wanted_at=datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    connection.execute("SET timezone = 'Europe/Oslo'")

    for minutes, said in ((75, "1 hour"), (45, "45 minutes")):
        now = datetime(2026, 10, 25, 0, 30, tzinfo=UTC) + timedelta(minutes=minutes)
        assert f"since today 02:30, {said}\n" in page(connection, now=now.astimezone(OSLO))


def test_how_long_in_words(connection: Connection, facts: Facts) -> None:
    """The largest unit, rounded down; clocks that differ do not make it negative; another year is said."""
    alert(facts, facts.organisation())
    for elapsed, said in (
        (timedelta(seconds=-5), "just now"),
        (timedelta(seconds=59), "just now"),
        (timedelta(seconds=60), "1 minute"),
        (timedelta(minutes=59), "59 minutes"),
        (timedelta(hours=47), "1 day"),
        (timedelta(days=1234), "10 July 2023 09:00, 1,234 days"),
    ):
        facts.connection.execute("UPDATE portal_sync_events SET wanted_at = %s", (MORNING - elapsed,))
        assert re.search(rf"since (.*, )?{re.escape(said)}$", page(connection), re.MULTILINE), said


def test_the_next_try_is_said_once_or_behind_each_name(connection: Connection, facts: Facts) -> None:
    """Once if it is the same for all; one that is due comes with the next delivery."""
    organisation = facts.organisation()
    waiting = {"kind": "transient", "error": "503", "calls": 3}
    alert(facts, organisation, **waiting, next_attempt_at=MORNING - timedelta(minutes=1))  # type: ignore[arg-type]
    due = flat(page(connection))
    facts.connection.execute("UPDATE portal_sync_events SET next_attempt_at = %s", (MORNING + timedelta(minutes=75),))
    later = flat(page(connection))
    alert(facts, organisation, "Ola", **waiting, next_attempt_at=MORNING + timedelta(days=1))  # type: ignore[arg-type]
    two = flat(page(connection))

    assert "certjob tries again automatically when `certjob deliver` runs next" in due
    assert "certjob tries again automatically at 09:15, or soon after." in later
    assert "certjob tries again automatically at the time behind the name." in two
    assert "Kari Nordmann (M1001 of hlf): since 23 November 08:00, 2 days; next try at 09:15" in two
    assert "Ola (M1002 of hlf): since 23 November 08:00, 2 days; next try on 26 November at 08:00" in two


# Why, and what to do: each cause as a real night against a real server leaves it.

ASK_THE_OPERATOR = "contact the operator and pass on the technical reason"
AUTOMATICALLY = "nothing; certjob tries again automatically"


@pytest.mark.parametrize(
    ("behaviour", "why", "what_to_do"),
    [
        (
            error(404, "contact_not_found"),
            "The portal has no contact with this ID.",
            "correct the contact ID in the app",
        ),
        (error(503, "token_unavailable"), "The portal did not answer or could not make the change.", AUTOMATICALLY),
        (error(429, "throttled", retry_after="7200"), "certjob stopped before it came to this.", AUTOMATICALLY),
        (error(401, "unauthorized"), "certjob cannot update the portal for anyone", ASK_THE_OPERATOR),
    ],
)
def test_what_the_portal_answered_in_plain_words(
    connection: Connection, facts: Facts, behaviour: portal_answers.Behaviour, why: str, what_to_do: str
) -> None:
    """And what it really said, for the operator."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    with PortalServer() as portal:
        portal.then(*[behaviour] * 3)
        night(connection, portal=portal)

    text = flat(page(connection, now=datetime.now(UTC)))

    assert why in text
    assert f"What to do: {what_to_do}" in text
    assert "the portal answered" in text or "the portal asked to wait" in text


def test_a_missing_contact_id_is_to_be_added(connection: Connection, facts: Facts) -> None:
    """Before the first try as well, whether to hide or to show."""
    organisation = facts.organisation()
    facts.certified_mentor(organisation, LONG_AGO, contact_id=None)
    with PortalServer() as portal:
        night(connection, portal=portal)
    alert(facts, organisation, "Ola", visible=True, error=None)
    facts.connection.execute("UPDATE mentors SET dynamics_contact_id = NULL")

    text = flat(page(connection))

    why = "The app has no contact ID from Dynamics. What to do: add the contact ID in the app, then"
    assert text.count(why) == 2
    assert "no dynamics_contact_id" not in text
    assert "Not tried yet" not in text
    facts.connection.execute(
        "UPDATE dynamics_sync_failures SET kind = 'stage', error = 'no URL', failure_code = 'no_url'"
    )
    said = [line.partition(": ")[2].partition(": ")[2] for line in lines(connection)]
    assert all(each.startswith("The app has no contact ID from Dynamics; what to do: add") for each in said), said


def test_a_contact_id_that_was_corrected_is_not_asked_for_again(connection: Connection, facts: Facts) -> None:
    """First the next review takes it up, then the next delivery; then the mentor is off the page."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    with PortalServer() as portal:
        portal.then(error(404, "contact_not_found"))
        night(connection, portal=portal)
        facts.connection.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
        soon = datetime.now(UTC) + timedelta(minutes=1)
        corrected = flat(page(connection, now=soon))
        review(connection)
        reviewed = flat(page(connection, now=soon))
        night(connection, portal=portal)
        delivered = page(connection)

    assert "The contact ID was changed in the app" in corrected
    assert "What to do: nothing; certjob does it automatically when `certjob deliver` runs next" in corrected
    assert "The last try failed. It was reopened since then" in reviewed
    assert "What to do: nothing; certjob does it automatically when `certjob deliver` runs next" in reviewed
    assert delivered == f"{NOTHING}\n"


def test_a_push_in_flight_is_left_alone(connection: Connection, facts: Facts) -> None:
    """While the lease lasts; after a crash it is as it was before."""
    alert(facts, facts.organisation(), kind="transient", error="503")
    make_due(facts)
    claim(connection)
    claimed = flat(page(connection))
    facts.connection.execute("UPDATE portal_sync_events SET next_attempt_at = now() - interval '1 second'")
    run_out = flat(page(connection))

    assert "certjob is working on it right now. What to do: nothing; look again in five minutes." in claimed
    assert "working on it" not in run_out


def test_why_a_reminder_did_not_arrive(connection: Connection, facts: Facts) -> None:
    """An address that is corrected is all it needs; each cause of its own is said once."""
    organisation = facts.organisation()
    after = "certjob sends the reminder after that automatically."
    for name, code in (
        ("Siv", FailureCode.NO_ADDRESS),
        ("Tor", FailureCode.NO_ADDRESS),
        ("Per", FailureCode.ADDRESS_REFUSED),
    ):
        failed_reminder(facts, organisation, name, "in certjob's words", code)

    assert_in_order(
        flat(page(connection)),
        f"There is no e-mail address. (2 reminders) What to do: add the mentor's address in the app; {after}",
        "Siv (M1001 of hlf): certificate until 2 December 2026",
        "The mail server refused the address. What to do: ask for the right address, then correct the mentor's address",
        "Per (M1003 of hlf): certificate until 2 December 2026 Reason: in certjob's words",
    )


# Names from strangers.


def test_hostile_names_are_shown_and_obeyed_by_nobody(connection: Connection, facts: Facts) -> None:
    """No order to the terminal, no markup, no emoji codes; nothing wider than the terminal, nothing lost."""
    organisation = facts.organisation()
    alert(facts, organisation, HOSTILE, error=f"{HOSTILE} contact_not_found", member_no=HOSTILE)
    alert(facts, organisation, "Ø" * 200, error="e" * 300 + " contact_not_found", member_no="L" * 60)
    alert(facts, organisation, "👩‍🚀 北京 " * 12)
    alert(facts, organisation, None, member_no="only a number")

    for columns in (40, 80):
        output, shown = terminal(columns)
        show_alerts(output, read_alerts(connection, today=TODAY), zone=OSLO, now=MORNING)
        raw, text = shown.getvalue(), page(connection, columns=columns)

        for order in ("\x1b[2J", "\x1b]0", "\x07", "\u202e"):
            assert order not in raw
        assert "[red]M[/red]" in text
        assert ":smile:\\" in "".join(text.split())
        assert text.count("Ø") == 200
        assert "- only a number of hlf: " in flat(text)
        assert "北京" in text


def test_a_command_a_date_and_the_designs_sentence_are_never_broken(connection: Connection, facts: Facts) -> None:
    """Whoever copies a command copies one line, at whatever size of letters."""
    alert(facts, facts.organisation())
    alert(facts, facts.organisation("nhf"), "Ola Nordmann", error=None, calls=0)

    for columns in range(len(VISIBLE), 120, 3):
        text = page(connection, columns=columns)
        assert f"\n{VISIBLE}\n" in text
        for unbroken in ("`certjob resync M1001 --organisation hlf`", "`certjob deliver`", "23 November 08:00"):
            assert unbroken in text, columns


# Off a terminal.


def test_off_a_terminal_each_alert_is_one_line_with_everything(
    connection: Connection, facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sentence, person, since when, how often, why, what to do; harmless, and never wrapped; each its own command."""
    organisation = facts.organisation()
    alert(facts, organisation, "Kari [b]Nordmann", error="the portal answered 503", kind="transient", calls=3)
    for _ in range(2):
        alert(facts, organisation, "Ola")
    alert(facts, organisation, "\x1b[2J", error=None, calls=0, visible=True)
    failed_reminder(facts, organisation, "Ola Nordmann", "no address")

    show_alerts(Output(quiet=False), read_alerts(connection, today=TODAY), zone=OSLO, now=MORNING)

    since = "since 2026-11-23 08:00"
    error = "the portal answered 404 contact_not_found; what to do: correct the contact ID in the app, then"
    assert capsys.readouterr().out.splitlines() == [
        f"{VISIBLE}: Kari [b]Nordmann (M1001 of hlf), {since}, 3 calls: the portal answered 503",
        f"{VISIBLE}: Ola (M1002 of hlf), {since}, 1 call: {error} `certjob resync M1002 --organisation hlf`",
        f"{VISIBLE}: Ola (M1003 of hlf), {since}, 1 call: {error} `certjob resync M1003 --organisation hlf`",
        f"{HIDDEN}: \ufffd[2J (M1004 of hlf), {since}: Not tried yet, although it has waited for more than an hour; "
        "what to do: `certjob resync M1004 --organisation hlf` does it now. Tell the operator that `certjob deliver` "
        "does not run, or cannot keep up",
        "Reminder not delivered: Ola Nordmann (M1005 of hlf), certificate until 2 December 2026: no address; what to "
        "do: add the mentor's address in the app; certjob sends the reminder after that automatically",
    ]


def test_the_details_are_those_of_the_view_in_its_order(connection: Connection, facts: Facts) -> None:
    """The page, the JSON document and the app's dashboard agree on who is an alert."""
    organisation = facts.organisation()
    for number in range(6):
        alert(facts, organisation, visible=number % 2 == 0, wanted_at=MORNING - timedelta(days=number % 4))
    facts.connection.execute("UPDATE dynamics_sync_failures SET resolved_at = now() WHERE id % 3 = 0")
    facts.connection.execute(
        "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, error, resolved_at)"
        " SELECT id, false, 'stage', 'long ago', now() FROM mentors"
    )

    pushes = read_alerts(connection, today=TODAY).pushes

    view = facts.rows("SELECT mentor_id, sentence, error, attempts FROM portal_alerts")
    assert [(push.mentor_id, push.sentence, push.error, push.calls) for push in pushes] == view
