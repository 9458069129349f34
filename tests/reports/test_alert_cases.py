"""Each alert has its current cause, and stays until the problem is over."""

import json
from datetime import timedelta
from uuid import uuid4

from certjob import database
from certjob.domain.explanations import whole_date
from certjob.jobs.acknowledge import acknowledge
from certjob.mail.messages.content import write_date
from certjob.reports.alerts import Alert, read_alerts
from certjob.reports.status import read_status
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.portal_answers import error
from tests.support.scene import Scene

KEY_REFUSED, REJECTED = error(401, "unauthorized"), error(422, "dynamics_rejected")
DOWN = error(503, "dynamics_unavailable")
LATE = "UPDATE job_runs SET finished_at = now() - interval '27 hours'"
"""The last full run ended 27 hours ago."""
NO_FULL_RUN = "No full run since 10 March 2026"


def alerts(scene: Scene) -> list[Alert]:
    return read_alerts(scene.connection, today=TODAY)


# The portal.


def test_rejected_key_becomes_the_cause_of_a_push_that_failed_before(scene: Scene) -> None:
    """After the outage, the cause is another one. A push that the portal rejected keeps its own cause."""
    scene.expired(member_no="rejected")
    scene.portal.default = REJECTED
    scene.night(scene.portal, channel=None)
    scene.expired(member_no="outage")
    scene.portal.default = DOWN
    scene.night(scene.portal, channel=None)
    scene.make_due()

    scene.portal.default = KEY_REFUSED
    scene.night(scene.portal, channel=None)

    found = {alert.member_no: (alert.cause, "401 unauthorized" in str(alert.error)) for alert in alerts(scene)}
    assert found == {"outage": ("portal_stopped", True), "rejected": ("change_refused", False)}


def test_next_step_names_the_mentor_and_the_organisation(scene: Scene) -> None:
    """Member numbers are unique only within an organisation, and may have spaces."""
    scene.expired(member_no="M 1")
    scene.portal.default = REJECTED
    scene.night(scene.portal, channel=None)

    (alert,) = alerts(scene)

    assert "run `certjob resync 'M 1' --organisation hlf`." in alert.what_to_do(next_try="")


def test_open_hide_stays_an_alert_when_the_organisation_loses_its_portal(scene: Scene, here: Certjob) -> None:
    """certjob makes no call for it, so someone must hide the mentor by hand, until the mentor is certified again."""
    mentor = scene.expired(member_no="M1")
    scene.portal.default = DOWN
    scene.night(scene.portal, channel=None)
    scene.run_sql("UPDATE organisations SET portal = NULL")
    before = here("alerts")

    scene.night(scene.portal)
    after = here("alerts")

    assert (before.returncode, after.returncode) == (3, 3)
    for page in (before, after):
        assert "certjob can no longer hide this contact; what to do: Hide it in Dynamics" in page.stdout
    assert "run `certjob resync M1 --organisation hlf --hidden-by-hand --because TEXT`" in after.stdout
    scene.facts.certificate(mentor, TODAY + timedelta(days=300), issued_on=TODAY)
    scene.night(scene.portal)
    assert alerts(scene) == []


# Jobs that do not run.


def test_portal_that_was_never_read_is_an_alert_after_three_days(scene: Scene, here: Certjob) -> None:
    """The three days begin with the first delivered push."""
    scene.expired()
    scene.night(scene.portal, channel=None)
    scene.run_sql("UPDATE portal_sync_events SET delivered_at = now() - interval '71 hours'")
    assert alerts(scene) == []

    scene.run_sql("UPDATE portal_sync_events SET delivered_at = now() - interval '73 hours'")
    result = here("alerts")

    assert result.returncode == 3
    assert ": all:portal_not_read:never, since " in result.stdout
    assert "The portal has never been read; what to do: Run `certjob reconcile`" in result.stdout
    assert here("status", "-q").returncode == 3


