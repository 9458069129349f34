"""One list of alerts: run, alerts, status and digests agree about it."""

from collections import Counter
from datetime import timedelta

from certjob.domain.alert_kinds import Kind
from certjob.reports.alerts import read_alerts
from certjob.reports.status import read_status
from tests.support.facts import TODAY
from tests.support.portal_answers import error
from tests.support.scene import YESTERDAY, Scene

REJECTED = error(404, "contact_not_found")
UNREPORTED = """
    SELECT a.alert_id
    FROM current_alerts(%s) AS a
    JOIN coordinators AS c ON c.organisation_id = a.organisation_id
    LEFT JOIN LATERAL (
        SELECT reported FROM coordinator_digests AS s
        WHERE s.coordinator_id = c.id AND s.status = 'sent' ORDER BY s.sent_number DESC LIMIT 1
    ) AS d ON true
    WHERE NOT coalesce(d.reported @> a.keys, false)"""
"""Alerts of an organisation that its coordinator's last digest does not have."""


def test_run_alerts_status_and_digests_have_the_same_alerts(scene: Scene) -> None:
    """A rejected hide, a mentor whose pause the database rejects, two failed reminders, and a wrong import."""
    hlf, nhf = scene.facts.organisation("hlf"), scene.facts.organisation("nhf")
    for organisation, address in ((hlf, "eva@hlf.example"), (nhf, "ola@nhf.example")):
        scene.facts.insert("coordinators", organisation_id=organisation, email=address)
    scene.facts.certified_mentor(hlf, YESTERDAY)
    broken = scene.facts.certified_mentor(hlf, YESTERDAY)
    scene.run_sql(f"ALTER TABLE mentor_pauses ADD CONSTRAINT not_this_one CHECK (mentor_id <> '{broken}')")
    for _ in range(2):
        scene.facts.certified_mentor(hlf, TODAY + timedelta(days=7), email=None)
    for _ in range(30):
        scene.facts.certified_mentor(nhf, YESTERDAY)
    scene.portal.default = REJECTED

    report = scene.night(scene.portal)

    counts = Counter(str(alert.kind) for alert in read_alerts(scene.connection, today=TODAY))
    assert counts == {"may_be_visible": 1, "held": 1, "never_reviewed": 1, "failed_reminders": 2}
    assert report.attention is not None
    assert report.attention.numbers == dict.fromkeys(map(str, Kind), 0) | counts
    assert (report.outcome, len(report.news)) == ("attention", 4)
    assert read_status(scene.connection, today=TODAY, max_age=timedelta(days=1)).alerts == report.attention.numbers
    assert scene.rows(UNREPORTED, TODAY) == []


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


def test_first_full_run_of_a_day_prints_every_alert(scene: Scene) -> None:
    """A delivery or a run of one organisation prints only what no command of the day has printed."""
    scene.expired()
    scene.portal.default = REJECTED
    scene.night(scene.portal)
    tomorrow = TODAY + timedelta(days=1)
    line = "1 mentor may still be visible on the portal: Dynamics has no contact with this ID; see `certjob alerts`"

    of_one, full, again = (scene.night(scene.portal, today=tomorrow, organisation=slug) for slug in ("hlf", None, None))

    assert (of_one.news, full.news, again.news) == ([line], [line], [])
    assert {report.outcome for report in (of_one, full, again)} == {"attention"}


def test_new_name_in_a_hold_is_news(scene: Scene) -> None:
    """Also another reason of a held mentor. The exit code does not depend on it."""
    scene.night()
    mentors = [scene.certified() for _ in range(21)]
    scene.night()
    scene.run_sql("UPDATE certificates SET expires_on = %s", TODAY + timedelta(days=20))
    first, again = scene.night(), scene.night()

    scene.run_sql("UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s", mentors[0])
    revoked = scene.night()

    assert [len(report.news) for report in (first, again, revoked)] == [1, 0, 1]
    assert [str(report.outcome) for report in (first, again, revoked)] == ["attention"] * 3


def test_runs_that_never_finish_are_an_alert(scene: Scene) -> None:
    """26 hours after the first one has started."""
    scene.night(deliver=False)
    scene.run_sql("UPDATE job_runs SET finished_at = NULL, outcome = NULL, last_seen_at = now() - interval '25 hours'")
    started = "UPDATE job_runs SET started_at = now() - interval '{} hours'"

    scene.run_sql(started.format(25))
    assert read_alerts(scene.connection, today=TODAY) == []
    scene.run_sql(started.format(27))

    assert [alert.kind for alert in read_alerts(scene.connection, today=TODAY)] == [Kind.NO_FULL_RUN]


def test_failing_show_that_becomes_a_failing_hide_is_news(scene: Scene) -> None:
    """The push has failed since before the first report of the day, but people see another alert."""
    scene.expired(member_no="M1")
    scene.night(scene.portal)
    scene.portal.default = error(503, "dynamics_unavailable")
    scene.run_sql("UPDATE certificates SET expires_on = %s", TODAY + timedelta(days=300))
    first = scene.night(scene.portal).news
    scene.run_sql("UPDATE certificates SET revoked_at = now()")

    second = scene.night(scene.portal).news

    why = "the portal did not answer or could not make the change"
    assert first == [f"1 mentor may still be hidden on the portal: {why}; see `certjob alerts`"]
    assert second == [f"1 mentor may still be visible on the portal: {why}; see `certjob alerts`"]
    (alert,) = read_alerts(scene.connection, today=TODAY)
    assert alert.since >= scene.rows("SELECT wanted_at FROM portal_sync_events")[0][0]
