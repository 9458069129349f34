"""``certjob alerts --retry-all``: every open push is tried now, before its retry time, and mail is due."""

import json

from certjob.errors import Cause, MailRejectedError, RecipientRejectedError
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line
from tests.support.facts import TODAY
from tests.support.portal_answers import error, ok
from tests.support.scene import Scene

UNDELIVERED = """
    SELECT status, next_attempt_at <= now() FROM cert_notification_log
    UNION ALL SELECT status, next_attempt_at <= now() FROM coordinator_digests ORDER BY 1, 2
"""
OPEN = "SELECT status, attempts, version FROM portal_sync_events ORDER BY id"


def test_blocked_and_delayed_pushes_are_sent_but_no_mail(scene: Scene) -> None:
    """Their failures are resolved."""
    rejected, failing = scene.backlog(2)
    scene.facts.certified_mentor(scene.facts.organisation("nhf", portal=None), TODAY)
    scene.portal.then(error(404, "contact_not_found"))
    scene.portal.default = error(503, "dynamics_unavailable")
    scene.night(scene.portal, channel=None)
    assert scene.rows(OPEN) == [("blocked", 1, 1), ("pending", 1, 1)]
    scene.portal.default = ok()

    report = scene.retry_all(scene.portal)

    assert scene.portal.visible == {rejected: False, failing: False}
    assert scene.rows(OPEN) == [("delivered", 1, 2), ("delivered", 1, 2)]
    assert scene.rows("SELECT count(*) FROM dynamics_sync_failures WHERE resolved_at IS NULL") == [(0,)]
    assert (report.outcome, report.reopened) == ("ok", 2)
    assert (scene.channel.sent, scene.rows("SELECT status FROM cert_notification_log")) == ([], [("pending",)])


def test_undelivered_mail_is_due(scene: Scene) -> None:
    """A failed reminder, one that the server has rejected, and a failed digest. The next delivery sends them."""
    organisation = scene.facts.organisation("nhf", portal=None)
    for number in range(2):
        scene.facts.certified_mentor(organisation, TODAY, email=f"m{number}@example.org")
    coordinator = {"full_name": "Berit", "email": "berit@example.org", "locale": "nb"}
    scene.facts.insert("coordinators", organisation_id=organisation, **coordinator)
    wrong = RecipientRejectedError("550 5.1.1 no", code=Cause.WRONG_ADDRESS)
    refused = MailRejectedError("550 5.7.1 no", may_be_address=False)
    scene.channel.on_send = lambda message: refused if message.to == "m1@example.org" else wrong
    scene.night(scene.portal, channel=scene.channel)
    scene.channel.on_send = None
    assert scene.rows(UNDELIVERED) == [("failed", True), ("failed", True), ("pending", False)]

    report = scene.retry_all(scene.portal)

    assert scene.rows(UNDELIVERED) == [("pending", True)] * 3
    assert (report.mail_reopened, report.to_document()["mail"]) == (3, {"reopened": 3})
    scene.deliver(scene.portal, channel=scene.channel)
    assert len(scene.channel.sent) == 3


def test_locked_push_is_left_out(scene: Scene) -> None:
    """The push of a locked mentor is sent."""
    contacts = scene.backlog(5)
    scene.run_sql("UPDATE portal_sync_events SET status = 'blocked'")
    scene.app.execute("UPDATE mentors SET member_no = member_no WHERE dynamics_contact_id = %s", (contacts[1],))
    scene.app.execute("SELECT FROM portal_sync_events ORDER BY id LIMIT 1 FOR UPDATE")

    report = scene.retry_all(scene.portal)

    assert (len(scene.portal.requests), report.reopened) == (4, 4)


def test_retry_all_shows_the_remaining_alerts(scene: Scene, here: Certjob, delivery_settings: dict[str, str]) -> None:
    """Exit 3 with the reasons while there is any, otherwise 0 without output."""
    scene.backlog(2)
    scene.portal.default = error(404, "contact_not_found")

    stuck = here("alerts", "--retry-all", **delivery_settings)
    scene.portal.then(ok())
    half = here("alerts", "--retry-all", "--json", **delivery_settings)
    scene.portal.default = ok()
    mended = here("alerts", "--retry-all", **delivery_settings)

    assert_one_line(
        stuck, "2 portal pushes failed: Dynamics has no contact with this ID\n", code=3, command="certjob alerts"
    )
    assert stuck.stdout.count("Dynamics sync pending — mentor may still be visible on portal") == 2
    document = json.loads(half.stdout)
    assert (half.returncode, document["outcome"], document["portal"]["delivered"]) == (3, "attention", 1)
    assert [alert["cause"] for alert in document["alerts"]] == ["contact_not_found"]
    assert (mended.returncode, mended.stdout, mended.stderr) == (0, "", "")