def test_overdue_run_is_an_alert_with_the_number_of_mentors_who_may_be_visible(scene: Scene) -> None:
    """A full run is overdue after 26 hours."""
    for _ in range(2):
        scene.certified(TODAY + timedelta(days=3))
    scene.night(scene.portal, channel=None)
    scene.run_sql("UPDATE job_runs SET finished_at = now() - interval '25 hours'")
    later = TODAY + timedelta(days=5)
    assert read_alerts(scene.connection, today=later) == []

    scene.run_sql(LATE)

    (alert,) = read_alerts(scene.connection, today=later)
    assert (alert.alert_id, alert.number) == (f"all:no_full_run:{TODAY}", 2)
    assert alert.error == f"{NO_FULL_RUN}; 2 mentors who must not be visible may still be visible"


def test_overdue_run_counts_everyone_whose_hide_is_not_confirmed(scene: Scene) -> None:
    """A pause by a person and a departure on the first day without a run. A pushed hide is confirmed.

    Only a review knows the consequence of a revocation.
    """
    paused, revoked, left, hidden = (scene.certified(member_no=f"M{number}") for number in range(4))
    scene.night(scene.portal, channel=None)
    scene.run_sql(LATE)

    for mentor in (paused, hidden):
        scene.facts.pause(mentor)
    scene.run_sql("UPDATE certificates SET revoked_at = now() WHERE mentor_id = %s", revoked)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = %s", left)
    scene.resync(hidden, scene.portal)

    (alert,) = alerts(scene)
    assert (alert.kind, alert.number) == ("no_full_run", 2)
    assert alert.error is not None
    assert alert.error.endswith(
        "; 2 mentors who must not be visible may still be visible; 3 mentors with changed facts wait for a review"
    )


def test_revoked_mentor_whose_removal_is_held_is_in_every_number(scene: Scene) -> None:
    """The alert of an overdue run, the exposures, and a coordinator's digest."""
    mentor = scene.certified(member_no="M1")
    scene.night(scene.portal, channel=None)
    scene.facts.insert("portal_sync_events", mentor_id=mentor, visible=True, status="delivered")
    scene.run_sql("UPDATE certificates SET revoked_at = now()")
    scene.facts.insert("still_due", mentor_id=mentor, what="held", reason="revoked", as_of=TODAY)
    scene.run_sql(LATE)

    overdue = next(alert for alert in alerts(scene) if alert.kind == "no_full_run")
    status = read_status(scene.connection, today=TODAY, max_age=timedelta(days=1))
    about = {"today": TODAY, "organisation_id": scene.hlf}
    in_digest = database.fetch_value(scene.connection, "count_unhidden_mentors", about)

    assert (overdue.number, status.exposure.mentors, in_digest) == (1, 1, 1)


def test_overdue_run_does_not_count_whom_the_portal_hides_on_its_day(scene: Scene) -> None:
    """Only a portal with a date column does. A pause is not in that column."""
    ended, paused = (scene.certified(last_day) for last_day in (TODAY + timedelta(days=3), TODAY + timedelta(days=9)))
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal, channel=None)
    scene.run_sql(LATE)
    scene.facts.pause(paused)
    until = "UPDATE portal_sync_events SET shown_until = coalesce(%s, 'infinity'::date) WHERE mentor_id = %s"
    numbers = []

    for has_dates in (False, True):
        scene.run_sql(until, TODAY + timedelta(days=3) if has_dates else None, ended)
        scene.run_sql(until, TODAY + timedelta(days=9) if has_dates else None, paused)
        numbers += [alert.number for alert in read_alerts(scene.connection, today=TODAY + timedelta(days=5))]

    assert numbers == [2, 1]


def test_overdue_run_is_told_by_alerts_status_and_check(scene: Scene, here: Certjob) -> None:
    scene.night(scene.portal, channel=None)
    yesterday = today() - timedelta(days=1)
    scene.run_sql(LATE + ", as_of = %s", yesterday)
    said = f"No full run since {yesterday:%-d %B %Y}"

    listed, status, check = here("alerts"), here("status", "-q"), here("check")

    assert (listed.returncode, said in listed.stdout) == (3, True)
    assert (status.returncode, said in status.stderr) == (3, True)
    assert f"warn  last run: {said}; run `certjob run`, then check cron\n" in check.stdout


