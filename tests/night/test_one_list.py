"""One list: whatever goes wrong, run, alerts, status, metrics and digests agree about what needs attention."""

import random
import re
from datetime import timedelta

import pytest

from certjob.database import Connection
from certjob.errors import (
    ChannelDownError,
    PermanentPortalError,
    PortalCallError,
    PortalStageError,
    RecipientDeferredError,
    RecipientRefusedError,
    TransientPortalError,
)
from certjob.mail.message import OutgoingMessage
from certjob.review.attention import Kind
from certjob.views.alerts import Alerts, read_alerts
from certjob.views.metrics import read_metrics
from certjob.views.status import read_status
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due
from tests.support.nights import CollectingChannel, night
from tests.support.programmes import random_programme

NIGHTS = 3

UNREPORTED = """
    SELECT a.kind, a.alert_id, d.reported
    FROM attention AS a
    JOIN coordinators AS c ON c.organisation_id = a.organisation_id
    LEFT JOIN LATERAL (
        SELECT s.reported FROM coordinator_digests AS s
        WHERE s.coordinator_id = c.id AND s.status = 'sent' ORDER BY s.sent_number DESC LIMIT 1
    ) AS d ON true
    WHERE a.kind NOT IN ('failed_digests', 'waiting_digests')
        AND (a.until IS NULL OR a.until >= %s)
        AND NOT EXISTS (
            SELECT FROM unnest(d.reported) AS line
            WHERE line = a.alert_id
                OR starts_with(line, a.alert_id || ':')
                OR line IN ('late:' || a.row_id, 'noaddress:' || a.mentor_id)
                OR starts_with(line, 'mail:' || a.row_id || ':')
        )"""
"""Alerts of an organisation that its coordinator's last digest does not tell."""

SOME = "(SELECT id FROM mentors ORDER BY md5(id::text || %s) LIMIT %s)"
HAPPENINGS = [
    (f"UPDATE certificates SET expires_on = greatest(issued_on, '2026-02-01') WHERE mentor_id IN {SOME}", 300),
    (f"UPDATE certificates SET expires_on = greatest(issued_on, '2026-02-01') WHERE mentor_id IN {SOME}", 300),
    (f"UPDATE mentors SET email = NULL WHERE id IN {SOME}", 15),
    (f"UPDATE certificates SET revoked_at = now() WHERE mentor_id IN {SOME}", 10),
    (f"UPDATE mentors SET left_at = now() WHERE id IN {SOME}", 5),
]


class Misfortune:
    """A portal and a mail server that fail by chance, each night in a mood of its own."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def begin_night(self, *, is_last: bool) -> None:
        self.is_last = is_last
        self._portal_mood, self._mail_mood = self._chance.random(), self._chance.random()

    async def update_portal_visibility(self, *_contact: object, **_wanted: object) -> None:
        if self._chance.random() > self._portal_mood:
            return
        errors: list[PortalCallError] = [
            TransientPortalError("connection reset"),
            PermanentPortalError("the portal answered 404 contact_not_found"),
            PortalStageError("the portal answered 401 unauthorized"),
        ]
        raise self._chance.choices(errors, weights=(6, 6, 1))[0]

    def refuse(self, message: OutgoingMessage) -> None:
        if (message.kind == "digest" and self.is_last) or self._chance.random() > self._mail_mood:
            return
        errors = [RecipientRefusedError("550 no such user"), RecipientDeferredError("452 mailbox full")]
        down = [] if self.is_last else [ChannelDownError("connection refused")]
        raise self._chance.choice([*errors, *down])


def between_nights(facts: Facts, chance: random.Random) -> None:
    """A day goes by for what waits, something happens to some, and the database refuses one mentor's pauses."""
    connection = facts.connection
    make_due(facts, "portal_sync_events")
    make_due(facts, "cert_notification_log")
    for table in ("cert_notification_log", "coordinator_digests"):
        connection.execute(f"UPDATE {table} SET queued_at = queued_at - interval '25 hours'".encode())
    statement, number = chance.choice(HAPPENINGS)
    connection.execute(statement.encode(), (str(chance.random()), number))
    connection.execute("ALTER TABLE mentor_pauses DROP CONSTRAINT IF EXISTS not_this_one")
    if chance.random() < 0.7:
        ((mentor,),) = facts.rows(SOME, str(chance.random()), 1)
        connection.execute("UPDATE certificates SET expires_on = issued_on WHERE mentor_id = %s", (mentor,))
        refusal = f"CHECK (mentor_id <> '{mentor}') NOT VALID"
        connection.execute(f"ALTER TABLE mentor_pauses ADD CONSTRAINT not_this_one {refusal}".encode())


