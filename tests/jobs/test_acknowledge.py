"""`certjob acknowledge`: lists, exit codes and digests leave out one alert until a day."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from certjob.domain.alert_kinds import A_MONTH, A_YEAR, WORDS, Kind
from certjob.errors import UsageError
from certjob.jobs.acknowledge import acknowledge
from certjob.reports.alerts import read_alerts
from certjob.reports.status import read_status
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, today
from tests.support.facts import TODAY
from tests.support.portal_answers import error, ok
from tests.support.scene import YESTERDAY, Scene

DAY = timedelta(days=1)
REJECTED = error(422, "dynamics_rejected")


@pytest.fixture
def unshown(scene: Scene) -> Scene:
    """Dynamics rejects the show of a certified mentor, which is an alert."""
    scene.certified(member_no="M1001")
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.portal.default = REJECTED
    scene.night(scene.portal, channel=None)
    assert len(ids(scene)) == 1
    return scene


def ids(scene: Scene, *, acknowledged: bool = False, after_days: int = 0) -> list[str]:
    found = read_alerts(scene.connection, today=TODAY + after_days * DAY, acknowledged=acknowledged)
    return [alert.alert_id for alert in found]


def acknowledge_it(scene: Scene, *, days: int = 3, because: str = "on leave") -> str:
    """Acknowledge the first alert, and return its id."""
    alert_id = ids(scene)[0]
    acknowledge(scene.connection, alert_id, because=because, until=TODAY + days * DAY, today=TODAY)
    return alert_id


def test_no_one_can_mute_that_a_mentor_may_be_visible() -> None:
    """Nor that something is wrong of which no one knows whether a mentor may be visible because of it."""
    longest = {kind: WORDS[kind].longest_days for kind in Kind}

    assert [kind for kind, days in longest.items() if days == 0] == [
        Kind.NO_FULL_RUN,
        Kind.HELD,
        Kind.NEVER_REVIEWED,
        Kind.MAY_BE_VISIBLE,
        Kind.FACTS_MISSING,
    ]
    assert [kind for kind, days in longest.items() if days == A_YEAR] == [Kind.UNKNOWN_CONTACTS]
    assert set(longest.values()) == {0, A_MONTH, A_YEAR}


def test_contact_that_certjob_has_shown_for_a_mentor_is_muted_for_a_month_at_most(scene: Scene) -> None:
    """It may be that of an expired mentor, whose contact ID someone has replaced."""
    scene.certified(contact_id=uuid4())
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")

    with pytest.raises(UsageError, match="must be between"):
        acknowledge_it(scene, days=32)
    assert ":unknown_contacts:" in acknowledge_it(scene, days=31)


def test_push_that_must_hide_cannot_be_acknowledged(scene: Scene) -> None:
    scene.expired(member_no="M1001")
    scene.portal.default = REJECTED
    scene.night(scene.portal, channel=None)

    with pytest.raises(UsageError, match="no one can acknowledge hlf:may_be_visible:M1001:"):
        acknowledge_it(scene)


def test_acknowledged_alert_is_in_no_list_and_no_exit_code(unshown: Scene) -> None:
    """A run exits with 0 and has the number of acknowledged alerts. The digest names only the other contact."""
    unshown.run_sql("UPDATE organisations SET reminder_thresholds = '{7}'")
    unshown.certified(TODAY + 7 * DAY, member_no="M2", email=None)
    known, other = (f"3d6d4b0e-0000-4000-8000-00000000000{number}" for number in (1, 2))
    for contact in (known, other):
        unshown.facts.insert("portal_unknown_contacts", contact_id=contact)
    unshown.night(unshown.portal)
    unshown.run_sql("INSERT INTO coordinators (organisation_id, email, locale) VALUES (%s, 'e@x', 'en')", unshown.hlf)

    muted = [each for each in ids(unshown) if other not in each]
    for alert_id in muted:
        acknowledge(unshown.connection, alert_id, because="on leave", until=TODAY, today=TODAY)
    report = unshown.night(unshown.portal)

    assert report.to_document()["acknowledged"] == 3
    assert (len(ids(unshown)), sorted(ids(unshown, acknowledged=True))) == (1, sorted(muted))
    status = read_status(unshown.connection, today=TODAY, max_age=DAY)
    assert (status.alerts["may_be_hidden"], status.acknowledged) == (0, 3)
    (page,) = unshown.channel.sent
    listed = [words in page.text for words in ("May still be hidden", "were not delivered", known, other)]
    assert listed == [False, False, False, True]
    unshown.run_sql("DELETE FROM portal_unknown_contacts")
    quiet = unshown.night(unshown.portal)
    assert (quiet.outcome, quiet.news) == ("ok", [])


def test_acknowledged_alert_returns_after_its_day(unshown: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the person is stored, also under sudo."""
    monkeypatch.setenv("SUDO_USER", "eva")

    acknowledge_it(unshown, days=3)

    assert unshown.rows("SELECT acknowledged_by FROM acknowledgements") == [("eva",)]
    assert [len(ids(unshown, after_days=days)) for days in (0, 3, 4)] == [0, 0, 1]