def test_run_at_work_does_not_end_the_alert_about_a_missing_run(scene: Scene) -> None:
    """It may have been killed. Its own lines and digests do not have the alert, and `deliver` leaves digests to it."""
    scene.facts.insert("coordinators", organisation_id=scene.hlf, email="eva@example.org", locale="en")
    scene.night(scene.portal, channel=None)
    scene.run_sql(LATE)
    scene.facts.insert("job_runs", id=uuid4(), command="run", as_of=TODAY, host="night-1", version="1.0.0")
    assert [alert.kind for alert in alerts(scene)] == ["no_full_run"]
    for organisation in (None, "hlf"):
        scene.run_sql("UPDATE job_runs SET organisation = %s WHERE finished_at IS NULL", organisation)
        assert (scene.deliver(scene.portal, channel=scene.channel).outcome, scene.channel.sent) == ("attention", [])

    scene.certified(TODAY - timedelta(days=1))
    report = scene.night(scene.portal, channel=scene.channel)
    scene.run_sql("UPDATE job_runs SET last_seen_at = now() - interval '16 minutes' WHERE finished_at IS NULL")
    scene.run_sql(LATE + " WHERE finished_at IS NOT NULL")
    scene.run_sql("UPDATE coordinator_digests SET digest_on = digest_on - 1")
    scene.deliver(scene.portal, channel=scene.channel)

    assert (report.outcome, report.reasons) == ("ok", [])
    digests = [mail.text for mail in scene.channel.sent if mail.kind == "digest"]
    assert ["We have not checked" in text for text in digests] == [False, True]


def test_run_of_one_organisation_is_not_a_full_run(scene: Scene) -> None:
    """The digests of the organisation do not report it for 26 hours."""
    scene.certified()
    scene.night(scene.portal, channel=None)
    scene.run_sql(LATE)

    scene.night(scene.portal, channel=None, organisation="hlf")

    assert [alert.kind for alert in alerts(scene)] == ["no_full_run"]
    about = {"organisation_id": scene.hlf, "today": TODAY}
    for hours, number in ((25, None), (27, 0)):
        scene.run_sql(f"UPDATE job_runs SET finished_at = now() - interval '{hours} h' WHERE organisation = 'hlf'")
        assert database.fetch_value(scene.connection, "count_unhidden_mentors", about) == number
    scene.night(scene.portal, channel=None)
    assert alerts(scene) == []


def test_deliver_tells_an_overdue_run_once_a_day(scene: Scene) -> None:
    """It runs every 15 minutes, and is the only job that is left. Its exit code says it each time."""
    scene.night(scene.portal, channel=None)
    scene.run_sql(LATE)

    first, second = scene.deliver(scene.portal), scene.deliver(scene.portal)

    assert (first.outcome, second.outcome) == ("attention", "attention")
    line = f"{NO_FULL_RUN}; run `certjob run`, then check cron"
    assert (first.news, second.news) == ([line], [])
    scene.run_sql("UPDATE job_runs SET as_of = as_of - 1")
    assert scene.deliver(scene.portal).news == [line.replace("10", "9")]


def test_digest_names_mentors_without_a_certificate_and_a_missing_run(scene: Scene) -> None:
    """It counts the acknowledged alerts, and does not list them."""
    scene.facts.insert("coordinators", organisation_id=scene.hlf, email="eva@example.org", locale="en")
    scene.mentor(member_no="M9", contact_id=None)
    scene.certified(member_no="M1")
    scene.run_sql("UPDATE mentors SET portal_visible = NULL WHERE member_no = 'M1'")
    scene.portal.default = REJECTED
    scene.night(scene.portal, channel=None)
    ((alert_id,),) = scene.rows("SELECT alert_id FROM alerts")
    acknowledge(scene.connection, alert_id, because="x", until=TODAY, today=TODAY)
    scene.run_sql(LATE)
    scene.deliver(scene.portal, channel=scene.channel)

    (page,) = scene.channel.sent

    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "Without a certificate (1)" in text
    assert "(M9)" in text
    assert "We have not checked the certificates since 10 March" in text
    assert "1 item is on hold until 11 March and is not listed here." in text
    assert "May still be hidden" not in text


