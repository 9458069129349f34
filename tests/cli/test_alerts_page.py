"""The page and the plain lines of `certjob alerts`: the most harmful first, each with its cause and next step."""

import json
import re
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from certjob.cli.output import Output
from certjob.domain.alert_kinds import Kind
from certjob.reports.alerts import Alert, alert_lines, alerts_page
from tests.cli.conftest import VISIBLE
from tests.conftest import Certjob
from tests.support.command_line import assert_in_order, flat, terminal, without_escapes
from tests.support.facts import Facts
from tests.support.nights import review

HOSTILE = "[red]M[/red]\x1b[2J\x1b]0;gotcha\x07\u202e:smile:\\"

OSLO = ZoneInfo("Europe/Oslo")
MORNING = datetime(2026, 11, 25, 8, 0, tzinfo=OSLO)
HIDDEN = VISIBLE.replace("visible", "hidden")


def ago(**elapsed: float) -> datetime:
    return MORNING - timedelta(**elapsed)


def alert(full_name: str | None = "Kari", *, days: float = 2, kind: Kind = Kind.MAY_BE_VISIBLE, **more: Any) -> Alert:
    """Return an alert that is so many days old: Dynamics has no contact with this ID."""
    values: dict[str, Any] = {
        "alert_id": f"hlf:{kind}:M1001",
        "number": None,
        "day": None,
        "acknowledged_until": None,
        "acknowledged_because": None,
        "organisation_id": UUID(int=1),
        "organisation": "hlf",
        "mentor_id": UUID(int=7),
        "member_no": "M1001",
        "full_name": full_name,
        "row_id": 1,
        "since": ago(days=days),
        "last_failed_at": MORNING,
        "next_attempt_at": MORNING,
        "sentence": VISIBLE,
        "cause": "contact_not_found",
        "error": "404",
        "state": "stopped",
        "calls": 1,
    }
    return Alert(kind=kind, **values | more)


def page(*alerts: Alert, columns: int = 100) -> str:
    """Return the page, after a check that it does not control the terminal and has no line wider than it."""
    output, shown = terminal(columns)
    output.show(alerts_page(alerts, now=MORNING), zone=OSLO)
    for control in ("\x1b[2J", "\x1b]0", "\x07", "\u202e"):
        assert control not in shown.getvalue()
    text = without_escapes(shown.getvalue())
    assert all(cell_len(line) <= columns for line in text.splitlines()), text
    return text


HELD = alert(
    None,
    days=1.25,
    kind=Kind.HELD,
    alert_id="hlf:held:changes",
    cause="changes",
    sentence="Held",
    error="33 mentors would be paused",
    number=33,
    calls=None,
)
BUSY: dict[str, Any] = {"cause": "portal_down", "state": "waiting", "error": "503", "calls": 3}
REMINDER: dict[str, Any] = {
    "kind": Kind.FAILED_REMINDERS,
    "sentence": "Reminder not delivered",
    "day": date(2026, 12, 2),
    "calls": None,
}


def test_alerts_page_has_the_most_harmful_first_then_the_oldest() -> None:
    """Each group has its cause, the next step, and the mentors."""
    text = page(
        HELD,
        alert("Old", days=9, error="404 (a)"),
        alert("Per", days=4, **BUSY),
        alert("New", error="404 (b)"),
        alert("Pål", last_failed_at=ago(hours=2), **BUSY),
        alert("Shown", days=300, kind=Kind.MAY_BE_HIDDEN, sentence=HIDDEN, cause="no_contact_id"),
        alert("Siv", cause="no_address", **REMINDER),
    )

    assert_in_order(
        flat(text),
        "1 guard holds changes",
        "33 mentors would be paused What to do: Check the clock and the last import;",
        "If the changes are right, run `certjob run --allow hlf=33`.",
        "hlf:held:changes hlf 2026-11-24 02:00",
        VISIBLE,
        "4 mentors must not be visible, but the portal has not confirmed that it hides them",
        "Dynamics has no contact with this ID. (2) What to do: Correct the contact ID",
        "hlf:may_be_visible:M1001 Old 2026-11-16 08:00 404 (a)",
        "hlf:may_be_visible:M1001 New 2026-11-23 08:00 404 (b)",
        "The portal did not answer or could not make the change. (2) What to do: Wait;",
        "Last failure today 08:00: 503",
        "hlf:may_be_visible:M1001 Per 2026-11-21 08:00",
        "hlf:may_be_visible:M1001 Pål 2026-11-23 08:00",
        HIDDEN,
        "1 mentor should be visible",
        "hlf:may_be_hidden:M1001 Shown 2026-01-29 08:00",
        "1 reminder was not delivered",
        "There is no e-mail address. What to do: Enter it in the app",
        "hlf:failed_reminders:M1001 Siv 2026-12-02 2026-11-23 08:00",
    )


