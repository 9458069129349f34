"""`certjob acknowledge`: one alert is left out of lists, exit codes and digests, for a day and for its cause."""

import json
from datetime import timedelta

import pytest

from certjob.errors import PermanentPortalError, UsageError
from certjob.jobs.acknowledge import acknowledge
from certjob.reports.alerts import read_alerts
from certjob.reports.status import read_status
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, today
from tests.support.facts import TODAY
from tests.support.nights import FlakyPortal
from tests.support.scene import Scene

DAY = timedelta(days=1)
ALERT = "hlf:may_be_visible:M1001"
REFUSED = FlakyPortal(failures=999, error=lambda: PermanentPortalError("404", code=None))


def ids(scene: Scene, *, acknowledged: bool = False, after_days: int = 0) -> list[str]:
    found = read_alerts(scene.connection, today=TODAY + after_days * DAY, acknowledged=acknowledged)
    return [alert.alert_id for alert in found]


def a_blocked_hide(scene: Scene) -> None:
    """Dynamics refuses the change of an expired mentor."""
    scene.expired(member_no="M1001")
    scene.night(REFUSED, channel=None)
    assert ids(scene) == [ALERT]


def acknowledge_it(scene: Scene, *, days: int | None = 3, alert_id: str = ALERT) -> None:
    until = None if days is None else TODAY + days * DAY
    acknowledge(scene.connection, alert_id, because="Kari is on leave", until=until, today=TODAY)


def test_acknowledged_alert_is_in_no_list_and_no_exit_code(scene: Scene) -> None:
    """A run exits with 0 again, and counts what is acknowledged."""
    a_blocked_hide(scene)
    scene.run_sql("INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'eva@example.org')", scene.hlf)

    acknowledge_it(scene)
    report = scene.night(REFUSED)

    assert (report.outcome, report.news, report.to_document()["acknowledged"]) == ("ok", [], 1)
    assert (ids(scene), ids(scene, acknowledged=True)) == ([], [ALERT])
    status = read_status(scene.connection, today=TODAY, max_age=DAY)
    assert (status.exit_code, status.acknowledged) == (0, 1)
    (page,) = scene.channel.sent
    assert "May still be visible" not in page.text


def test_acknowledged_alert_returns_after_its_day_as_a_new_one(scene: Scene) -> None:
    """Its time is the day after, so that the next run tells it."""
    a_blocked_hide(scene)

    acknowledge_it(scene, days=3)

    assert [len(ids(scene, after_days=days)) for days in (0, 3, 4)] == [0, 0, 1]
    (alert,) = read_alerts(scene.connection, today=TODAY + 4 * DAY)
    assert alert.acknowledged_because is None
    scene.run_sql("UPDATE dynamics_sync_failures SET created_at = '2026-01-01'")
    (alert,) = read_alerts(scene.connection, today=TODAY + 4 * DAY)
    assert alert.since.date() == TODAY + 4 * DAY


def test_acknowledged_alert_returns_when_its_cause_changes(scene: Scene) -> None:
    """The next run notes it and tells it; the old cause does not hide it again."""
    a_blocked_hide(scene)
    acknowledge_it(scene)
    scene.night(REFUSED)

    scene.run_sql("UPDATE dynamics_sync_failures SET failure_code = 'contact_not_found'")
    report = scene.night(REFUSED)

    assert report.news == ["1 mentor may still be visible on the portal; see `certjob alerts`"]
    scene.run_sql("UPDATE dynamics_sync_failures SET failure_code = 'change_refused'")
    assert ids(scene) == [ALERT]


def test_acknowledged_hold_returns_with_another_number(scene: Scene) -> None:
    """40 held mentors are not the 41 that someone has read about."""
    for _ in range(40):
        scene.expired()
    assert scene.night(deliver=False).outcome == "attention"
    acknowledge_it(scene, alert_id="hlf:held:pauses")
    assert (ids(scene), scene.night(deliver=False).outcome) == ([], "ok")

    scene.expired()
    report = scene.night(deliver=False)

    assert (report.outcome, ids(scene)) == ("attention", ["hlf:held:pauses"])
    assert report.news[0].startswith("hlf: ")


