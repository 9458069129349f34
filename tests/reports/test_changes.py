"""`certjob changes`: the changes of each person since a moment."""

import csv
import json
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from psycopg.types.json import Json

from certjob.reports.changes import COLUMNS, Change, ChangedPerson, changes_page, find_beginning, read_changes
from certjob.reports.exposure import Exposure, read_exposure
from tests.conftest import Certjob
from tests.support.command_line import flat, terminal, today
from tests.support.facts import TODAY
from tests.support.nights import CollectingChannel
from tests.support.scene import NEXT_YEAR, YESTERDAY, Scene

OSLO = ZoneInfo("Europe/Oslo")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NO_EXPOSURE = Exposure(mentors=0, open=0, seconds=0, longest_seconds=None, longest=None, cause=None)


def changed(scene: Scene, *, since: datetime = LONG_AGO, **options: Any) -> list[ChangedPerson]:
    asked: dict[str, Any] = {"since": since, "today": TODAY, "zone": "Europe/Oslo"} | options
    return list(read_changes(scene.connection, **asked))


def told(scene: Scene, **options: Any) -> dict[str | None, list[str]]:
    """Return the changes by member number."""
    return {each.member_no: [change.text for change in each.changes] for each in changed(scene, **options)}


def moment(scene: Scene) -> datetime:
    """Return the time of the database server."""
    ((now,),) = scene.rows("SELECT clock_timestamp()")
    assert isinstance(now, datetime)
    return now


def test_morning_after_tells_every_change_of_each_person(scene: Scene) -> None:
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

    found = told(scene, since=before)

    exposed = [texts.pop(0) for number, texts in found.items() if number in ("ended", "revoked", "ill")]
    assert all(text.startswith("wrongly visible until ") for text in exposed)
    assert found == {
        "ended": ["likeperson ended on 10 March", "paused", "hidden"],
        "revoked": ["likeperson revoked", "paused", "hidden"],
        "ill": ["paused by eva: illness", "hidden", "hidden by reconcile"],
        "renewed": ["likeperson renewed", "shown until 10 March 2027"],
        "reminded": ["reminder 30 days before the last day (likeperson, 10 April) sent"],
        "edited": ["shown until 10 March 2027 by reconcile"],
        None: [f"contact {stranger} is visible and belongs to no mentor"],
    }


def test_exposures_have_their_end(scene: Scene) -> None:
    """One that ended before the beginning is left out, one that lasted then is not."""
    began, since = datetime(2026, 3, 9, 23, tzinfo=UTC), datetime(2026, 3, 10, 3, tzinfo=UTC)
    for member_no, hidden_at in (
        ("before", since - timedelta(minutes=1)),
        ("ended", since + timedelta(hours=2)),
        ("lasts", None),
    ):
        mentor = scene.certified(NEXT_YEAR, member_no=member_no)
        scene.run_sql("UPDATE mentors SET dynamics_contact_id = %s WHERE id = %s", contact := uuid4(), mentor)
        scene.facts.insert("mentor_pauses", mentor_id=mentor, reason="ill", actor="eva", paused_at=began)
        pushed = {"mentor_id": mentor, "status": "delivered", "claim_contact_id": contact}
        scene.facts.insert("portal_sync_events", **pushed, visible=True, delivered_at=began - timedelta(days=1))
        if hidden_at is not None:
            hide = {"visible": False, "shown_until": date.min, "wanted_at": began, "delivered_at": hidden_at}
            scene.facts.insert("portal_sync_events", **pushed, **hide)

    assert told(scene, since=since) == {
        "ended": ["wrongly visible until today 06:00", "hidden"],
        "lasts": ["wrongly visible until now"],
    }
    found = read_exposure(scene.connection, since=since, today=TODAY, zone="Europe/Oslo")
    lasts = int((datetime.now(UTC) - since).total_seconds())
    assert (found.mentors, found.open, found.longest) == (2, 1, "hlf lasts")
    assert lasts + 2 * 3600 - 60 < found.seconds <= lasts + 2 * 3600 + 60
    other = read_exposure(scene.connection, since=since, today=TODAY, zone="Europe/Oslo", organisation_id=uuid4())
    assert other == NO_EXPOSURE