# Held mentors are named, because a real revocation may be among wrong changes.


HOLD = """
    INSERT INTO still_due (mentor_id, what, reason, as_of)
    SELECT id, 'held', %s, current_date FROM mentors WHERE member_no = %s
"""


def test_alerts_and_digest_name_the_mentors_of_a_hold(scene: Scene, here: Certjob) -> None:
    """Revocations and departures come first. The digest has twenty. The next step has the command for one mentor."""
    for number in range(1000, 1060):
        scene.expired(member_no=f"M{number}")
        scene.run_sql(HOLD, {1058: "revoked", 1059: "left"}.get(number, "ended"), f"M{number}")
    eva = scene.facts.insert("coordinators", organisation_id=scene.hlf, email="eva@example.org", locale="en")
    scene.facts.insert("coordinator_digests", coordinator_id=eva, digest_on=TODAY)

    first, *lines = here("alerts").stdout.splitlines()
    found = json.loads(here("alerts", "--json").stdout)["held_mentors"]
    scene.deliver(None, channel=scene.channel)

    assert "hlf:held:changes, hlf, since " in first
    assert "`certjob resync MENTOR`" in first
    reasons = ("M1058", "a certificate was revoked"), ("M1059", "has left"), ("M1000", "no certificate is in force")
    named = [f"Held back: hlf:held:changes, {number}, Kari Nordmann: {reason}" for number, reason in reasons]
    assert (lines[:3], len(lines), lines[-1]) == (named, 60, named[-1].replace("M1000", "M1057"))
    assert [each["member_no"] for each in found] == [line.split(", ")[1] for line in lines]
    assert (found[0]["alert_id"], found[0]["reason"]) == ("hlf:held:changes", "revoked")
    (page,) = scene.channel.sent
    assert page.text.index("Kari Nordmann (M1058): a certificate was revoked") < page.text.index("(M1059): has left")
    assert page.text.count(": no valid certificate") == 18
    assert "and 40 more" in page.text


def test_a_held_change_has_the_old_and_the_new_last_day(facts: Facts, here: Certjob) -> None:
    """The number for --allow is the number of names, in the plan, in `alerts` and in the digest."""
    old, new = today() + timedelta(days=500), today() + timedelta(days=499)
    hlf = facts.organisation(thresholds=())
    facts.insert("coordinators", organisation_id=hlf, email="eva@example.org", locale="nb")
    for _ in range(25):
        facts.certified_mentor(hlf, old)
    here("run")
    facts.connection.execute("UPDATE certificates SET expires_on = %s", (new,))
    facts.connection.execute("UPDATE mentors SET left_at = now() WHERE member_no = 'M1025'")

    plan, held = here("run", "--dry-run"), here("run")

    words = f"would end earlier: last day {whole_date(old)} → {whole_date(new)}"
    assert (plan.stdout.count(words), plan.stdout.count("has left")) == (24, 1)
    assert "--allow hlf=25`" in plan.stderr
    assert "--allow hlf=25`" in held.stderr
    first, *names = here("alerts").stdout.splitlines()
    assert "--allow hlf=25`" in first
    assert (len(names), sum(line.endswith(words) for line in names)) == (25, 24)
    days = [write_date(day, locale="nb").replace("\N{NO-BREAK SPACE}", " ") for day in (old, new)]
    digest = here("preview", "--digest", "eva@example.org").stdout
    assert digest.count(f"sertifikatet går ut tidligere (siste dag {days[0]} → {days[1]})") == 19
    assert "og 5 til" in digest
