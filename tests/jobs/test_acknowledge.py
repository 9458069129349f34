"""`certjob acknowledge`: lists, exit codes and digests leave out one alert, for a while and for its cause."""

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
REJECTED = FlakyPortal(failures=999, error=lambda: PermanentPortalError("404", code=None))


@pytest.fixture
def blocked(scene: Scene) -> Scene:
    """Dynamics rejects the hide of an expired mentor, which is an alert."""
    scene.expired(member_no="M1001")
    scene.night(REJECTED, channel=None)
    assert ids(scene) == [ALERT]
    return scene


def ids(scene: Scene, *, acknowledged: bool = False, after_days: int = 0) -> list[str]:
    found = read_alerts(scene.connection, today=TODAY + after_days * DAY, acknowledged=acknowledged)
    return [alert.alert_id for alert in found]


def acknowledge_it(scene: Scene, *, days: int | None = 3, alert_id: str = ALERT, because: str = "on leave") -> None:
    until = None if days is None else TODAY + days * DAY
    acknowledge(scene.connection, alert_id, because=because, until=until, today=TODAY)


def test_acknowledged_alert_is_in_no_list_and_no_exit_code(blocked: Scene) -> None:
    """A run exits with 0 and has the number of acknowledged alerts. The digest does not name the mentor."""
    blocked.run_sql("INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'eva@example.org')", blocked.hlf)

    acknowledge_it(blocked)
    report = blocked.night(REJECTED)

    assert (report.outcome, report.news, report.to_document()["acknowledged"]) == ("ok", [], 1)
    assert (ids(blocked), ids(blocked, acknowledged=True)) == ([], [ALERT])
    status = read_status(blocked.connection, today=TODAY, max_age=DAY)
    assert (status.exit_code, status.acknowledged) == (0, 1)
    (page,) = blocked.channel.sent
    assert "May still be visible" not in page.text


def test_acknowledged_alert_returns_after_its_day_as_a_new_one(blocked: Scene) -> None:
    """It dates from the day after, so the next run reports it."""
    blocked.run_sql("UPDATE dynamics_sync_failures SET created_at = '2026-01-01'")
    blocked.run_sql("UPDATE portal_sync_events SET wanted_at = '2026-01-01'")

    acknowledge_it(blocked, days=3)

    assert [len(ids(blocked, after_days=days)) for days in (0, 3, 4)] == [0, 0, 1]
    (alert,) = read_alerts(blocked.connection, today=TODAY + 4 * DAY)
    assert (alert.acknowledged_because, alert.since.date()) == (None, TODAY + 4 * DAY)


def test_acknowledged_alert_returns_when_its_cause_changes(blocked: Scene) -> None:
    """A later return of the old cause is reported as well."""
    acknowledge_it(blocked)
    assert blocked.night(REJECTED).news == []

    blocked.run_sql("UPDATE dynamics_sync_failures SET failure_code = 'contact_not_found'")
    report = blocked.night(REJECTED)

    assert report.news == ["1 mentor may still be visible on the portal; see `certjob alerts`"]
    blocked.run_sql("UPDATE dynamics_sync_failures SET failure_code = 'change_refused'")
    assert ids(blocked) == [ALERT]


def test_acknowledged_hide_returns_when_the_contact_is_shown_again(blocked: Scene) -> None:
    """Someone hid it by hand and acknowledged the alert, and later someone shows it by hand."""
    ((contact,),) = blocked.rows("SELECT dynamics_contact_id FROM mentors")
    acknowledge_it(blocked)
    blocked.portal.visible[contact] = False
    blocked.reconcile()
    assert ids(blocked) == []

    blocked.portal.visible[contact] = True
    blocked.reconcile()

    assert (blocked.night(REJECTED).outcome, ids(blocked)) == ("attention", [ALERT])


