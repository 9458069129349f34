"""The page and the plain lines of `certjob alerts`: the most harmful first, each with its cause and next step."""

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
    """Return the page, after a check that it does not control the terminal and has no line wider than it."""
    output, shown = terminal(columns)
    show_alerts(output, alerts, now=now.astimezone(zone))
    for control in ("\x1b[2J", "\x1b]0", "\x07", "\u202e"):
        assert control not in shown.getvalue()
    text = without_escapes(shown.getvalue())
    assert all(cell_len(line) <= columns for line in text.splitlines()), text
    return text


def ago(**elapsed: float) -> datetime:
    return MORNING - timedelta(**elapsed)


def message(full_name: str, cause: str, kind: Kind = Kind.FAILED_REMINDERS, **changes: Any) -> Alert:
    """Return an alert about a reminder or a digest."""
    about: dict[str, Any] = {"sentence": "Reminder not delivered", "day": date(2026, 12, 2), "calls": None}
    about |= {"last_failed_at": None, "error": "in the server's words"}
    return alert(full_name, kind=kind, cause=cause, **about | changes)


NO_MENTOR: dict[str, Any] = dict.fromkeys(("organisation_id", "organisation", "mentor_id", "member_no", "full_name"))
NO_MENTOR |= dict.fromkeys(("last_failed_at", "next_attempt_at", "calls", "error"))
HELD = alert(days=1.25, kind=Kind.HELD, **NO_MENTOR | {"alert_id": "hlf:held:pauses", "organisation": "hlf"})
HELD = replace(HELD, cause="pauses", sentence="Held", error="33 mentors would be paused", number=33)
EVERYTHING = [
    HELD,
    alert(days=2, kind=Kind.NEVER_REVIEWED, sentence="Not reviewed", cause="not_reviewed", error="a rule refused it"),
    alert("Old", days=9, error="404 (a)"),
    alert("Per [b]", days=4, last_failed_at=ago(hours=1), **BUSY | {"calls": 3}),
    alert("New", error="404 (b)"),
    alert("Pål", last_failed_at=ago(hours=2), **BUSY | {"calls": 3}),
    alert(kind=Kind.UNKNOWN_CONTACTS, cause="unknown_contact", **NO_MENTOR | {"alert_id": "-:unknown_contacts:6f"}),
    alert(kind=Kind.PORTAL_NOT_READ, cause="not_read", **NO_MENTOR | {"error": "The portal has never been read"}),
    alert("Shown", days=300, kind=Kind.MAY_BE_HIDDEN, sentence=HIDDEN, **UNTRIED),
    message("Siv", "no_address"),
    message("Tor", "no_address"),
    message("Eva", "wrong_address"),
    message(HOSTILE, "mail_stopped", Kind.FAILED_DIGESTS, sentence="Digest not delivered"),
    message("Kim", "mail_stopped", Kind.WAITING_REMINDERS, days=400, sentence="Reminder has waited"),
    message("Mia", "mail_stopped", Kind.WAITING_REMINDERS, days=300, sentence="Reminder has waited"),
]


def test_alerts_page_has_the_most_harmful_first_then_the_oldest() -> None:
    """Each group has its cause, the next step, and the mentors."""
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
    assert "404" not in page(alert(cause="no_contact_id")), "this cause needs no technical reason"


def test_plain_line_has_everything_about_one_alert() -> None:
    """It has the next step, unless certjob retries automatically."""
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


def test_plain_lines_have_the_cause_for_everyone_once() -> None:
    """A wrong key has one line with the next step, then a line for each mentor."""
    key: dict[str, Any] = {"cause": "portal_stopped", "error": "the portal answered 401; correct CERTJOB_PORTAL_KEY"}

    first, *others = plain_lines([alert(f"Name{number}", **key) for number in range(3)], now=MORNING)

    assert first.startswith(f"The portal cannot be updated for anyone: {key['error']}; what to do: Correct the setting")
    assert others == [
        f"{VISIBLE}: hlf:may_be_visible:M1001, Name{number}, since 2026-11-23 07:00, 1 call" for number in range(3)
    ]


