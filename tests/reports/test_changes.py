"""`certjob changes`: who was changed since a moment, by name, and why."""

import csv
import json
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from psycopg.types.json import Json

from certjob.reports.changes import COLUMNS, ListedChange, changes_page, find_beginning, read_changes
from tests.conftest import Certjob
from tests.support.command_line import flat, terminal, today
from tests.support.facts import TODAY
from tests.support.nights import CollectingChannel
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

OSLO = ZoneInfo("Europe/Oslo")
Row = tuple[str, str | None, str]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def changed(scene: Scene, *, since: datetime = LONG_AGO, **options: Any) -> list[ListedChange]:
    asked: dict[str, Any] = {"since": since, "today": TODAY, "zone": "Europe/Oslo"} | options
    return list(read_changes(scene.connection, **asked))


def told(scene: Scene, **options: Any) -> list[Row]:
    return [(each.what, each.member_no, each.why) for each in changed(scene, **options)]


def in_any_order(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the changes by kind, in the order of the kinds. Pushes end in any order."""
    return {what: sorted(group, key=str) for what, group in groupby(rows, key=itemgetter(0))}


def moment(scene: Scene) -> datetime:
    """Return the time of the database server."""
    ((now,),) = scene.rows("SELECT clock_timestamp()")
    assert isinstance(now, datetime)
    return now


def test_morning_after_tells_every_change_and_why(scene: Scene) -> None:
    """A night with an expiry, a renewal, a revocation, a reminder, a pause, a hand edit and a contact of no one."""
    channel, hlf = CollectingChannel(), scene.facts.organisation(thresholds=[30])
    people = {
        number: scene.facts.certified_mentor(hlf, last_day, member_no=number, full_name=number.title())
        for number, last_day in (
            ("ended", YESTERDAY + timedelta(days=1)),
            ("renewed", YESTERDAY + timedelta(days=1)),
            ("revoked", NEXT_YEAR),
            ("reminded", TODAY + timedelta(days=31)),
            ("ill", NEXT_YEAR),
            ("edited", NEXT_YEAR),
        )
    }
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal, channel=channel)
    before, night = moment(scene), TODAY + timedelta(days=1)
    scene.facts.certificate(people["renewed"], NEXT_YEAR, issued_on=TODAY)
    scene.run_sql("UPDATE certificates SET revoked_at = %s WHERE mentor_id = %s", night, people["revoked"])
    scene.facts.pause(people["ill"], reason="illness", actor="eva")
    scene.night(scene.portal, today=night, channel=channel)
    contacts = dict(scene.rows("SELECT member_no, dynamics_contact_id FROM mentors"))
    scene.portal.visible |= {contacts["reminded"]: True, contacts["edited"]: False}
    scene.portal.visible[contacts["ill"]] = True
    stranger = uuid4()
    scene.portal.visible[stranger] = True
    scene.reconcile()

    assert list(in_any_order(told(scene, since=before)).items()) == list(
        in_any_order(
            [
                ("exposed", "ended", "likeperson ended on 10 March"),
                ("exposed", "revoked", "likeperson was revoked on 11 March"),
                ("exposed", "ill", "pause by eva: illness"),
                ("corrected", "ill", "differed on the portal, hidden again: pause by eva: illness"),
                ("corrected", "edited", "differed on the portal, shown again"),
                ("unknown_contact", None, f"contact {stranger} is visible"),
                ("revoked", "revoked", "likeperson was revoked on 11 March"),
                ("expired", "ended", "likeperson ended on 10 March"),
                ("paused", "ill", "pause by eva: illness"),
                ("paused", "ended", "likeperson ended on 10 March"),
                ("paused", "revoked", "likeperson was revoked on 11 March"),
                ("hidden", "ended", "likeperson ended on 10 March"),
                ("hidden", "revoked", "likeperson was revoked on 11 March"),
                ("hidden", "ill", "pause by eva: illness"),
                ("moved", "renewed", "certified until 10 March 2027, formerly until 10 March"),
                ("renewed", "renewed", "likeperson is valid until 10 March 2027"),
                ("reminder_sent", "reminded", "30 days before the last day of likeperson, 10 April"),
            ]
        ).items()
    )


def test_exposures_have_their_end_and_their_cause(scene: Scene) -> None:
    """One that ended before the beginning is left out, one that lasted then is not."""
    began, since = datetime(2026, 3, 9, 23, tzinfo=UTC), datetime(2026, 3, 10, 3, tzinfo=UTC)
    for member_no, hidden_at in (
        ("before", since - timedelta(minutes=1)),
        ("failed", since + timedelta(hours=2)),
        ("held", None),
    ):
        mentor = scene.certified(NEXT_YEAR, member_no=member_no)
        scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", contact := uuid4(), mentor)
        scene.facts.insert("mentor_pauses", mentor_id=mentor, reason="ill", actor="eva", paused_at=began)
        pushed = {"mentor_id": mentor, "status": "delivered", "claim_contact_id": contact}
        scene.facts.insert("portal_sync_events", **pushed, visible=True, delivered_at=began - timedelta(days=1))
        if hidden_at is None:
            scene.facts.insert("held_mentors", mentor_id=mentor, kind="pauses", reason="revoked")
            continue
        hide = {"visible": False, "shown_until": date.min, "wanted_at": began, "delivered_at": hidden_at}
        scene.facts.insert("portal_sync_events", **pushed, **hide)
        failure = {"visible": False, "kind": "transient", "error": "", "failure_code": "portal_down"}
        tries = {"created_at": began, "last_failed_at": began + timedelta(hours=5)}
        scene.facts.insert("dynamics_sync_failures", mentor_id=mentor, **failure, **tries)

    found = [each for each in changed(scene, since=since) if each.what == "exposed"]

    assert [(each.member_no, each.at, each.ended_at, each.why) for each in found] == [
        (
            "failed",
            began,
            since + timedelta(hours=2),
            "pause by eva: ill; portal down since today 00:00, last try today 05:00",
        ),
        ("held", began, None, "pause by eva: ill; the change is held back"),
    ]


def test_pause_names_the_certificate_that_lapsed_last(scene: Scene) -> None:
    """Not an older revoked one, which has a later last day or whose kind is in force. A renewal does not change it."""
    hlf, yesterday = scene.facts.organisation(thresholds=[]), today() - timedelta(days=1)
    mentor = scene.facts.certified_mentor(hlf, yesterday, member_no="M1")
    long_ago = datetime(2024, 3, 1, tzinfo=UTC)
    for kind in ("kurs", "likeperson"):
        scene.facts.certificate(mentor, NEXT_YEAR, kind=kind, issued_on=date(2024, 2, 1), revoked_at=long_ago)
    scene.facts.certificate(mentor, NEXT_YEAR, kind="kurs", issued_on=date(2025, 2, 1))
    scene.night(scene.portal, today=today())
    scene.facts.certificate(mentor, today() + timedelta(days=300), issued_on=today())
    scene.night(scene.portal, today=today())

    words = f"likeperson ended on {yesterday.day} {yesterday:%B}"
    for what in ("paused", "hidden"):
        assert {why for kind, _, why in told(scene) if kind == what} == {words.replace(" 2026", "")}


def test_exposure_that_began_before_a_pause_is_not_explained_by_it(scene: Scene) -> None:
    """The certificate had ended before someone paused the mentor."""
    began = datetime.combine(today() - timedelta(days=14), datetime.min.time(), tzinfo=OSLO)
    mentor = scene.certified(began.date() - timedelta(days=1), member_no="M1")
    scene.facts.pause(mentor, reason="complaint", actor="eva")
    ((_, _, why),) = [row for row in told(scene, today=today()) if row[0] == "exposed"]

    assert why.startswith("likeperson ended on ")


def test_mail_about_a_former_last_day_was_sent_too(scene: Scene) -> None:
    """The reminder was queued again for the new day."""
    mentor, now = scene.certified(NEXT_YEAR, member_no="M1"), datetime.now(UTC)
    sent = [{"expires_on": "2026-04-09", "status": "sent", "sent_at": now.isoformat()}]
    about = {"mentor_id": mentor, "threshold_days": 30, "cert_id": uuid4(), "kind": "likeperson"}
    scene.facts.insert("cert_notification_log", **about, expires_on=NEXT_YEAR, history=Json(sent))

    assert ("reminder_sent", "M1", "30 days before the last day of likeperson, 9 April") in told(scene)


def test_end_of_a_pause_and_departures_have_their_reasons(scene: Scene) -> None:
    """A person has lifted one pause, certjob its own after a renewal, and someone has left."""
    hlf = scene.facts.organisation(thresholds=[])
    back, renewed, left = (scene.facts.certified_mentor(hlf, NEXT_YEAR, member_no=name) for name in ("b", "r", "l"))
    scene.run_sql("UPDATE certificates SET expires_on = %s WHERE mentor_id = %s", YESTERDAY, renewed)
    scene.facts.pause(back, reason="leave", actor="eva")
    scene.run_sql("UPDATE mentors SET portal_visible = NULL")
    scene.night(scene.portal)
    before = moment(scene)
    scene.run_sql("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'ola' WHERE mentor_id = %s", back)
    scene.facts.certificate(renewed, NEXT_YEAR, issued_on=TODAY)
    scene.run_sql("UPDATE mentors SET left_at = now() WHERE id = %s", left)
    scene.night(scene.portal)

    assert list(in_any_order(told(scene, since=before)).items()) == list(
        in_any_order(
            [
                ("exposed", "l", "has left"),
                ("hidden", "l", "has left"),
                ("pause_lifted", "b", "leave, lifted by ola"),
                ("pause_lifted", "r", "certified until 10 March 2027"),
                ("shown", "b", "certified until 10 March 2027"),
                ("shown", "r", "certified until 10 March 2027"),
                ("renewed", "r", "likeperson is valid until 10 March 2027"),
            ]
        ).items()
    )


def test_wrong_last_day_is_a_correction_of_its_own(scene: Scene) -> None:
    """The mentor was visible, so nothing was shown again."""
    mentor, run = scene.certified(member_no="M1"), uuid4()
    scene.night(scene.portal)
    corrected = Json({"corrected": {"last_day": [str(mentor)]}})
    about = {"command": "reconcile", "as_of": TODAY, "host": "h", "version": "1", "counts": corrected}
    scene.facts.insert("job_runs", id=run, **about)
    delivered = {"visible": True, "status": "delivered", "delivered_at": datetime.now(UTC), "run_id": run}
    scene.facts.insert("portal_sync_events", mentor_id=mentor, **delivered)

    assert ("corrected", "M1", "visible until a wrong day on the portal, certified until 10 March 2027") in told(scene)


def test_mentor_who_was_shown_and_then_revoked_is_no_longer_certified(scene: Scene) -> None:
    """The day of the show is not known any more."""
    mentor = scene.certified(member_no="M1")
    scene.facts.pause(mentor)
    scene.night(scene.portal)
    scene.run_sql("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'eva'")
    scene.night(scene.portal)
    scene.run_sql("UPDATE certificates SET revoked_at = now()")
    scene.night(scene.portal)

    assert ("shown", "M1", "no longer certified") in told(scene)


def test_changes_of_deleted_certificates_and_other_organisations_are_told_too(scene: Scene) -> None:
    """--organisation leaves out the contacts of no mentor, because they belong to no organisation."""
    for slug in ("hlf", "nhf"):
        scene.facts.certified_mentor(scene.facts.organisation(slug, portal=None, thresholds=[]), YESTERDAY)
    scene.night()
    scene.run_sql("DELETE FROM certificates")
    scene.facts.insert("portal_unknown_contacts", contact_id=UUID(int=7))
    ((nhf,),) = scene.rows("SELECT id FROM organisations WHERE slug = 'nhf'")

    assert told(scene, organisation_id=nhf) == [
        ("expired", "M1002", "a deleted certificate ended"),
        ("paused", "M1002", "no valid certificate"),
    ]
    assert [each.organisation for each in changed(scene)] == [None, "hlf", "nhf", "hlf", "nhf"]
    assert [(each.what, each.number) for each in changed(scene, most=1)] == [
        ("unknown_contact", 1),
        ("expired", 2),
        ("paused", 2),
    ]


def test_changes_begin_with_the_first_full_run_of_the_newest_date(scene: Scene) -> None:
    """cron starts three a night. A run of one organisation and a later date of a wrong clock do not count."""
    started = datetime(2026, 3, 10, 4, tzinfo=UTC)
    about = {"command": "run", "host": "h", "version": "1"}
    for hours, as_of, organisation in (
        (-24, YESTERDAY, None),
        (-2, TODAY, "hlf"),
        (0, TODAY, None),
        (1, TODAY, None),
        (2, TODAY + timedelta(days=3), None),
    ):
        at = started + timedelta(hours=hours)
        scene.facts.insert("job_runs", id=uuid4(), as_of=as_of, organisation=organisation, started_at=at, **about)

    def beginning(since: date | None) -> datetime:
        return find_beginning(scene.connection, since=since, today=TODAY, zone=OSLO)

    assert beginning(None) == started
    assert beginning(date(2026, 3, 1)) == datetime(2026, 3, 1, tzinfo=OSLO)
    scene.run_sql("DELETE FROM job_runs")
    assert beginning(None) == datetime(2026, 3, 10, tzinfo=OSLO)


def test_csv_json_and_lines_are_the_same_changes(here: Certjob, scene: Scene) -> None:
    """Without a terminal it is CSV, as for `list`."""
    scene.facts.certified_mentor(scene.facts.organisation(portal=None), today() - timedelta(days=1), full_name="=1+1")
    here("run")

    piped, as_csv = here("changes").stdout, here("changes", "--csv").stdout
    document = json.loads(here("changes", "--organisation", "hlf", "--json").stdout)

    header, *rows = csv.reader(piped.splitlines())
    assert (piped, tuple(header)) == (as_csv, COLUMNS)
    assert [row[header.index("what")] for row in rows] == [each["what"] for each in document["changes"]]
    assert [*document["changes"][0]] == [*COLUMNS]
    assert rows[0][header.index("full_name")] == "'=1+1"
    assert here("changes", "--since", (today() + timedelta(days=1)).isoformat()).stdout.count("\n") == 1


@pytest.mark.parametrize("width", [80, 120])
def test_page_groups_by_what_and_says_how_many_more(width: int) -> None:
    """A group has a heading with the number of all of its changes, and a column for several organisations."""
    at = datetime(2026, 3, 10, 4, 5, tzinfo=UTC)
    person: dict[str, Any] = dict.fromkeys(ListedChange.__slots__) | {"at": at, "full_name": "Kari Nordmann"}
    exposure: dict[str, Any] = {"what": "exposed", "organisation": "hlf", "member_no": "M4", "number": 2}
    ends = [at + timedelta(hours=2), None]
    changes = [ListedChange(**person | exposure | {"ended_at": end, "why": "pause by eva: complaint"}) for end in ends]
    changes += [
        ListedChange(
            **person
            | {"what": "expired", "organisation": slug, "member_no": f"M{n}", "why": "likeperson ended", "number": 60}
        )
        for n, slug in ((1, "hlf"), (2, "nhf"))
    ]
    shown_again = {"what": "shown", "organisation": "hlf", "member_no": "M3", "why": "certified", "number": 1}
    changes.append(ListedChange(**person | shown_again))
    output, shown = terminal(width)

    output.show(changes_page(iter(changes), since=at, today=TODAY, zone=OSLO), zone=OSLO)
    text = shown.getvalue()

    assert max(map(len, text.splitlines())) <= width
    assert flat(text).startswith("Changes since today 05:05 Wrongly visible (2) At Until Org No. Name Why")
    assert "2026-03-10 05:05 2026-03-10 07:05 hlf M4" in flat(text)
    assert "Expired (60) At Org No. Name Why" in flat(text)
    assert "2026-03-10 05:05 nhf M2 Kari Nordmann likeperson ended" in flat(text)
    assert "… and 58 more; --json lists all of them" in text
    assert "Shown (1) At Org No. Name Why" in flat(text)


def test_page_without_changes_says_so() -> None:
    output, shown = terminal(80)

    output.show(changes_page([], since=LONG_AGO, today=TODAY, zone=OSLO))

    assert "Changes since 1 January 2020 01:00" in shown.getvalue()
    assert "No mentor was changed." in shown.getvalue()
