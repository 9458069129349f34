"""`certjob resync --hidden-by-hand`: a person has hidden a contact that certjob cannot hide."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from psycopg.errors import RestrictViolation

from certjob.errors import UsageError
from certjob.jobs.acknowledge import confirm_all_hidden, confirm_hidden
from certjob.reports.alerts import read_alerts
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY
from tests.support.portal_answers import Exchange, error, ok
from tests.support.scene import YESTERDAY, Scene

CONTACT = uuid4()


@pytest.fixture
def rejected(scene: Scene) -> UUID:
    """M1 was shown. The portal rejects the hide, which is an alert."""
    mentor = scene.certified(member_no="M1", contact_id=CONTACT)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal)
    scene.run_sql("UPDATE certificates SET expires_on = %s", YESTERDAY)
    scene.portal.decide = lambda request: error(404, "contact_not_found") if request.contact_id else ok()
    scene.night(scene.portal)
    assert kinds(scene) == ["may_be_visible"]
    return mentor


@pytest.fixture
def withdrawn(scene: Scene, rejected: UUID) -> UUID:
    """The organisation has left the portal since."""
    scene.run_sql("UPDATE organisations SET portal = NULL")
    scene.night(scene.portal)
    assert kinds(scene) == ["may_be_visible"]
    return rejected


def kinds(scene: Scene) -> list[str]:
    return [str(alert.kind) for alert in read_alerts(scene.connection, today=TODAY)]


def confirm(scene: Scene, mentor: UUID) -> None:
    confirm_hidden(scene.connection, [mentor], because="in Dynamics")


@pytest.mark.parametrize("mentor", ["rejected", "withdrawn"])
def test_hide_by_hand_ends_the_alert(scene: Scene, mentor: str, request: pytest.FixtureRequest) -> None:
    """It stores who, when and which contact. Later runs make no push, even if the visibility was unknown."""
    mentor_id = request.getfixturevalue(mentor)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL, review_on = '-infinity'")
    confirm(scene, mentor_id)
    scene.portal.requests.clear()

    report = scene.night(scene.portal)

    assert (report.outcome, kinds(scene), scene.portal.requests) == ("ok", [], [])
    stored = "SELECT hidden_by, hidden_because, claim_contact_id FROM portal_sync_events WHERE NOT visible"
    ((who, because, contact),) = scene.rows(stored)
    assert (who.startswith("cli:"), because, contact) == (True, "in Dynamics", CONTACT)


def test_later_reading_that_lists_the_contact_opens_a_hide(scene: Scene, rejected: UUID) -> None:
    """certjob tries it, and the failure is an alert."""
    confirm(scene, rejected)

    scene.reconcile()

    assert kinds(scene) == ["may_be_visible"]
    assert scene.rows("SELECT status FROM portal_sync_events ORDER BY id DESC LIMIT 1") == [("blocked",)]
    scene.portal.decide = None
    scene.retry_all(scene.portal)
    assert (kinds(scene), scene.portal.visible[CONTACT]) == ([], False)


def test_reading_that_lists_the_contact_of_a_mentor_without_a_portal_is_an_alert(scene: Scene, withdrawn: UUID) -> None:
    """Until someone hides it again. That the contact belongs to no mentor is an alert, too."""
    scene.facts.organisation("nhf")  # has a portal
    confirm(scene, withdrawn)
    scene.reconcile()
    assert kinds(scene) == ["may_be_visible", "unknown_contacts"]

    confirm(scene, withdrawn)
    scene.portal.visible[CONTACT] = False
    scene.reconcile()

    assert kinds(scene) == []


def test_reading_that_began_before_does_not_count(scene: Scene, rejected: UUID) -> None:
    """It may be older than the hide by hand."""

    def confirm_and_list(exchange: Exchange) -> None:
        confirm_hidden(scene.other, [rejected], because="in Dynamics")
        ok()(exchange)

    scene.portal.decide = lambda _request: confirm_and_list
    scene.reconcile()

    assert kinds(scene) == []
    assert scene.rows("SELECT count(*) FROM portal_sync_events WHERE status <> 'delivered'") == [(0,)]


def test_hide_by_hand_that_no_reading_confirms_is_an_alert_after_31_days(scene: Scene, withdrawn: UUID) -> None:
    """It may be confirmed again only then, or a coordinator could postpone it for ever. A reading ends it for good."""
    confirm(scene, withdrawn)
    with pytest.raises(UsageError, match="no hide is open"):
        confirm(scene, withdrawn)
    past = "UPDATE portal_sync_events SET delivered_at = now() - interval '{} days' WHERE hidden_by IS NOT NULL"

    scene.run_sql(past.format(30))
    assert kinds(scene) == []
    for _ in range(2):
        scene.run_sql(past.format(32))
        assert kinds(scene) == ["may_be_visible"]
        assert confirm_all_hidden(scene.connection, "hlf", because="in Dynamics") == 1
        assert kinds(scene) == []
    scene.run_sql(past.format(32))
    scene.portal.visible[CONTACT] = False
    scene.reconcile()

    assert kinds(scene) == []


def test_reading_that_was_cut_short_confirms_nothing(scene: Scene, rejected: UUID) -> None:
    """It lists fewer than half of the mentors who should be visible, so the contact may be missing by mistake."""
    scene.certified()
    scene.run_sql("UPDATE mentors SET portal_visible = true WHERE member_no <> 'M1'")
    confirm(scene, rejected)
    scene.run_sql("UPDATE portal_sync_events SET delivered_at = now() - interval '32 days' WHERE hidden_by IS NOT NULL")
    scene.portal.visible.clear()

    scene.reconcile()

    assert "may_be_visible" in kinds(scene)


def test_contact_that_another_mentor_has_now_is_no_alert(scene: Scene, rejected: UUID) -> None:
    """The portal shows it for the other mentor."""
    confirm(scene, rejected)
    scene.run_sql("UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %s", rejected)
    scene.certified(contact_id=CONTACT)

    scene.reconcile()

    assert "may_be_visible" not in kinds(scene)


def test_mentor_who_may_be_visible_again_needs_no_hide(scene: Scene, withdrawn: UUID) -> None:
    confirm(scene, withdrawn)
    scene.run_sql("UPDATE portal_sync_events SET delivered_at = '2020-01-01' WHERE hidden_by IS NOT NULL")
    scene.facts.certificate(withdrawn, TODAY + timedelta(days=300), issued_on=TODAY)

    scene.night(scene.portal)

    assert kinds(scene) == []


@pytest.mark.parametrize(
    "leave",
    [
        "UPDATE organisations SET portal = NULL WHERE slug = 'hlf'",
        "UPDATE mentors SET organisation_id = (SELECT id FROM organisations WHERE slug = 'lhl')",
    ],
    ids=["the organisation", "the mentor"],
)
def test_mentor_whom_a_former_portal_shows_is_an_alert_when_the_certificate_ends(scene: Scene, leave: str) -> None:
    """certjob cannot hide the contact. Before the alert ends, the mentor cannot be deleted."""
    scene.facts.organisation("lhl", portal=None)
    mentor = scene.certified(TODAY, contact_id=CONTACT)
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal)
    scene.run_sql(leave)
    scene.night(scene.portal)
    assert kinds(scene) == []
    with pytest.raises(RestrictViolation, match="may still be shown on the portal"):
        scene.run_sql("DELETE FROM mentors")
    scene.run_sql("UPDATE certificates SET expires_on = %s", YESTERDAY)

    for _ in range(2):
        assert scene.night(scene.portal).outcome == "attention"
        assert kinds(scene) == ["may_be_visible"]

    assert scene.portal.visible[CONTACT]
    confirm(scene, mentor)
    assert kinds(scene) == []
    assert scene.night(scene.portal).outcome == "ok"
    scene.run_sql("DELETE FROM mentors")


def test_hide_by_hand_needs_an_open_hide(scene: Scene) -> None:
    """A show is none, and neither is a hide that the portal has confirmed."""
    mentor = scene.certified()
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.portal.default = error(404, "contact_not_found")
    scene.night(scene.portal)

    with pytest.raises(UsageError, match="no hide is open"):
        confirm(scene, mentor)


def test_held_mentor_must_be_permitted_first(scene: Scene) -> None:
    """certjob has made no decision about this mentor."""
    mentors = [scene.certified() for _ in range(30)]
    scene.night(scene.portal)
    scene.run_sql("UPDATE certificates SET expires_on = %s", YESTERDAY)
    scene.night(scene.portal)

    with pytest.raises(UsageError) as rejected:
        confirm(scene, mentors[0])

    assert "permit it first with `certjob resync`" in str(rejected.value)


def test_hide_by_hand_waits_for_a_call_in_flight(scene: Scene) -> None:
    """Its outcome would be unknown."""
    mentor = scene.hidden()
    scene.claim()

    with pytest.raises(UsageError, match="a call to the portal may be under way"):
        confirm(scene, mentor)


def test_command_stores_a_hide_by_hand(scene: Scene, rejected: UUID, here: Certjob) -> None:
    """With a reason. `status` and `explain` name it until a reading confirms it."""
    assert here("resync", "M1", "--because", "x").returncode == 2
    (alert,) = (line for line in here("explain", "M1").stdout.splitlines() if "hlf:may_be_visible:M1:" in line)
    missing = here("resync", "M1", "--hidden-by-hand")
    done = here("resync", "M1", "--hidden-by-hand", "--because", "in Dynamics")

    assert "what to do: " in alert
    assert_one_line(missing, "the reason must have 1 to 1,000 characters", code=2, command="certjob resync")
    assert (done.returncode, kinds(scene)) == (0, [])
    for page in (here("status").stdout, here("explain", "M1").stdout):
        assert "confirmed by " in page
        assert ", not read since" in page
    scene.portal.visible[CONTACT] = False
    scene.reconcile()
    assert "not read since" not in here("status").stdout + here("explain", "M1").stdout


def test_organisation_leaves_the_portal_with_its_hides_made_by_hand(
    scene: Scene, rejected: UUID, here: Certjob
) -> None:
    left = ("organisation", "set", "hlf", "--portal", "none", "--hidden-by-hand", "--because", "left the programme")

    result = here(*left)
    scene.night(scene.portal)

    assert (result.returncode, kinds(scene)) == (0, [])
    for wrong in (("--portal", "dynamics", "--because", "x"), ("--portal", "none")):
        rejected_command = here("organisation", "set", "hlf", "--hidden-by-hand", *wrong)
        said = "requires --because and --portal none"
        assert_one_line(rejected_command, said, code=2, command="certjob organisation set")


def test_digest_names_who_has_hidden_a_mentor_by_hand(scene: Scene, rejected: UUID) -> None:
    """It is no news, and ends with a reading."""
    eva = scene.facts.insert("coordinators", organisation_id=scene.hlf, email="eva@example.org", locale="en")
    scene.facts.insert("coordinator_digests", coordinator_id=eva, digest_on=TODAY)
    confirm(scene, rejected)
    scene.run_sql("UPDATE portal_sync_events SET hidden_by = %s WHERE hidden_by IS NOT NULL", str(eva))

    scene.deliver(None, channel=scene.channel)

    (page,) = scene.channel.sent
    assert "Hidden by hand (1)" in page.text
    assert "(M1), confirmed by eva@example.org" in page.text