def test_acknowledged_mentor_without_a_review_is_named_by_no_run(scene: Scene) -> None:
    """The database refuses the pause every night, and someone works on it."""
    scene.expired(member_no="M1001")
    scene.run_sql("ALTER TABLE mentor_pauses ADD CONSTRAINT no_pause CHECK (actor <> 'certjob')")
    assert "mentor is broken" in scene.night(deliver=False).news[0]

    acknowledge_it(scene, alert_id="hlf:never_reviewed:M1001")
    report = scene.night(deliver=False)

    assert (report.outcome, report.news, report.to_document()["acknowledged"]) == ("ok", [], 1)


def test_withdrawn_hide_may_be_acknowledged_without_a_day(scene: Scene) -> None:
    """certjob can no longer hide the mentor, so the alert would stay for ever."""
    a_blocked_hide(scene)
    scene.run_sql("UPDATE organisations SET portal = NULL")
    scene.night(REFUSED, channel=None)

    acknowledge_it(scene, days=None)

    assert ids(scene, after_days=300) == []


def test_next_withdrawn_hide_of_the_mentor_is_an_alert_again(scene: Scene) -> None:
    """Without a day an acknowledgement ends with its alert, and does not cover what happens months later."""
    a_blocked_hide(scene)
    scene.run_sql("UPDATE organisations SET portal = NULL")
    scene.night(deliver=False)
    acknowledge_it(scene, days=None)

    scene.run_sql("UPDATE certificates SET expires_on = %s", TODAY + 300 * DAY)
    scene.run_sql("UPDATE organisations SET portal = 'dynamics'")
    scene.night(deliver=False)
    scene.run_sql("UPDATE certificates SET revoked_at = now()")
    scene.night(deliver=False)
    scene.run_sql("UPDATE organisations SET portal = NULL")
    scene.night(deliver=False)

    assert ids(scene) == [ALERT]


@pytest.mark.parametrize(
    ("alert_id", "because", "days", "said"),
    [
        pytest.param("hlf:may_be_visible:M9", "x", 1, "no alert has the id", id="no such alert"),
        pytest.param(ALERT, " ", 1, "--because has no text", id="no reason"),
        pytest.param(ALERT, "x", None, "--until is missing", id="no day"),
        pytest.param(ALERT, "x", 32, "is not a day from", id="too long"),
        pytest.param(ALERT, "x", -1, "is not a day from", id="a day that is over"),
    ],
)
def test_acknowledge_rejects_what_would_silence_too_much(
    scene: Scene, alert_id: str, because: str, days: int | None, said: str
) -> None:
    """The alert stays."""
    a_blocked_hide(scene)
    until = None if days is None else TODAY + days * DAY

    with pytest.raises(UsageError, match=said):
        acknowledge(scene.connection, alert_id, because=because, until=until, today=TODAY)

    assert ids(scene) == [ALERT]


def test_acknowledge_command_is_undone_by_its_day_only(scene: Scene, certjob: Certjob) -> None:
    """`alerts` keeps one line about it, and lists it with reason and day when asked."""
    a_blocked_hide(scene)
    until = today() + 3 * DAY
    acknowledged = certjob("acknowledge", ALERT, "--because", "on leave", "--until", str(until), "--json")

    page, listed = certjob("alerts"), certjob("alerts", "--acknowledged")

    document = json.loads(acknowledged.stdout)
    assert (acknowledged.returncode, document["alert_id"], document["until"]) == (0, ALERT, str(until))
    assert (page.returncode, page.stdout) == (0, "1 acknowledged; see `certjob alerts --acknowledged`\n")
    assert (listed.returncode, f", acknowledged until {until}: on leave: " in listed.stdout) == (0, True)
    assert json.loads(certjob("alerts", "--json").stdout)["acknowledged"] == 1
    unknown = certjob("acknowledge", "hlf:held:x", "--because", "x")
    assert_one_line(
        unknown, "no alert has the id 'hlf:held:x'; `certjob alerts`", code=2, command="certjob acknowledge"
    )
