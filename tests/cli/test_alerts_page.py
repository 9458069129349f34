"""`certjob alerts` for a coordinator: who, since when, why, and what to do; the most harmful first."""

import json
import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from certjob.cli.pages.alerts import plain_lines, show_alerts
from certjob.reports import alerts as view
from certjob.reports.alerts import Alerts
from certjob.reports.open_pushes import OpenPush
from tests.cli.conftest import MORNING, VISIBLE, push
from tests.conftest import Certjob
from tests.support.command_line import without_escapes
from tests.support.facts import Facts
from tests.support.intents import review
from tests.support.terminals import HOSTILE, assert_in_order, flat, terminal

HIDDEN = VISIBLE.replace("visible", "hidden")
OSLO = ZoneInfo("Europe/Oslo")
BUSY: dict[str, Any] = {"failure_kind": "transient", "code": "portal_down", "status": "pending", "error": "503"}
UNTRIED: dict[str, Any] = dict.fromkeys(("failure_kind", "code", "error", "last_failed_at"))
UNTRIED |= {"status": "pending", "calls": 0}


def page(
    *pushes: OpenPush, columns: int = 100, zone: ZoneInfo = OSLO, now: datetime = MORNING, alerts: Alerts | None = None
) -> str:
    """What a person reads: nothing that the terminal would obey, and no line too wide for it."""
    output, shown = terminal(columns)
    show_alerts(output, alerts or Alerts(pushes=pushes), now=now.astimezone(zone))
    for order in ("\x1b[2J", "\x1b]0", "\x07", "\u202e"):
        assert order not in shown.getvalue()
    text = without_escapes(shown.getvalue())
    assert all(cell_len(line) <= columns for line in text.splitlines()), text
    return text


def ago(**elapsed: float) -> datetime:
    return MORNING - timedelta(**elapsed)


KARI: dict[str, Any] = {"mentor_id": UUID(int=7), "member_no": "M2", "full_name": "Kari Nordmann"}
OF_HLF: dict[str, Any] = {"organisation_id": UUID(int=1), "organisation": "hlf"}
MAIL: dict[str, Any] = OF_HLF | {"attempts": 1, "queued_at": MORNING, "error": "in certjob's words"}
COUNTS: dict[str, Any] = {"mentors": 33, "ended_by_calendar": 3, "facts_changed": 30, "may_be_shown": 28}
PAUSES: dict[str, Any] = {"what": "pauses", "reason": "33 would be paused", "name": "HLF", "since": ago(hours=30)}
HELD = view.HeldAlert(
    **OF_HLF, **PAUSES, **COUNTS, some=[view.HeldMentor(**KARI, may_be_shown=each) for each in (True, False)]
)
BERIT: dict[str, Any] = {"digest_id": 1, "coordinator_id": UUID(int=3), "full_name": HOSTILE, "code": "mail_stopped"}


def reminder(full_name: str, code: str) -> view.FailedReminder:
    about = {"reminder_id": 1, "threshold_days": 7, "cert_id": UUID(int=9), "next_attempt_at": None}
    about |= {"full_name": full_name, "code": code, "expires_on": date(2026, 12, 2)}
    return view.FailedReminder(**KARI | MAIL | about)


NOBODY: dict[str, Any] = dict.fromkeys(("organisation", *KARI))
EVERYTHING = Alerts(
    held=[HELD],
    never_reviewed=[view.ReviewProblem(**KARI, **OF_HLF, error="a rule refused it", since=ago(days=2))],
    pushes=[
        push("Old", days=9, error="404 (a)"),
        push("Per [b]", days=4, calls=3, last_failed_at=ago(hours=1), **BUSY),
        push("New", error="404 (b)"),
        push("Pål", calls=3, last_failed_at=ago(hours=2), **BUSY),
        push("Shown", days=300, visible=True, sentence=HIDDEN, **UNTRIED),
    ],
    unknown_contacts=[view.UnknownContact(contact_id=UUID(int=6), since=ago(days=1), **NOBODY)],
    portal_not_read=[view.OldReading(read_at=ago(days=5))],
    failed_reminders=[reminder("Siv", "no_address"), reminder("Tor", "no_address"), reminder("Eva", "wrong_address")],
    failed_digests=[view.FailedDigest(**MAIL, **BERIT, digest_on=date(2026, 11, 24))],
    waiting_mail=[view.WaitingMail(what="reminders", number=2, since=ago(days=400), error=None)],
)


