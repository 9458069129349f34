"""What a database server whose clock was wrong has written does not wait until its time comes."""

from collections.abc import Mapping
from datetime import timedelta
from uuid import uuid4

import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import ConfigurationError
from certjob.stopping import StopFlag
from tests.support.facts import TODAY
from tests.support.nights import FlakyPortal
from tests.support.scene import YESTERDAY, Scene

IN_A_YEAR = "now() + interval '1 year'"


@pytest.mark.parametrize("claimed", [False, True], ids=["put off", "claimed"])
def test_what_was_put_off_or_claimed_for_a_year_goes_out_with_the_next_run(scene: Scene, claimed: bool) -> None:
    """A push, a reminder, a digest. After a lease, whose owner is long gone, the mails say that they may be repeats.

    A row that is locked waits for the run after that.
    """
    hlf = scene.facts.organisation()
    scene.facts.insert("coordinators", organisation_id=hlf, email="berit@example.org")
    scene.facts.certified_mentor(hlf, YESTERDAY)
    scene.night(channel=None)
    mails = ("cert_notification_log", "coordinator_digests")
    for table in ("portal_sync_events", *mails):
        since = "queued_at" if table in mails else "wanted_at"
        token = "gen_random_uuid()" if claimed else "NULL"
        scene.run_sql(f"UPDATE {table} SET next_attempt_at = {IN_A_YEAR}, {since} = {IN_A_YEAR}, claim_token = {token}")
    portal = FlakyPortal()

    scene.app.execute("SELECT FROM portal_sync_events FOR UPDATE")
    scene.night(portal, channel=None)
    assert portal.visible == {}
    scene.app.rollback()
    scene.night(deliver=False)
    assert scene.rows("SELECT wanted_at <= now() FROM portal_alerts") == [(True,)]
    for table in mails:  # in a year they would be mail that waits
        assert scene.rows(f"SELECT queued_at <= now() FROM {table}") == [(True,)]
    scene.night(portal)

    assert list(portal.visible.values()) == [False]
    sent = sorted((message.kind, message.repeat) for message in scene.channel.sent)
    assert sent == [("digest", claimed), ("reminder", claimed)]


def test_a_call_in_flight_for_a_mentor_whose_organisation_lost_its_portal_blocks_the_contact_no_longer(
    scene: Scene,
) -> None:
    """Its push was withdrawn under way. A mentor of another organisation has the same contact, and is hidden now."""
    contact = uuid4()
    scene.facts.certified_mentor(scene.facts.organisation("nhf"), YESTERDAY, contact_id=contact)
    scene.night(deliver=False)
    scene.run_sql("UPDATE organisations SET portal = NULL")
    scene.night(deliver=False)
    claim = f"next_attempt_at = {IN_A_YEAR}, claim_token = gen_random_uuid(), claim_contact_id = %s"
    scene.run_sql(f"UPDATE portal_sync_events SET {claim} WHERE status = 'withdrawn'", contact)
    scene.expired(contact_id=contact)
    portal = FlakyPortal()

    scene.night(portal)

    assert scene.rows("SELECT status FROM portal_sync_events ORDER BY id") == [("withdrawn",), ("delivered",)]
    assert portal.visible == {contact: False}


def test_a_night_of_next_year_is_forgiven_once(scene: Scene) -> None:
    """Both clocks were a year ahead, as on one machine: after --allow-earlier-date the nights go on without it."""
    scene.certified(TODAY + timedelta(days=300))
    scene.night(today=TODAY + timedelta(days=365))
    for name in ("started_at", "last_seen_at", "finished_at"):
        scene.run_sql(f"UPDATE job_runs SET {name} = {name} + interval '1 year'")
    with pytest.raises(ConfigurationError, match="--allow-earlier-date"):
        scene.night()

    healing = scene.night(allow_earlier_date=True)
    after = scene.night()

    assert [each.to_document()["mentors"]["reviewed"] for each in (healing, after)] == [1, 0]
    assert scene.rows("SELECT count(*) FROM job_runs WHERE finished_at > now()") == [(0,)]


def test_a_session_that_is_ended_meanwhile_is_opened_anew(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that restarts just when a run begins does not end the run."""
    usual = database.execute
    ended: list[int] = []

    def execute(session: Connection, name: str, parameters: Mapping[str, object] | None = None) -> int:
        if name == "heal_wrong_clock" and not ended:
            ended.append(session.info.backend_pid)
            scene.rows("SELECT pg_terminate_backend(%s, 10000)", *ended)
        return usual(session, name, parameters)

    monkeypatch.setattr(database, "execute", execute)
    scene.expired()
    database.outlast_restarts(scene.other, stop=StopFlag())

    report = scene.night(connection=scene.other)

    assert report.to_document()["mentors"]["paused"] == len(ended) == 1
    assert scene.other.info.backend_pid not in ended
