"""Renewals that no one enters look like expiries: an alert after five of them in 30 days."""

from datetime import timedelta
from uuid import UUID

import pytest

from certjob.reports.alerts import Alert, read_alerts
from tests.support.facts import TODAY
from tests.support.nights import EVERYTHING
from tests.support.scene import Scene

DAY = timedelta(days=1)
LATER = TODAY + 40 * DAY


def alerts(scene: Scene) -> list[Alert]:
    return [alert for alert in read_alerts(scene.connection, today=LATER) if alert.kind == "facts_missing"]


def ended(scene: Scene, number: int) -> list[UUID]:
    """Let so many certificates end 38 days after they were entered."""
    mentors = [scene.certified(TODAY + 38 * DAY) for _ in range(number)]
    scene.night(deliver=False, allow=EVERYTHING)
    return mentors


@pytest.mark.parametrize(("number", "causes"), [(4, []), (5, ["no_renewals"])])
def test_five_expiries_without_a_renewal_are_an_alert(scene: Scene, number: int, causes: list[str]) -> None:
    """All mentors are paused: nothing is held back."""
    ended(scene, number)

    scene.night(today=LATER, deliver=False, allow=EVERYTHING)

    assert [alert.cause for alert in alerts(scene)] == causes
    assert scene.rows("SELECT count(*) FROM mentor_pauses") == [(number,)]
    if causes:
        (alert,) = alerts(scene)
        assert alert.alert_id == "hlf:facts_missing:no_renewals"
        assert alert.error == "No renewal has been entered for 30 days, while 5 certificates have ended"


def forget_entries(scene: Scene) -> None:
    """Let all certificates be older than 30 days."""
    scene.run_sql("UPDATE certificates SET renewed_at = %s", TODAY - 300 * DAY)


def test_an_entered_certificate_is_a_renewal(scene: Scene) -> None:
    first, *_ = ended(scene, 6)
    scene.night(today=LATER, deliver=False, allow=EVERYTHING)
    assert len(alerts(scene)) == 1

    scene.facts.certificate(first, LATER + 300 * DAY, issued_on=LATER)
    scene.night(today=LATER, deliver=False, allow=EVERYTHING)

    assert alerts(scene) == []


@pytest.mark.parametrize(("days", "causes"), [(200, []), (-100, ["no_renewals"])])
def test_a_later_last_day_is_a_renewal_although_the_status_stays(scene: Scene, days: int, causes: list[str]) -> None:
    """It still counts after the review that has seen it. A corrected typing error to an earlier day is none."""
    ended(scene, 6)
    lasting = scene.certified(LATER + 300 * DAY)
    scene.night(today=LATER, deliver=False, allow=EVERYTHING)
    forget_entries(scene)

    scene.run_sql("UPDATE certificates SET expires_on = expires_on + %s WHERE mentor_id = %s", days, lasting)
    for _ in range(2):
        scene.night(today=LATER, deliver=False, allow=EVERYTHING)
        scene.run_sql("UPDATE mentors SET review_on = %s WHERE id = %s", LATER, lasting)

    assert scene.rows("SELECT DISTINCT status FROM certificates WHERE mentor_id = %s", lasting) == [("valid",)]
    assert [alert.cause for alert in alerts(scene)] == causes


def test_an_entry_counts_for_30_days(scene: Scene) -> None:
    """Reaching a reminder threshold, which changes the status, is no renewal."""
    ended(scene, 6)
    scene.certified(LATER + 50 * DAY)
    scene.night(today=TODAY, deliver=False, allow=EVERYTHING)
    forget_entries(scene)

    scene.night(today=LATER, deliver=False, allow=EVERYTHING)

    assert [alert.cause for alert in alerts(scene)] == ["no_renewals"]


@pytest.mark.parametrize(
    "cause",
    [
        "UPDATE organisations SET optional_kinds = '{kurs}'",
        "UPDATE mentors SET left_at = now() WHERE member_no = 'new'",
    ],
    ids=["optional kind", "has left"],
)
def test_a_certificate_that_cannot_renew_is_no_renewal(scene: Scene, cause: str) -> None:
    ended(scene, 6)
    mentor = scene.certified(LATER + 300 * DAY, member_no="new")
    scene.run_sql("UPDATE certificates SET kind = 'kurs' WHERE mentor_id = %s", mentor)
    scene.run_sql(cause)

    scene.night(today=LATER, deliver=False, allow=EVERYTHING)

    assert [alert.cause for alert in alerts(scene)] == ["no_renewals"]


def test_optional_kinds_and_mentors_who_have_left_do_not_count(scene: Scene) -> None:
    mentors = ended(scene, 6)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = %s", mentors[0])
    scene.run_sql("UPDATE certificates SET kind = 'kursleder' WHERE mentor_id = %s", mentors[1])
    scene.run_sql("UPDATE organisations SET optional_kinds = '{kursleder}'")

    scene.night(today=LATER, deliver=False, allow=EVERYTHING)

    assert alerts(scene) == []


def test_digest_asks_about_missing_renewals(scene: Scene) -> None:
    scene.facts.insert("coordinators", organisation_id=scene.hlf, email="eva@example.org", locale="en")
    ended(scene, 5)

    scene.night(today=LATER, allow=EVERYTHING)

    assert "while 5 certificates have expired" in scene.channel.sent[-1].text
