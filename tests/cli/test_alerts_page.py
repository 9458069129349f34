"""`certjob alerts` for a coordinator: who, since when, why, and what to do; the most harmful first."""

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from certjob.cli.pages.alerts import plain_lines, show_alerts
from certjob.reports.alerts import Alert
from certjob.review.attention import Kind
from tests.cli.conftest import MORNING, VISIBLE, alert
from tests.conftest import Certjob
from tests.support.command_line import HOSTILE, assert_in_order, flat, terminal, without_escapes
from tests.support.facts import Facts
from tests.support.nights import review

HIDDEN = VISIBLE.replace("visible", "hidden")
OSLO = ZoneInfo("Europe/Oslo")
BUSY: dict[str, Any] = {"cause": "portal_down", "state": "waiting", "error": "503"}
UNTRIED: dict[str, Any] = dict.fromkeys(("error", "last_failed_at", "calls"))
UNTRIED |= {"cause": "portal_stopped", "state": "waiting"}


def page(*alerts: Alert, columns: int = 100, zone: ZoneInfo = OSLO, now: datetime = MORNING) -> str:
    """What a person reads: nothing that the terminal would obey, and no line too wide for it."""
    output, shown = terminal(columns)
    show_alerts(output, alerts, now=now.astimezone(zone))
    for order in ("\x1b[2J", "\x1b]0", "\x07", "\u202e"):
        assert order not in shown.getvalue()
    text = without_escapes(shown.getvalue())
    assert all(cell_len(line) <= columns for line in text.splitlines()), text
    return text


def ago(**elapsed: float) -> datetime:
    return MORNING - timedelta(**elapsed)


def reminder(full_name: str, cause: str, kind: Kind = Kind.FAILED_REMINDERS, **changes: Any) -> Alert:
    about: dict[str, Any] = {
        "sentence": "Reminder not delivered",
        "day": date(2026, 12, 2),
        "calls": None,
        "last_failed_at": None,
    }
    return alert(full_name, kind=kind, cause=cause, error="in the server's words", **about | changes)


NOBODY: dict[str, Any] = dict.fromkeys(("organisation_id", "organisation", "mentor_id", "member_no", "full_name"))
NOBODY |= dict.fromkeys(("last_failed_at", "next_attempt_at", "calls", "error"))
HELD = alert(days=1.25, kind=Kind.HELD, **NOBODY | {"alert_id": "hlf:held:pauses", "organisation": "hlf"})
HELD = replace(HELD, cause="pauses", sentence="Held", error="33 mentors would be paused", number=33)
EVERYTHING = [
    HELD,
    alert(days=2, kind=Kind.NEVER_REVIEWED, sentence="Not reviewed", cause="not_reviewed", error="a rule refused it"),
    alert("Old", days=9, error="404 (a)"),
    alert("Per [b]", days=4, last_failed_at=ago(hours=1), **BUSY | {"calls": 3}),
    alert("New", error="404 (b)"),
    alert("Pål", last_failed_at=ago(hours=2), **BUSY | {"calls": 3}),
    alert(kind=Kind.UNKNOWN_CONTACTS, cause="unknown_contact", **NOBODY | {"alert_id": "-:unknown_contacts:6f"}),
    alert(kind=Kind.PORTAL_NOT_READ, cause="not_read", **NOBODY | {"error": "The portal has never been read"}),
    alert("Shown", days=300, kind=Kind.MAY_BE_HIDDEN, sentence=HIDDEN, **UNTRIED),
    reminder("Siv", "no_address"),
    reminder("Tor", "no_address"),
    reminder("Eva", "wrong_address"),
    reminder(HOSTILE, "mail_stopped", Kind.FAILED_DIGESTS, sentence="Digest not delivered"),
    reminder("Kim", "mail_stopped", Kind.WAITING_REMINDERS, days=400, sentence="Reminder has waited"),
    reminder("Mia", "mail_stopped", Kind.WAITING_REMINDERS, days=300, sentence="Reminder has waited"),
]


