"""Whom a person means who types a name."""

import pytest

from certjob.database import Connection
from certjob.errors import ConfigurationError, UnknownMentorError
from certjob.facts.lookup import find_mentor
from tests.support.facts import Facts


def test_a_part_of_a_name_is_enough(connection: Connection, facts: Facts) -> None:
    """In upper or lower case, whatever letters the database's collation knows; a member number comes before a name."""
    organisation = facts.organisation(portal=None)
    kari = facts.mentor(organisation, member_no="stb", full_name="Ase Berg")
    asked = facts.mentor(organisation, member_no="M2", full_name="Åse Østby 100%")

    for typed in ("åse", "ÅSE", "Åse Ø", "  åse   østby ", "stby", "100%"):
        assert find_mentor(connection, typed, organisation=None) == asked, typed
    assert find_mentor(connection, "stb", organisation=None) == kari


def test_several_are_named_by_number_and_nobody_by_name(connection: Connection, facts: Facts) -> None:
    """The line may end in a log."""
    for slug in ("hlf", "nhf"):
        facts.mentor(facts.organisation(slug, portal=None), member_no="M1", full_name="Kari Nordmann")

    with pytest.raises(UnknownMentorError, match=r"'kari' fits 2 mentors: M1 of hlf, M1 of nhf; ") as caught:
        find_mentor(connection, "kari", organisation=None)

    assert "Nordmann" not in str(caught.value)
    assert find_mentor(connection, "kari", organisation="nhf")
    for typed in ("k", "", " ", "_a", "%", "Kåri"):  # one letter is not enough, and no sign is a wildcard
        with pytest.raises(UnknownMentorError, match="no mentor"):
            find_mentor(connection, typed, organisation=None)


def test_an_organisation_that_is_mistyped_is_what_is_named(connection: Connection, facts: Facts) -> None:
    """The mentor may well be there."""
    facts.mentor(facts.organisation("hlf", portal=None), member_no="M1")

    with pytest.raises(ConfigurationError, match=r"no organisation 'hfl'; see `certjob organisation list`"):
        find_mentor(connection, "M1", organisation="hfl")
