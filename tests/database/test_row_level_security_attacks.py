"""Attacks by a coordinator who may write SQL of their own, and moments in which the facts change under a request."""

import random
import threading
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.domain import rules
from certjob.facts import reading as facts
from tests.conftest import Certjob
from tests.support.app_rows import Organisation
from tests.support.command_line import today
from tests.support.facts import Facts
from tests.support.supabase import logged_in
from tests.support.waiting import until, waits_for_a_lock

REQUEST = "SELECT visible FROM public.request_portal_resync(mentor_id := %s)"


@pytest.fixture
def mentor(owner: database.Connection, ours: Organisation) -> UUID:
    """A mentor of ours without any event yet."""
    return Facts(owner).mentor(ours.id)


def queued(owner: database.Connection, mentor_id: UUID) -> list[tuple[bool]]:
    """The values that are on their way to the portal."""
    rows = owner.execute("SELECT visible FROM portal_sync_events WHERE mentor_id = %s", (mentor_id,))
    return rows.fetchall()


def test_temporary_types_of_usual_names_run_nothing_as_the_owner(
    api: database.Connection, owner: database.Connection, ours: Organisation
) -> None:
    """pg_temp is looked into first for types unless it is named, and a domain's check is code of the caller's."""
    owner.execute("CREATE SCHEMA evil")
    owner.execute("GRANT ALL ON SCHEMA evil TO authenticated")
    ran_as: list[str] = []
    api.add_notice_handler(lambda notice: ran_as.append(notice.message_primary or ""))

    with logged_in(api, ours.coordinator):
        api.execute(
            "CREATE FUNCTION evil.tell(text) RETURNS boolean LANGUAGE plpgsql"
            " AS $$ BEGIN RAISE NOTICE '%', current_user; RETURN true; END $$"
        )
        for name in ("uuid", "text", "date", "bool", "int4", "int8", "timestamptz"):
            api.execute(
                f"CREATE DOMAIN pg_temp.{name} AS pg_catalog.{name} CHECK (evil.tell(VALUE::pg_catalog.text))".encode()
            )
        api.execute(
            "CREATE TYPE pg_temp.record AS (id pg_temp.uuid, left_at pg_temp.timestamptz, portal_visible pg_temp.bool,"
            " review_on pg_temp.date, portal pg_temp.text, organisation pg_temp.text, optional_kinds pg_catalog.text[])"
        )
        answer = api.execute(REQUEST, (ours.mentor,)).fetchall()
        api.execute("UPDATE mentors SET email = 'new@example.org', dynamics_contact_id = gen_random_uuid()")
        api.execute("UPDATE certificates SET revoked_at = now()")
        api.execute(
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on)"
            " VALUES (%s, 'x', '2026-03-01', '2028-03-01')",
            (ours.mentor,),
        )
        api.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = (SELECT auth.uid())::pg_catalog.text")

    assert answer == [(False,)]
    assert set(ran_as) <= {"authenticated"}, "code of the caller's ran as somebody else"


@pytest.mark.parametrize("zone", ["UTC", "Etc/GMT+12", "Far+167"])
def test_the_callers_time_zone_does_not_make_an_ended_certificate_hold(
    zone: str, api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID
) -> None:
    """PostgREST lets a request choose one, and PostgreSQL knows some that are a week away."""
    Facts(owner).certificate(mentor, today() - timedelta(days=2))

    api.execute("SELECT set_config('timezone', %s, false)", (zone,))

    with pytest.raises(psycopg.errors.RaiseException, match="waits for a review"), logged_in(api, ours.coordinator):
        api.execute(REQUEST, (mentor,))

    assert queued(owner, mentor) == []


def test_whoever_holds_nothing_but_what_was_revoked_before_it_began_is_not_shown(
    api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID
) -> None:
    """As the rules have it: what was revoked counts, whenever it would have begun."""
    Facts(owner).certificate(
        mentor, today() + timedelta(days=900), issued_on=today() + timedelta(days=30), revoked_at=datetime.now(UTC)
    )

    with pytest.raises(psycopg.errors.RaiseException, match="waits for a review"), logged_in(api, ours.coordinator):
        api.execute(REQUEST, (mentor,))

    assert queued(owner, mentor) == []


def test_an_organisation_whose_rules_change_meanwhile_is_read_after_the_wait(
    api: database.Connection, owner: database.Connection, ours: Organisation, mentor: UUID, supabase_url: str
) -> None:
    """The request waits for the mentor whom that change holds: what counted as optional before it does not any more."""
    facts = Facts(owner)
    owner.execute("UPDATE organisations SET optional_kinds = '{first_aid}'")
    facts.certificate(mentor, today() + timedelta(days=300))
    facts.certificate(mentor, today() - timedelta(days=3), kind="first_aid")
    ended: list[object] = []

    def request() -> None:
        try:
            with logged_in(api, ours.coordinator):
                ended.append(api.execute(REQUEST, (mentor,)).fetchall())
        except psycopg.Error as error:
            ended.append(str(error))

    thread = threading.Thread(target=request, daemon=True)
    with database.connect(supabase_url) as observer, owner.transaction():
        owner.execute("UPDATE organisations SET optional_kinds = '{}'")
        thread.start()
        until(lambda: waits_for_a_lock(observer, api), seconds=60)
    thread.join(60)

    assert len(ended) == 1
    assert "waits for a review" in str(ended[0])
    assert queued(owner, mentor) == []