def test_the_most_harmful_comes_first_then_the_oldest() -> None:
    """What is held, who was not reviewed, who may be visible, who may be hidden, the mail; each with what to do."""
    text = flat(page(alerts=EVERYTHING))

    assert_in_order(
        text,
        "HLF is held: nothing was applied to 33 mentors",
        "33 would be paused, since 24 November 02:00, 1 day",
        "If the changes are right, run `certjob run --organisation hlf --allow-mass-change`.",
        "- 28 may be shown on the portal and must not be: Kari Nordmann (M2) and 27 more",
        "1 mentor could not be reviewed",
        "- Kari Nordmann (M2 of hlf): since 23 November 08:00, 2 days",
        "4 mentors may STILL BE VISIBLE on the portal, and must not be",
        VISIBLE,
        "Dynamics has no contact with this ID. (2 mentors)",
        "What to do: Correct the contact ID in the app; the next `certjob deliver` updates the portal.",
        "Old (M1001 of hlf): since 16 November 08:00, 9 days Last failure today 08:00: 404 (a)",
        "New (M1001 of hlf): since 23 November 08:00, 2 days Last failure today 08:00: 404 (b)",
        "Per [b] (M1001 of hlf): since 21 November 08:00, 4 days",
        "Pål (M1001 of hlf): since 23 November 08:00, 2 days Last failure today 07:00: 503",
        "The portal and certjob disagree",
        "What to do: hide it in Dynamics, or `certjob reconcile --accept CONTACT --because TEXT`.",
        "The portal was last read on 20 November 2026",
        "1 mentor may STILL BE HIDDEN on the portal",
        HIDDEN,
        "Shown (M1001 of hlf): since 29 January 08:00, 300 days",
        "3 reminders not delivered",
        "(2 reminders) What to do: Enter it in the app; the next `certjob deliver` sends the reminder.",
        "Eva (M2 of hlf): certificate until 2 December 2026 Reason: in certjob's words",
        "1 digest not delivered",
        "correct it in the app or with `certjob organisation set`",
        "Mail has waited for more than a day",
        "2 reminders, the oldest, since 21 October 2025 09:00, 400 days",
    )
    assert text.count("503") == 1
    assert "404" not in page(push(has_contact_id=False)), "the reason says it all"
    for held, who in (
        (replace(HELD, may_be_shown=1), ": Kari Nordmann (M2)"),
        (replace(HELD, may_be_shown=1, some=[]), ""),
    ):
        assert f"- 1 may be shown on the portal and must not be{who}\n" in page(alerts=Alerts(held=[held]))


def test_off_a_terminal_each_alert_is_one_line_with_everything() -> None:
    """Each with its own command; who is tried again automatically needs none. Others stand in docs/runbook.md."""
    lines = list(plain_lines(EVERYTHING, now=MORNING.astimezone(OSLO)))

    correct = "what to do: Correct the contact ID in the app; the next `certjob deliver` updates the portal"
    assert lines[2:6] == [
        f"{VISIBLE}: Old (M1001 of hlf), since 2026-11-16 08:00, 1 call: 404 (a); {correct}",
        f"{VISIBLE}: New (M1001 of hlf), since 2026-11-23 08:00, 1 call: 404 (b); {correct}",
        f"{VISIBLE}: Per [b] (M1001 of hlf), since 2026-11-21 08:00, 3 calls: 503",
        f"{VISIBLE}: Pål (M1001 of hlf), since 2026-11-23 08:00, 3 calls: 503",
    ]
    for beginning in (
        "The portal and certjob disagree: contact ",
        f"{HIDDEN}: Shown (M1001 of hlf), since 2026-01-29 08:00: Not tried for over an hour",
        "Reminder not delivered: Siv (M2 of hlf), certificate until 2 December 2026: There is no e-mail address; ",
        "Digest not delivered: [red]M[/red]\ufffd[2J",
    ):
        assert any(line.startswith(beginning) for line in lines), beginning