def test_acknowledged_show_returns_with_another_contact(unshown: Scene) -> None:
    """The acknowledgement was about the old one."""
    acknowledge_it(unshown)

    unshown.run_sql("UPDATE mentors SET dynamics_contact_id = NULL")
    unshown.night(unshown.portal)

    assert len(ids(unshown)) == 1


def test_retry_ends_acknowledgements_of_what_it_makes_due(unshown: Scene) -> None:
    acknowledge_it(unshown)

    unshown.retry_all(unshown.portal)

    assert len(ids(unshown)) == 1


def test_acknowledgement_ends_with_its_push(unshown: Scene) -> None:
    """The mentor is shown, hidden, and then rejected again: another push, and another alert."""
    first = acknowledge_it(unshown, days=31)
    unshown.run_sql("UPDATE mentors SET dynamics_contact_id = gen_random_uuid()")  # opens the rejected push
    unshown.portal.default = ok()
    unshown.night(unshown.portal)
    unshown.run_sql("UPDATE certificates SET expires_on = %s", YESTERDAY)
    unshown.night(unshown.portal)

    unshown.portal.default = REJECTED
    unshown.run_sql("UPDATE certificates SET expires_on = %s", TODAY + 300 * DAY)
    unshown.night(unshown.portal)

    (second,) = ids(unshown)
    assert second != first


def test_reminder_that_fails_again_is_an_alert_again(scene: Scene) -> None:
    """Someone has phoned about the first failure only. A second reminder is another alert, too."""
    hlf = scene.facts.organisation()
    mentor = scene.facts.certified_mentor(hlf, TODAY + 7 * DAY, member_no="M1001", email=None)
    scene.facts.certificate(mentor, TODAY + 6 * DAY, kind="kursleder")
    scene.night()
    first, second = ids(scene)
    acknowledge_it(scene)
    assert ids(scene) == [second]

    scene.run_sql("UPDATE mentors SET email = 'no address'")
    scene.night()

    assert sorted(ids(scene)) == sorted([first, second])


def test_incomplete_acknowledgement_is_rejected(unshown: Scene) -> None:
    """The alert stays. The day is neither over nor more than a month ahead."""
    wrong: dict[str, Any]
    for wrong, said in (({"because": " "}, "is required"), ({"days": 32}, "be between"), ({"days": -1}, "be between")):
        with pytest.raises(UsageError, match=said):
            acknowledge_it(unshown, **wrong)

    assert len(ids(unshown)) == 1


def test_alerts_command_lists_acknowledged_alerts_on_request(unshown: Scene, here: Certjob) -> None:
    """Otherwise it prints their number."""
    until = today() + 3 * DAY
    acknowledged = here("acknowledge", *ids(unshown), "--because", "on leave", "--until", str(until))

    page, listed = here("alerts"), here("alerts", "--acknowledged")

    assert acknowledged.returncode == 0
    assert (page.returncode, page.stdout) == (0, "1 acknowledged; see `certjob alerts --acknowledged`\n")
    assert (listed.returncode, f", acknowledged until {until}: on leave: " in listed.stdout) == (0, True)
    unknown = here("acknowledge", "hlf:x", "--because", "x", "--until", str(until))
    assert_one_line(unknown, "no alert has the id 'hlf:x'", code=2, command="certjob acknowledge")
