"""Whom a typed name means."""

import pytest

from certjob.database import Connection
from certjob.errors import ConfigurationError, UnknownMentorError
from certjob.facts.lookup import find_mentor
from tests.support.facts import Facts


def test_a_part_of_a_name_is_enough(connection: Connection, facts: Facts) -> None:
    """In upper or lower case, whatever letters the database's collation knows; a member number comes before a name.

    Several are named by number, since the line may end in a log; a mistyped organisation is what is named.
    """
    hlf, nhf = facts.organisation(portal=None), facts.organisation("nhf", portal=None)
    numbered = facts.mentor(hlf, member_no="stb", full_name="Ase Berg")
    asked = facts.mentor(hlf, member_no="M2", full_name="Åse Østby 100%")
    for organisation in (hlf, nhf):
        facts.mentor(organisation, member_no="M1", full_name="Kari Nordmann")

    for typed in ("åse", "ÅSE", "Åse Ø", "  åse   østby ", "stby", "100%"):
        assert find_mentor(connection, typed, organisation=None) == asked, typed
    assert find_mentor(connection, "stb", organisation=None) == numbered
    assert find_mentor(connection, "kari", organisation="nhf")
    with pytest.raises(UnknownMentorError, match=r"^'kari' fits 2 mentors: M1 of hlf, M1 of nhf; add --organisation"):
        find_mentor(connection, "kari", organisation=None)
    facts.mentor(nhf, member_no="M3", full_name="Kari Berg")
    with pytest.raises(UnknownMentorError, match=r"M1 of nhf, M3 of nhf; give the member number"):
        find_mentor(connection, "kari", organisation="nhf")
    for typed in ("k", "", " ", "_a", "%", "Kåri"):  # one letter is not enough, and no sign is a wildcard
        with pytest.raises(UnknownMentorError, match="no mentor"):
            find_mentor(connection, typed, organisation=None)
    with pytest.raises(ConfigurationError, match=r"no organisation 'hfl'; see `certjob organisation list`"):
        find_mentor(connection, "M1", organisation="hfl")