def test_mail_about_a_former_last_day_was_sent_too(scene: Scene) -> None:
    """The reminder was queued again for the new day."""
    mentor, now = scene.certified(NEXT_YEAR, member_no="M1"), datetime.now(UTC)
    sent = [{"expires_on": "2026-04-09", "status": "sent", "sent_at": now.isoformat()}]
    about = {"mentor_id": mentor, "threshold_days": 30, "cert_id": uuid4(), "kind": "likeperson"}
    scene.facts.insert("cert_notification_log", **about, expires_on=NEXT_YEAR, history=Json(sent))

    assert told(scene)["M1"] == ["reminder 30 days before the last day (likeperson, 9 April) sent"]


def test_end_of_a_pause_names_the_person_who_lifted_it(scene: Scene) -> None:
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

    found = told(scene, since=before)
    assert found.pop("l")[1:] == ["hidden"]
    assert found == {
        "b": ["pause lifted by ola: leave", "shown until 10 March 2027"],
        "r": ["likeperson renewed", "reinstated", "shown until 10 March 2027"],
    }


def test_changes_of_deleted_certificates_and_other_organisations_are_told_too(scene: Scene) -> None:
    """--organisation leaves out the contacts of no mentor, because they belong to no organisation."""
    for slug in ("hlf", "nhf"):
        scene.facts.certified_mentor(scene.facts.organisation(slug, portal=None, thresholds=[]), YESTERDAY)
    scene.night()
    scene.run_sql("DELETE FROM certificates")
    scene.facts.insert("portal_unknown_contacts", contact_id=UUID(int=7))
    ((nhf,),) = scene.rows("SELECT id FROM organisations WHERE slug = 'nhf'")

    assert told(scene, organisation_id=nhf) == {"M1002": ["a deleted certificate ended", "paused"]}
    assert [each.organisation for each in changed(scene)] == ["hlf", "nhf", None]


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

    header, row = csv.reader(piped.splitlines())
    (person,) = document["people"]
    assert (piped, tuple(header)) == (as_csv, COLUMNS)
    assert row[header.index("changes")] == "; ".join(each["text"] for each in person["changes"])
    assert row[header.index("full_name")] == "'=1+1"
    assert here("changes", "--since", (today() + timedelta(days=1)).isoformat()).stdout.count("\n") == 1


@pytest.mark.parametrize("width", [80, 120])
def test_page_has_a_line_for_each_person_with_the_days(width: int) -> None:
    """A change of another day than the one before has its day, today's changes none. A page without changes says so."""
    at = datetime(2026, 3, 10, 4, 5, tzinfo=UTC)
    earlier = [Change(at=at - timedelta(days=2), what="paused", text=text) for text in ("likeperson ended", "paused")]
    later = Change(at=at, what="hidden", text="hidden")
    person: dict[str, Any] = {"organisation": "hlf", "full_name": "Kari Nordmann", "mentor_id": UUID(int=1)}
    people = [
        ChangedPerson(**person, member_no="M1", changes=[*earlier, later]),
        ChangedPerson(**person, member_no="M2", changes=[later]),
        ChangedPerson(**dict.fromkeys((*person, "member_no")), changes=[later]),
    ]
    output, shown = terminal(width)

    output.show(changes_page(people, since=at, today=TODAY, zone=OSLO, exposure=NO_EXPOSURE, csv=False), zone=OSLO)
    text = shown.getvalue()

    assert max(map(len, text.splitlines())) <= width
    assert flat(text) == (
        "Changes since today 05:05 Kari Nordmann (hlf M1): 8 March: likeperson ended; paused; today: hidden"
        " Kari Nordmann (hlf M2): hidden hidden exposure: none"
    )
    output, shown = terminal(width)
    output.show(changes_page([], since=LONG_AGO, today=TODAY, zone=OSLO, exposure=NO_EXPOSURE, csv=False))
    nothing = "Changes since 1 January 2020 01:00 No mentor was changed. exposure: none"
    assert flat(shown.getvalue()) == nothing
