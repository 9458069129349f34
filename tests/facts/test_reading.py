"""Read mentors for the rules, and find mentors by name."""

from datetime import UTC, date, datetime
from typing import Any
from uuid import uuid4

import pytest

from certjob.database import Connection
from certjob.domain.models import Certificate, Mentor, OpenPause, Organisation, Status
from certjob.errors import ConfigurationError, UnknownMentorError
from certjob.facts import reading
from certjob.facts.lookup import find_mentor
from tests.support.facts import TODAY, Facts


def test_mentor_is_read_with_all_facts_for_a_decision(connection: Connection, facts: Facts) -> None:
    """Lifted pauses and unknown ids are left out."""
    lhl = facts.organisation("lhl", portal=None, thresholds=(30, -1), optional_kinds=["first_aid"])
    now = datetime.now(UTC)
    left = facts.mentor(lhl, member_no="M2", left_at=now)
    revoked, pause = facts.certificate(left, TODAY, revoked_at=now), facts.pause(left, reason="leave")
    facts.pause(left)
    connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE reason = 'illness'")
    connection.execute(
        "UPDATE mentors SET portal_visible = false, certified_until = '2026-05-01', dynamics_contact_id = NULL"
    )
    connection.execute("UPDATE mentors SET review_on = '2026-05-02'")

    rules: dict[str, Any] = {"reminder_thresholds": (30, -1), "optional_kinds": frozenset({"first_aid"})}
    dates: dict[str, Any] = {"issued_on": date(2024, 1, 1), "expires_on": TODAY}
    expected = Mentor(
        id=left,
        member_no="M2",
        left=True,
        portal_visible=None,  # the contact was removed
        has_contact=False,
        certified_until=date(2026, 5, 1),
        due_by_calendar=True,
        organisation=Organisation(id=lhl, slug="lhl", has_portal=False, **rules),
        certificates=(
            Certificate(id=revoked, kind="likeperson", **dates, revoked=True, status=Status.RECORDED, unseen=True),
        ),
        open_pauses=(OpenPause(id=pause, reason="leave"),),
    )
    for lock in (False, True):
        with connection.transaction():
            read = reading.read(connection, [left, lhl], lock=lock)
        assert (read.mentors, read.broken) == ([expected], {})


def test_mentor_is_found_by_number_address_or_id(connection: Connection, facts: Facts) -> None:
    """In either case. The ID of a contact is not that of a mentor."""
    contact = uuid4()
    mentor = facts.mentor(facts.organisation(), member_no="M1042", email="m1042@example.org", contact_id=contact)

    for typed in ("M1042", "M1042@Example.ORG", str(mentor).upper()):
        assert find_mentor(connection, typed, organisation=None) == mentor
    with pytest.raises(UnknownMentorError, match=str(contact)):
        find_mentor(connection, str(contact), organisation=None)
    with pytest.raises(ConfigurationError, match=r"no organisation 'hfl'; see `certjob organisation show`"):
        find_mentor(connection, "M1", organisation="hfl")


def test_mentor_is_found_by_a_part_of_the_name(connection: Connection, facts: Facts) -> None:
    """In any case and with any spaces. A member number comes first."""
    hlf = facts.organisation(portal=None)
    numbered = facts.mentor(hlf, member_no="stb", full_name="Ase Berg")
    named = facts.mentor(hlf, full_name="Åse Østby 100%")

    for typed in ("ÅSE", "  åse   østby ", "stby", "100%"):
        assert find_mentor(connection, typed, organisation=None) == named, typed
    assert find_mentor(connection, "stb", organisation=None) == numbered
    for typed in ("k", "", "_a", "%"):  # too short, or a wildcard of LIKE
        with pytest.raises(UnknownMentorError, match="no mentor"):
            find_mentor(connection, typed, organisation=None)


def test_ambiguous_name_has_its_candidates(connection: Connection, facts: Facts) -> None:
    """They are listed by number, without names."""
    for slug in ("hlf", "nhf"):
        facts.mentor(facts.organisation(slug, portal=None), member_no="M1", full_name="Kari Nordmann")

    with pytest.raises(
        UnknownMentorError, match=r"^'kari' matches 2 mentors: M1 of hlf, M1 of nhf; add --organisation"
    ):
        find_mentor(connection, "kari", organisation=None)
    assert find_mentor(connection, "kari", organisation="nhf")