def numbers_of(alerts: Alerts) -> dict[str, int]:
    """How many alerts of each kind there are in full."""
    waiting = {each.what: each.number for each in alerts.waiting_mail}
    return {
        Kind.HELD: len(alerts.held),
        Kind.NEVER_REVIEWED: len(alerts.never_reviewed),
        Kind.MAY_BE_VISIBLE: sum(not push.visible for push in alerts.pushes),
        Kind.CONTRADICTORY: len(alerts.contradictory),
        Kind.UNKNOWN_CONTACTS: len(alerts.unknown_contacts),
        Kind.PORTAL_NOT_READ: len(alerts.portal_not_read),
        Kind.MAY_BE_HIDDEN: sum(push.visible for push in alerts.pushes),
        Kind.FAILED_REMINDERS: len(alerts.failed_reminders),
        Kind.FAILED_DIGESTS: len(alerts.failed_digests),
        Kind.WAITING_REMINDERS: waiting.get("reminders", 0),
        Kind.WAITING_DIGESTS: waiting.get("digests", 0),
    }


@pytest.mark.parametrize("seed", [6, 8])  # of the first dozen those with the most kinds of alerts, "held" too
def test_everybody_agrees_about_what_needs_attention(connection: Connection, facts: Facts, seed: int) -> None:
    """Each night of an unlucky programme: the exit code and four lists; after the last one, the digests as well."""
    chance = random.Random(seed)
    random_programme(facts, seed=seed, mentors=300)
    add = "INSERT INTO coordinators (organisation_id, email) SELECT id, slug || '@example.org' FROM organisations"
    connection.execute(add)
    misfortune = Misfortune(chance)
    seen = 0

    for number in range(NIGHTS):
        today = TODAY + timedelta(days=number)
        misfortune.begin_night(is_last=number == NIGHTS - 1)
        between_nights(facts, chance)

        report = night(connection, today, portal=misfortune, channel=CollectingChannel(on_send=misfortune.refuse))

        alerts = read_alerts(connection, today=today)
        expected = numbers_of(alerts)
        assert report.attention is not None
        assert report.attention.numbers == expected
        assert read_status(connection, today=today, max_age=timedelta(days=1)).alerts == expected
        metrics = read_metrics(connection, today=today).decode()
        measured = re.findall(r'^certjob_alerts\{kind="(\w+)"\} (\S+)$', metrics, re.MULTILINE)
        assert {kind: float(count) for kind, count in measured} == expected
        waiting = dict(re.findall(r'^certjob_waiting_mail\{what="(\w+)"\} (\S+)$', metrics, re.MULTILINE))
        assert float(waiting["reminders"]) == expected[Kind.WAITING_REMINDERS]
        assert float(waiting["digests"]) == expected[Kind.WAITING_DIGESTS]
        assert report.outcome == "attention" or (report.outcome == "ok" and not len(alerts))
        assert report.outcome == "ok" or report.news, "the first run of a day says why"
        seen += len(alerts)
    assert facts.rows(UNREPORTED, today) == []
    assert seen


def test_a_run_of_one_organisation_repeats_nothing_and_takes_nothing_from_the_run_over_all(
    connection: Connection, facts: Facts
) -> None:
    """What an alert costs a crontab with both: each says it once a day."""
    facts.certified_mentor(facts.organisation("hlf"), TODAY - timedelta(days=1))

    news = [bool(night(connection, organisation=slug).news) for slug in ("hlf", "hlf", None, None, "hlf")]

    assert news == [True, False, True, False, False]