def test_alert_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """It has the name, the id, the reason and the next step."""
    alerts = [HELD, alert(error="404 (a)"), alert("Pål", **BUSY), alert(HOSTILE, cause="no_address", **REMINDER)]

    Output(quiet=False).show(alert_lines(alerts, now=MORNING), zone=OSLO)
    held, wrong, busy, reminder = capsys.readouterr().out.splitlines()

    assert held.startswith(
        "Held: hlf:held:changes, hlf, since 2026-11-24 02:00: 33 mentors would be paused; what to do: "
    )
    pushed = f"{VISIBLE}: hlf:may_be_visible:M1001"
    step = "what to do: Correct the contact ID in the app or with `certjob load`; the next"
    assert wrong.startswith(f"{pushed}, Kari, since 2026-11-23 08:00: 404 (a); {step}")
    wait = "what to do: Wait; certjob tries again when `certjob deliver` runs next, normally every 15 minutes"
    assert busy.startswith(f"{pushed}, Pål, since 2026-11-23 08:00: 503; {wait}")
    assert reminder.startswith("Reminder not delivered: hlf:failed_reminders:M1001, [red]M[/red]\ufffd[2J")
    assert ":smile:\\, certificate until 2 December 2026, since 2026-11-23 08:00: " in reminder


def test_cause_with_many_mentors_has_a_short_page() -> None:
    """2,000 mentors and a wrong key: one reason, one next step, 20 names, and the numbers at the end."""
    why: dict[str, Any] = {"cause": "portal_stopped", "error": "check CERTJOB_PORTAL_KEY"}

    text = page(*(alert(f"Name{number}", **why) for number in range(1, 2001)), columns=80)

    assert flat(text).count("What to do") == flat(text).count("check CERTJOB_PORTAL_KEY") == 1
    assert re.findall(r"(Name\d+) +2026-11-23 08:00", text) == [f"Name{number}" for number in range(1, 21)]
    assert "… and 1,980 more; --json lists all of them\n" in text


def test_row_of_an_alert_fits_on_80_columns() -> None:
    """Its id is not broken, so that it can be copied. A contact without a mentor has the longest id."""
    long_id = f"all:unknown_contacts:{UUID(int=2**128 - 1)}:2026-11-23"
    contact = alert(None, mentor_id=None, kind=Kind.UNKNOWN_CONTACTS, alert_id=long_id, cause="unknown_contact")

    shown = page(alert("Anne-Kristine Hansen"), contact, columns=80)

    assert re.search("hlf:may_be_visible:M1001 +Anne-Kristine Hansen +2026-11-23 08:00\n", shown)
    assert f"{long_id}\n" in shown


@pytest.mark.parametrize(
    ("hours", "words"),
    [(-1, "when `certjob deliver` runs next"), (1.25, "at 09:15, or soon after."), (24, "on 26 November at 08:00, or")],
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


@pytest.mark.parametrize("columns", [60, 300])
def test_hostile_and_long_names_are_printed_whole(columns: int) -> None:
    """A narrow terminal breaks them."""
    alerts = alert(HOSTILE, error=HOSTILE, member_no=HOSTILE), alert("Ø" * 200, error="ß" * 300)

    text = page(*alerts, columns=columns)

    assert (text.count("Ø"), text.count("ß")) == (200, 300)
    assert text.count("[red]") == 2
    assert ":smile:\\" in text or columns == 60
