"""One list of alerts: run, alerts, status and digests agree about it."""

import random
from collections import Counter
from datetime import date, timedelta

import pytest

from certjob.errors import (
    ChannelDownError,
    PermanentPortalError,
    PortalStageError,
    RecipientDeferredError,
    RecipientRefusedError,
    TransientPortalError,
)
from certjob.jobs.report import RunReport
from certjob.mail.message import OutgoingMessage
from certjob.reports.alerts import read_alerts
from certjob.reports.status import read_status
from certjob.review.attention import Kind
from tests.support.facts import TODAY
from tests.support.nights import CollectingChannel, FlakyPortal, make_due
from tests.support.programmes import random_programme
from tests.support.scene import Scene

RUNS = 3
UNREPORTED = """
    SELECT a.kind, a.alert_id, d.reported
    FROM current_alerts(%s) AS a
    JOIN coordinators AS c ON c.organisation_id = a.organisation_id
    LEFT JOIN LATERAL (
        SELECT s.reported FROM coordinator_digests AS s
        WHERE s.coordinator_id = c.id AND s.status = 'sent' ORDER BY s.sent_number DESC LIMIT 1
    ) AS d ON true
    WHERE a.kind NOT IN ('failed_digests', 'waiting_digests')
        AND NOT EXISTS (
            SELECT FROM unnest(d.reported) AS key WHERE starts_with(key, md5(a.alert_id) || ':')
        )"""
"""Alerts of an organisation that its coordinator's last digest does not have."""

SOME = "(SELECT id FROM mentors ORDER BY md5(id::text || %s) LIMIT %s)"
WRONG_DATES = f"UPDATE certificates SET expires_on = greatest(issued_on, '2026-02-01') WHERE mentor_id IN {SOME}"
CHANGES = [
    (WRONG_DATES, 300),
    (WRONG_DATES, 300),
    (f"UPDATE mentors SET email = NULL WHERE id IN {SOME}", 15),
    (f"UPDATE certificates SET revoked_at = now() WHERE mentor_id IN {SOME}", 10),
    (f"UPDATE mentors SET left_at = now() WHERE id IN {SOME}", 5),
]
"""Statements, each with the number of mentors that it changes."""
PORTAL_ERRORS = (
    TransientPortalError("connection reset"),
    PermanentPortalError("the portal answered 404 contact_not_found"),
    PortalStageError("the portal answered 401 unauthorized"),
)
MAIL_ERRORS = [RecipientRefusedError("550 no such user"), RecipientDeferredError("452 mailbox full")]


def run_after_a_bad_day(scene: Scene, chance: random.Random, today: date, *, is_last: bool) -> RunReport:
    """Let a day pass, then run while portal and mail server fail at random. The last run's digests are all sent."""
    portal_failures, mail_failures = chance.random(), chance.random()
    let_a_day_pass(scene, chance)
    mail_errors = MAIL_ERRORS if is_last else [*MAIL_ERRORS, ChannelDownError("connection refused")]

    def push(_number: int) -> Exception | None:
        return chance.choices(PORTAL_ERRORS, weights=(6, 6, 1))[0] if chance.random() < portal_failures else None

    def send(message: OutgoingMessage) -> Exception | None:
        if (message.kind == "digest" and is_last) or chance.random() > mail_failures:
            return None
        return chance.choice(mail_errors)

    return scene.night(FlakyPortal(push), today=today, channel=CollectingChannel(on_send=send))


def let_a_day_pass(scene: Scene, chance: random.Random) -> None:
    """Make open work a day older, change some facts, and let the database refuse the pauses of one mentor."""
    for table in ("portal_sync_events", "cert_notification_log"):
        make_due(scene.facts, table)
    for table in ("cert_notification_log", "coordinator_digests"):
        scene.run_sql(f"UPDATE {table} SET queued_at = queued_at - interval '25 hours'")
    statement, number = chance.choice(CHANGES)
    scene.run_sql(statement, str(chance.random()), number)
    scene.run_sql("ALTER TABLE mentor_pauses DROP CONSTRAINT IF EXISTS not_this_one")
    if chance.random() < 0.7:
        ((mentor,),) = scene.rows(SOME, str(chance.random()), 1)
        scene.run_sql("UPDATE certificates SET expires_on = issued_on WHERE mentor_id = %s", mentor)
        refusal = f"CHECK (mentor_id <> '{mentor}') NOT VALID"
        scene.run_sql(f"ALTER TABLE mentor_pauses ADD CONSTRAINT not_this_one {refusal}")


@pytest.mark.parametrize("seed", [6, 8])  # of twelve seeds those with the most kinds of alerts
def test_run_alerts_status_and_digests_have_the_same_alerts(scene: Scene, seed: int) -> None:
    """Three bad days of a random programme. Digests are compared after the last one."""
    chance = random.Random(seed)
    random_programme(scene.facts, seed=seed, mentors=300)
    scene.run_sql(
        "INSERT INTO coordinators (organisation_id, email) SELECT id, slug || '@hlf.example' FROM organisations"
    )
    number_of_alerts = 0

    for number in range(RUNS):
        today = TODAY + timedelta(days=number)

        report = run_after_a_bad_day(scene, chance, today, is_last=number == RUNS - 1)

        alerts = read_alerts(scene.connection, today=today)
        expected = dict.fromkeys(map(str, Kind), 0) | Counter(str(alert.kind) for alert in alerts)
        assert report.attention is not None
        assert report.attention.numbers == expected
        assert read_status(scene.connection, today=today, max_age=timedelta(days=1)).alerts == expected
        assert report.outcome == "attention" or (report.outcome == "ok" and not alerts)
        assert report.outcome == "ok" or report.news, "the first run of a day prints the reasons"
        number_of_alerts += len(alerts)
    assert scene.rows(UNREPORTED, today) == []
    assert number_of_alerts


def test_repeated_run_prints_only_new_problems(scene: Scene) -> None:
    """The crontab starts a run at 3:10, 4:10 and 5:10, and cron mails the output."""
    scene.expired()
    first, repeated = scene.night().news, scene.night().news
    scene.expired()
    third = scene.night().news
    next_day = scene.night(today=TODAY + timedelta(days=1)).news

    assert first == [
        "portal: CERTJOB_PORTAL_URL is not set; the pushes stay pending",
        "1 mentor may still be visible on the portal; see `certjob alerts`",
    ]
    assert repeated == []
    assert third == ["2 mentors may still be visible on the portal (1 new); see `certjob alerts`"]
    assert next_day[0] == first[0]


def test_run_of_one_organisation_and_run_of_all_print_a_problem_once_each(scene: Scene) -> None:
    """A crontab may have both."""
    scene.expired()

    news = [bool(scene.night(organisation=slug).news) for slug in ("hlf", "hlf", None, None, "hlf")]

    assert news == [True, False, True, False, False]