def test_a_cause_that_many_share_is_said_once_and_the_first_are_named() -> None:
    """2,000 mentors and a wrong key: one reason, one thing to do, 20 names; the heading again, as it scrolled away."""
    why: dict[str, Any] = {"failure_kind": "stage", "code": "portal_stopped", "error": "check CERTJOB_PORTAL_KEY"}

    text = page(*(push(f"Name{number}", status="pending", **why) for number in range(1, 2001)), columns=80)

    assert flat(text).count("certjob alerts --retry-all") == flat(text).count("check CERTJOB_PORTAL_KEY") == 1
    assert re.findall(r"- (Name\d+) ", text) == [f"Name{number}" for number in range(1, 21)]
    assert "    … and 1,980 more; `certjob alerts --json` lists all\n" in text
    assert "certjob resync" not in text
    assert len(text.splitlines()) < 40
    assert text.endswith("\n\n2,000 mentors may STILL BE VISIBLE on the portal, and must not be\n")


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
        text = page(push(wanted_at=wanted_at), now=now)
        assert re.search(rf"since (.*)?{re.escape(said)}$", text, re.MULTILINE), (said, text)
    assert "since 24 November 18:30, 7 hours" in page(push(wanted_at=ago(hours=7.5)), zone=ZoneInfo("America/New_York"))


def test_the_next_try_is_said_once_for_all() -> None:
    """Of several the first; one that is due comes with the next delivery, on another day it has its date."""
    for hours, said in (
        (-1, "when `certjob deliver` runs next"),
        (1.25, "at 09:15, or soon after."),
        (24, "on 26 November at"),
    ):
        pushes = [push(next_attempt_at=ago(hours=-each), **BUSY) for each in (hours, 72)]
        assert f"(2 mentors) What to do: Nothing; certjob tries again {said}" in flat(page(*pushes))


def test_the_list_is_that_of_the_dashboard_and_a_corrected_contact_id_is_told(facts: Facts, here: Certjob) -> None:
    """Hides first, then whoever has waited longest. After the next review it is only reopened."""
    organisation = facts.organisation()
    for name, visible, days in (("show", True, 9), ("new", False, 1), ("old", False, 8)):
        mentor = facts.certified_mentor(organisation, date(2025, 1, 1), full_name=name)
        times = {"wanted_at": ago(days=1000 + days), "next_attempt_at": ago()}
        facts.insert("portal_sync_events", mentor_id=mentor, visible=visible, status="blocked", attempts=1, **times)
        failure = {"kind": "permanent", "error": "404", "failure_code": "contact_not_found", "attempts": 1}
        facts.insert("dynamics_sync_failures", mentor_id=mentor, visible=visible, **failure)

    dashboard = facts.rows("SELECT sentence, full_name FROM portal_alerts")
    alerts = json.loads(here("alerts", "--json").stdout)["alerts"]
    facts.connection.execute("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")
    corrected = here("alerts", "--json").stdout
    review(facts.connection)

    assert [(alert["sentence"], alert["full_name"]) for alert in alerts] == dashboard
    assert [name for _, name in dashboard] == ["old", "new", "show"]
    assert corrected.count("The change is in the queue.") == 3
    assert here("alerts", "--json").stdout.count("The change is in the queue.") == 3


def test_hostile_names_are_shown_and_obeyed_by_nobody() -> None:
    """No order to the terminal, no markup, no emoji codes; nothing wider than the terminal, nothing lost."""
    pushes = [
        push(HOSTILE, error=HOSTILE, member_no=HOSTILE, code="change_refused"),
        push("Ø" * 200, error="e" * 300, member_no="L" * 60),
    ]
    pushes += [push("👩‍🚀 北京 " * 12), push("only a number", member_no="only a number")]

    for columns in (40, 80):
        text = page(*pushes, columns=columns)
        assert text.count("Ø") == 200
        for phrase in ("[red]M[/red]", ":smile:\\", "- only a number of hlf: ", "北京"):
            assert phrase in text


@pytest.mark.parametrize("columns", range(len(VISIBLE), 120, 3))
def test_a_command_a_date_and_the_designs_sentence_are_never_broken(columns: int) -> None:
    """Whoever copies a command copies one line, at whatever size of letters."""
    text = page(push(code="change_refused"), push("Ola Nordmann", organisation="nhf", **UNTRIED), columns=columns)

    assert f"\n{VISIBLE}\n" in text
    for unbroken in ("`certjob resync M1001 --organisation hlf`", "`certjob deliver`", "23 November 08:00"):
        assert unbroken in text