def test_a_request_shows_nobody_whom_the_rules_would_hide_wherever_the_programme_lives(
    api: database.Connection, owner: database.Connection, ours: Organisation
) -> None:
    """400 mentors with whatever certificates and pauses: asked today, decided on the day of every time zone."""
    made, dice, began = Facts(owner), random.Random(5), datetime.now(UTC).date()
    owner.execute("UPDATE organisations SET optional_kinds = '{optional}'")
    mentors = [made.mentor(ours.id) for _ in range(400)]
    for mentor_id in mentors:
        for kind in dice.sample(("likeperson", "first_aid", "optional"), dice.randint(0, 3)):
            for begins_in_days in dice.sample((-60, -2, -1, 0, 1, 2, 3), dice.randint(1, 2)):
                issued_on = began + timedelta(days=begins_in_days)
                made.certificate(
                    mentor_id,
                    issued_on + timedelta(days=dice.choice((0, 1, 2, 59, 60, 61, 90))),
                    kind=kind,
                    issued_on=issued_on,
                    revoked_at=dice.choice((None, None, None, datetime.now(UTC))),
                )
        if dice.random() < 0.1:
            made.pause(mentor_id)
        owner.execute("UPDATE mentors SET portal_visible = %s WHERE id = %s", (dice.choice((None, True)), mentor_id))
    shown, refused = [], 0
    for mentor_id in mentors:
        try:
            with logged_in(api, ours.coordinator):
                if api.execute(REQUEST, (mentor_id,)).fetchall() == [(True,)]:
                    shown.append(mentor_id)
        except psycopg.errors.RaiseException:
            refused += 1

    zones = [timedelta(days=offset) for offset in (-1, 0, 1)]
    days = {began + offset for offset in zones} & {datetime.now(UTC).date() + offset for offset in zones}
    wrong = [
        (mentor, day)
        for mentor in facts.read(owner, shown, lock=False).mentors
        for day in days
        if not rules.decide(mentor, day).visible
    ]

    assert wrong == []
    assert len(shown) > 50
    assert refused > 50


@pytest.mark.parametrize("column", ["full_name", "email"])
def test_a_text_that_would_fill_every_organisations_night_is_refused(
    column: str, api: database.Connection, ours: Organisation
) -> None:
    """One night works for all: what one coordinator enters must not take its memory."""
    change = f"UPDATE mentors SET {column} = repeat('x', %s)".encode()
    with logged_in(api, ours.coordinator):
        taken = api.execute(change, (1000,)).rowcount

    with pytest.raises(psycopg.errors.StringDataRightTruncation), logged_in(api, ours.coordinator):
        api.execute(change, (1001,))

    assert taken == 1


@pytest.mark.parametrize("time", ["infinity", "-infinity", "12000-01-01", "0044-03-15 BC"])
def test_times_that_no_program_can_hold_stop_neither_a_night_nor_a_story(
    time: str,
    api: database.Connection,
    owner: database.Connection,
    ours: Organisation,
    certjob: Certjob,
    supabase_url: str,
) -> None:
    """PostgreSQL takes them from the app: a pause until for ever, a mentor who never was."""
    me = str(ours.coordinator)
    with logged_in(api, ours.coordinator):
        api.execute("UPDATE mentor_pauses SET lifted_at = %s, lifted_by = %s", (time, me))
        api.execute("UPDATE mentors SET left_at = %s", (time,))
        api.execute("UPDATE certificates SET revoked_at = %s", (time,))
        api.execute(
            "INSERT INTO mentor_pauses (mentor_id, reason, actor, paused_at) VALUES (%s, 'leave', %s, %s)",
            (ours.mentor, me, time),
        )

    url = {"CERTJOB_DATABASE_URL": psycopg.conninfo.make_conninfo(supabase_url, options="-c role=certjob_worker")}
    story = certjob("explain", "hlf-1", **url)
    night = certjob("run", CERTJOB_NOTIFY_URL="maildir:mail", CERTJOB_MAIL_FROM="post@hlf.example", **url)

    assert (story.returncode, story.stderr) == (0, "")
    assert "Has left" in story.stdout
    assert night.returncode == 3, night  # the portal is not set up here
    assert owner.execute("SELECT status FROM certificates").fetchall() == [("revoked",)]