def test_alerts_page_has_the_most_harmful_first_then_the_oldest() -> None:
    """Each group has its cause, what to do, and who."""
    text = flat(page(*EVERYTHING))

    assert_in_order(
        text,
        "1 organisation is held",
        "33 mentors would be paused What to do: Check the clock and the last import;",
        "If the changes are right, run `certjob run --allow hlf=33`.",
        "- hlf:held:pauses: since 24 November 02:00, 1 day",
        "1 mentor could not be reviewed",
        "- hlf:never_reviewed:M1001, Kari Nordmann: since 23 November 08:00, 2 days",
        VISIBLE,
        "4 mentors must not be visible, but the portal has not confirmed that it hides them",
        "Dynamics has no contact with this ID. (2) What to do:",
        "Old: since 16 November 08:00, 9 days Last failure today 08:00: 404 (a)",
        "New: since 23 November 08:00, 2 days Last failure today 08:00: 404 (b)",
        "Per [b]: since 21 November 08:00, 4 days",
        "Pål: since 23 November 08:00, 2 days Last failure today 07:00: 503",
        "1 contact on the portal does not belong to any mentor",
        "or run `certjob acknowledge -:unknown_contacts:6f --because TEXT`.",
        "The portal has never been read What to do: Run `certjob reconcile`",
        HIDDEN,
        "1 mentor may meet people again",
        "Shown: since 29 January 08:00, 300 days",
        "3 reminders were not delivered",
        "There is no e-mail address. (2) What to do:",
        "Eva: certificate until 2 December 2026 Reason: in the server's words",
        "1 digest was not delivered",
        ":smile:\\: of 2 December 2026",
        "2 reminders have waited for more than a day",
        "Kim: certificate until 2 December 2026",
    )
    assert text.count("503") == 1
    assert "404" not in page(alert(cause="no_contact_id")), "the cause says it all"


def test_alert_lines_have_everything_about_one_alert() -> None:
    """Each has its own action; a mentor who is tried again automatically needs none."""
    lines = list(plain_lines(EVERYTHING, now=MORNING.astimezone(OSLO)))

    who, correct = f"{VISIBLE}: hlf:may_be_visible:M1001", "what to do: Correct the contact ID in the app; the next"
    assert lines[2].startswith(f"{who}, Old, since 2026-11-16 08:00, 1 call: 404 (a); {correct}")
    assert lines[3].startswith(f"{who}, New, since 2026-11-23 08:00, 1 call: 404 (b); {correct}")
    assert lines[4:6] == [
        f"{who}, Per [b], since 2026-11-21 08:00, 3 calls: 503",
        f"{who}, Pål, since 2026-11-23 08:00, 3 calls: 503",
    ]
    for beginning in (
        "Held: hlf:held:pauses, since 2026-11-24 02:00: 33 mentors would be paused; what to do: Check the clock",
        "Reminder not delivered: hlf:failed_reminders:M1001, Siv, certificate until 2 December 2026, since 2026-11-23",
        "Digest not delivered: hlf:failed_digests:M1001, [red]M[/red]\ufffd[2J",
    ):
        assert any(line.startswith(beginning) for line in lines), beginning


def test_alert_lines_say_once_what_is_wrong_for_everyone() -> None:
    """A wrong key has one line with what to correct, then a line for each mentor."""
    key: dict[str, Any] = {"cause": "portal_stopped", "error": "the portal answered 401; correct CERTJOB_PORTAL_KEY"}

    first, *others = plain_lines([alert(f"Name{number}", **key) for number in range(3)], now=MORNING)

    assert first.startswith(f"The portal cannot be updated for anyone: {key['error']}; what to do: Correct the setting")
    assert others == [
        f"{VISIBLE}: hlf:may_be_visible:M1001, Name{number}, since 2026-11-23 07:00, 1 call" for number in range(3)
    ]


def test_a_cause_that_many_share_is_said_once_and_the_first_are_named() -> None:
    """2,000 mentors and a wrong key: one reason, one thing to do, 20 names; the heading again, as it scrolled away."""
    why: dict[str, Any] = {"cause": "portal_stopped", "error": "check CERTJOB_PORTAL_KEY"}

    text = page(*(alert(f"Name{number}", **why) for number in range(1, 2001)), columns=80)

    assert flat(text).count("What to do") == flat(text).count("check CERTJOB_PORTAL_KEY") == 1
    assert re.findall(r"M1001, (Name\d+): ", text) == [f"Name{number}" for number in range(1, 21)]
    assert "    … and 1,980 more; `certjob alerts --json` lists all\n" in text
    assert "certjob resync" not in text
    assert len(text.splitlines()) < 40
    assert text.endswith("\n\nIn short:\n- 2,000 mentors may still be visible on the portal\n")