def test_page_of_a_cause_with_many_mentors_is_short() -> None:
    """2,000 mentors and a wrong key: one reason, one next step, 20 names, and the numbers at the end."""
    why: dict[str, Any] = {"cause": "portal_stopped", "error": "check CERTJOB_PORTAL_KEY"}

    text = page(*(alert(f"Name{number}", **why) for number in range(1, 2001)), columns=80)

    assert flat(text).count("What to do") == flat(text).count("check CERTJOB_PORTAL_KEY") == 1
    assert re.findall(r"M1001, (Name\d+): ", text) == [f"Name{number}" for number in range(1, 21)]
    assert "    … and 1,980 more; `certjob alerts --json` lists all\n" in text
    assert ("certjob resync" in text, len(text.splitlines()) < 40) == (False, True)
    assert text.endswith("\n\nIn short:\n- 2,000 mentors may still be visible on the portal\n")


TWICE = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
"""The hour after it comes twice in Oslo."""


@pytest.mark.parametrize(
    ("since", "now", "words"),
    [
        pytest.param(MORNING + timedelta(seconds=5), MORNING, "just now", id="clocks differ"),
        (ago(seconds=59), MORNING, "just now"),
        (ago(seconds=60), MORNING, "1 minute"),
        (ago(hours=47), MORNING, "23 November 09:00, 1 day"),
        (ago(days=1234), MORNING, "10 July 2023 09:00, 1,234 days"),
        pytest.param(TWICE, TWICE + timedelta(minutes=75), "today 02:30, 1 hour", id="end of summer time"),
        (ago(hours=7.5), MORNING, "today 00:30, 7 hours"),
    ],
)
def test_duration_of_an_alert_is_rounded_down(since: datetime, now: datetime, words: str) -> None:
    """It has the largest unit of the time that passed."""
    assert re.search(rf"since (.*)?{re.escape(words)}$", page(alert(since=since), now=now), re.MULTILINE)


def test_times_of_the_page_are_in_its_zone() -> None:
    """Half past midnight in Oslo is the evening before in New York."""
    assert "since 24 November 18:30, 7 hours" in page(alert(since=ago(hours=7.5)), zone=ZoneInfo("America/New_York"))


@pytest.mark.parametrize(
    ("hours", "words"),
    [(-1, "when `certjob deliver` runs next"), (1.25, "at 09:15, or soon after."), (24, "on 26 November at")],
)
def test_group_has_the_time_of_its_first_retry(hours: float, words: str) -> None:
    """A push that is due is retried by the next delivery."""
    pushes = [alert(next_attempt_at=ago(hours=-each), **BUSY) for each in (hours, 72)]

    assert f"(2) What to do: Wait; certjob tries again {words}" in flat(page(*pushes))


def test_alerts_are_those_of_the_dashboard(facts: Facts, here: Certjob) -> None:
    """After a corrected contact ID, the change is in the queue. A show waits for the review."""
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
    assert corrected.count("The change is in the queue") == 2
    assert here("alerts", "--json").stdout.count("The change is in the queue") == 3


@pytest.mark.parametrize("columns", [40, *range(len(VISIBLE) + 1, 120, 3)])
def test_page_fits_any_width(columns: int) -> None:
    """Commands and dates are never broken. Hostile, wide and long names are printed whole."""
    pushes = [alert(cause="change_refused"), alert("Ola Nordmann", **UNTRIED)]
    pushes += [alert(HOSTILE, error=HOSTILE, member_no=HOSTILE), alert("Ø" * 200, error="e" * 300, member_no="L" * 60)]
    pushes += [alert("👩‍🚀 北京 " * 12), alert("only a number", member_no="only a number")]

    text = page(*pushes, columns=columns)

    assert text.count("Ø") == 200
    phrases = ["[red]M[/red]", ":smile:\\", "- hlf:may_be_visible:only a number:", "北京"]
    if columns > len(VISIBLE):
        phrases += [
            f"{VISIBLE}\n",
            "`certjob resync M1001 --organisation hlf`",
            "`certjob deliver`",
            "23 November 08:00",
        ]
    assert [phrase for phrase in phrases if phrase not in text] == []