def test_acknowledged_hold_returns_with_another_number(scene: Scene) -> None:
    """Someone acknowledged 21 held mentors; now there are 22."""
    for _ in range(21):
        scene.expired()
    assert scene.night(deliver=False).outcome == "attention"
    acknowledge_it(scene, alert_id="hlf:held:pauses")
    assert (ids(scene), scene.night(deliver=False).outcome) == ([], "ok")

    scene.expired()
    report = scene.night(deliver=False)

    assert (report.outcome, ids(scene)) == ("attention", ["hlf:held:pauses"])
    assert report.news[0].startswith("hlf: ")


def test_acknowledged_hold_returns_when_a_held_mentor_is_revoked(scene: Scene) -> None:
    """The number of held mentors stays the same."""
    for _ in range(21):
        scene.certified()
    scene.night(deliver=False)
    scene.run_sql("UPDATE certificates SET expires_on = %s", TODAY + 20 * DAY)
    scene.night(deliver=False)
    acknowledge_it(scene, alert_id="hlf:held:pauses")
    assert scene.night(deliver=False).outcome == "ok"

    scene.run_sql("UPDATE certificates SET revoked_at = now() WHERE id = (SELECT id FROM certificates LIMIT 1)")
    report = scene.night(deliver=False)

    assert (report.outcome, ids(scene)) == ("attention", ["hlf:held:pauses"])


def test_acknowledged_mentor_without_a_review_is_in_no_report(scene: Scene) -> None:
    """The database rejects the pause in each run."""
    scene.expired(member_no="M1001")
    scene.run_sql("ALTER TABLE mentor_pauses ADD CONSTRAINT no_pause CHECK (actor <> 'certjob')")
    assert "mentor could not be processed" in scene.night(deliver=False).news[0]

    acknowledge_it(scene, alert_id="hlf:never_reviewed:M1001")
    report = scene.night(deliver=False)

    assert (report.outcome, report.news, report.to_document()["acknowledged"]) == ("ok", [], 1)


def test_acknowledgement_without_a_day_ends_with_its_alert(blocked: Scene) -> None:
    """A withdrawn hide needs no day, because certjob cannot hide the mentor. The next one is a new alert."""
    portal = "UPDATE organisations SET portal = %s"
    blocked.run_sql(portal, None)
    blocked.night(deliver=False)
    acknowledge_it(blocked, days=None)
    assert ids(blocked, after_days=300) == []

    blocked.run_sql("UPDATE certificates SET expires_on = %s", TODAY + 300 * DAY)
    blocked.run_sql(portal, "dynamics")
    blocked.night(deliver=False)
    blocked.run_sql("UPDATE certificates SET revoked_at = now()")
    blocked.night(deliver=False)
    blocked.run_sql(portal, None)
    blocked.night(deliver=False)

    assert ids(blocked) == [ALERT]


def test_acknowledgement_with_a_day_ends_with_its_alert(blocked: Scene) -> None:
    """The hide is delivered. Later the mentor is shown, then revoked while the portal rejects again."""
    acknowledge_it(blocked, days=31)
    blocked.run_sql("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")  # opens the rejected push
    assert blocked.night(FlakyPortal()).outcome == "ok"
    blocked.run_sql("UPDATE certificates SET expires_on = %s", TODAY + 300 * DAY)
    assert blocked.night(FlakyPortal()).outcome == "ok"

    blocked.run_sql("UPDATE certificates SET revoked_at = now()")
    report = blocked.night(REJECTED)

    assert (report.outcome, ids(blocked)) == ("attention", [ALERT])