def test_how_long_is_counted_in_hours_that_passed_and_days_are_those_of_the_zone() -> None:
    """Also over the hour that comes twice. The largest unit, rounded down; clocks that differ make it not negative."""
    twice = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    for wanted_at, now, said in (
        (MORNING + timedelta(seconds=5), MORNING, "just now"),
        (ago(seconds=59), MORNING, "just now"),
        (ago(seconds=60), MORNING, "1 minute"),
        (ago(hours=47), MORNING, "23 November 09:00, 1 day"),
        (ago(days=1234), MORNING, "10 July 2023 09:00, 1,234 days"),
        (twice, twice + timedelta(minutes=75), "today 02:30, 1 hour"),
        (ago(hours=7.5), MORNING, "today 00:30, 7 hours"),
    ):
        text = page(alert(since=wanted_at), now=now)
        assert re.search(rf"since (.*)?{re.escape(said)}$", text, re.MULTILINE), (said, text)
    assert "since 24 November 18:30, 7 hours" in page(alert(since=ago(hours=7.5)), zone=ZoneInfo("America/New_York"))


def test_the_next_try_is_said_once_for_all() -> None:
    """Of several the first; one that is due comes with the next delivery, on another day it has its date."""
    for hours, said in (
        (-1, "when `certjob deliver` runs next"),
        (1.25, "at 09:15, or soon after."),
        (24, "on 26 November at"),
    ):
        pushes = [alert(next_attempt_at=ago(hours=-each), **BUSY) for each in (hours, 72)]
        assert f"(2) What to do: Wait; certjob tries again {said}" in flat(page(*pushes))


def test_the_list_is_that_of_the_dashboard_and_a_corrected_contact_id_is_told(facts: Facts, here: Certjob) -> None:
    """Hides first, then whoever has waited longest. After the next review it is only reopened."""
    organisation = facts.organisation()
    for name, visible, days in (("show", True, 9), ("new", False, 1), ("old", False, 8)):
        mentor = facts.certified_mentor(organisation, date(2025, 1, 1), full_name=name)
        facts.connection.execute("UPDATE mentors SET review_on = '9999-12-31' WHERE id = %s", (mentor,))
        times = {"wanted_at": ago(days=1000 + days), "next_attempt_at": ago()}
        facts.insert("portal_sync_events", mentor_id=mentor, visible=visible, status="blocked", attempts=1, **times)
        failure = {"kind": "permanent", "error": "404", "failure_code": "contact_not_found", "attempts": 1}
        facts.insert("dynamics_sync_failures", mentor_id=mentor, visible=visible, **failure)

    dashboard = facts.rows("SELECT sentence, full_name FROM alerts ORDER BY kind DESC, since")
    alerts = json.loads(here("alerts", "--json").stdout)["alerts"]
    facts.connection.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
    corrected = here("alerts", "--json").stdout
    review(facts.connection)

    assert [(alert["sentence"], alert["full_name"]) for alert in alerts] == dashboard
    assert [name for _, name in dashboard] == ["old", "new", "show"]
    assert corrected.count("The change is in the queue") == 2, "the show waits for the review"
    assert here("alerts", "--json").stdout.count("The change is in the queue") == 3


def test_hostile_names_are_shown_and_obeyed_by_nobody() -> None:
    """No order to the terminal, no markup, no emoji codes; nothing wider than the terminal, nothing lost."""
    pushes = [alert(HOSTILE, error=HOSTILE, member_no=HOSTILE), alert("Ø" * 200, error="e" * 300, member_no="L" * 60)]
    pushes += [alert("👩‍🚀 北京 " * 12), alert("only a number", member_no="only a number")]

    for columns in (40, 80):
        text = page(*pushes, columns=columns)
        assert text.count("Ø") == 200
        for phrase in ("[red]M[/red]", ":smile:\\", "- hlf:may_be_visible:only a number:", "北京"):
            assert phrase in text


@pytest.mark.parametrize("columns", range(len(VISIBLE) + 1, 120, 3))
def test_a_command_a_date_and_the_designs_sentence_are_never_broken(columns: int) -> None:
    """Whoever copies a command copies one line, at whatever size of letters."""
    text = page(alert(cause="change_refused"), alert("Ola Nordmann", **UNTRIED), columns=columns)

    assert f"{VISIBLE}\n" in text
    for unbroken in ("`certjob resync M1001 --organisation hlf`", "`certjob deliver`", "23 November 08:00"):
        assert unbroken in text