def test_next_push_of_a_mentor_is_another_alert(blocked: Scene) -> None:
    """It returns even if no run saw the end of the acknowledged alert."""
    acknowledge_it(blocked, days=31)

    blocked.run_sql("UPDATE portal_sync_events SET status = 'delivered'")
    blocked.run_sql(
        "INSERT INTO portal_sync_events (mentor_id, visible, wanted_at, attempts, failure_code)"
        " SELECT id, false, now() - interval '2 hours', 1, 'change_refused' FROM mentors"
    )

    assert ids(blocked) == [ALERT]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("UPDATE mentors SET certified_until = current_date - 1", id="no longer certified"),
        pytest.param("UPDATE certificates SET revoked_at = now()", id="revoked"),
        pytest.param("UPDATE mentors SET left_at = now()", id="left"),
        pytest.param(
            "INSERT INTO mentor_pauses (mentor_id, reason, actor) SELECT id, 'ill', 'eva' FROM mentors", id="paused"
        ),
        pytest.param(
            "DELETE FROM review_problems; INSERT INTO review_problems (mentor_id, reason, as_of, since)"
            " SELECT id, 'x', current_date, now() + interval '1 s' FROM mentors",
            id="reviewed and locked again",
        ),
    ],
)
def test_acknowledged_mentor_without_a_review_returns_with_another_fact(scene: Scene, change: str) -> None:
    """No review sees the fact, so the alert must."""
    mentor = scene.certified(member_no="M1001")
    scene.run_sql("INSERT INTO review_problems (mentor_id, reason, as_of) VALUES (%s, 'x', current_date)", mentor)
    scene.run_sql("UPDATE mentors SET review_on = '-infinity', certified_until = current_date")
    acknowledge_it(scene, alert_id="hlf:never_reviewed:M1001")
    assert ids(scene) == []

    scene.run_sql(change)

    assert ids(scene) == ["hlf:never_reviewed:M1001"]


def test_two_reminders_of_one_mentor_are_two_alerts(scene: Scene) -> None:
    """Someone has phoned about the first certificate only."""
    hlf = scene.facts.organisation()
    mentor = scene.facts.certified_mentor(hlf, TODAY + 7 * DAY, member_no="M1001", email=None)
    scene.facts.certificate(mentor, TODAY + 6 * DAY, kind="kursleder")
    scene.night()
    first, second = ids(scene)
    assert (first != second, first.rpartition(":")[0]) == (True, "hlf:failed_reminders:M1001")

    acknowledge_it(scene, alert_id=first)

    assert ids(scene) == [second]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        pytest.param({"because": " "}, "--because is required", id="no_reason"),
        pytest.param({"days": None}, "--until is missing", id="no_day"),
        pytest.param({"days": 32}, "must be between", id="too_long"),
    ],
)
def test_incomplete_acknowledgement_is_rejected(blocked: Scene, mistake: dict[str, object], message: str) -> None:
    """The alert stays."""
    with pytest.raises(UsageError, match=message):
        acknowledge_it(blocked, **mistake)  # type: ignore[arg-type]

    assert ids(blocked) == [ALERT]


def test_alerts_command_lists_acknowledged_alerts_on_request(blocked: Scene, here: Certjob) -> None:
    """Otherwise it prints their number."""
    until = today() + 3 * DAY
    acknowledged = here("acknowledge", ALERT, "--because", "on leave", "--until", str(until))

    page, listed = here("alerts"), here("alerts", "--acknowledged")

    assert acknowledged.returncode == 0
    assert (page.returncode, page.stdout) == (0, "1 acknowledged; see `certjob alerts --acknowledged`\n")
    assert (listed.returncode, f", acknowledged until {until}: on leave: " in listed.stdout) == (0, True)
    unknown = here("acknowledge", "hlf:held:x", "--because", "x")
    assert_one_line(unknown, "no alert has the id 'hlf:held:x'", code=2, command="certjob acknowledge")


def test_acknowledgement_has_the_name_of_the_person_also_under_sudo(
    blocked: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a pause has."""
    monkeypatch.setenv("SUDO_USER", "eva")

    who = acknowledge(blocked.connection, ALERT, because="the office", until=TODAY, today=TODAY)

    assert (who, blocked.rows("SELECT acknowledged_by FROM acknowledgements")) == ("eva", [("eva",)])
