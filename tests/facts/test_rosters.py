"""Real rosters that nobody here wrote: they load, bad rows are named, and everybody comes out as the rules say."""

from collections import Counter
from pathlib import Path

import pytest

from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Status
from certjob.facts import reading
from certjob.facts.loading import load
from certjob.facts.roster import LoadOptions
from tests.support.facts import TODAY, Facts
from tests.support.loading import report
from tests.support.nights import night

FOLDER = Path(__file__).parents[3] / "shared" / "rosters"
START, END, EXPIRES = "LICENSE TERM START DATE", "LICENSE TERM EXPIRATION DATE", "Licence Expires"
CHICAGO = {"member_no": "ACCOUNT NUMBER", "kind": "LICENSE DESCRIPTION", "issued_on": START, "expires_on": END}
OXFORD = {"member_no": "property_id", "issued_on": "Licence Commenced", "expires_on": EXPIRES}
TAIWAN = {"member_no": "permit_no", "full_name": "holder", "expires_on": "valid_until", "revoked_on": "cancelled_on"}


@pytest.mark.parametrize(
    ("file", "columns", "date_format", "rows_loaded_repeated_mentors", "statuses", "rejected"),
    [
        (
            *("chicago_business_licences.csv", CHICAGO | {"revoked_on": "LICENSE STATUS CHANGE DATE"}, "%m/%d/%Y"),
            (561, 557, 2, 141),
            {Status.RENEWED: 356, Status.EXPIRED: 159, Status.REVOKED: 42},
            [(line, START, "empty") for line in (304, 495)],
        ),
        (
            *("oxford_hmo_licences.csv", OXFORD, "%d/%m/%Y"),
            (3_227, 3_224, 0, 3_215),
            {Status.RENEWED: 6, Status.EXPIRED: 3_218},
            [(line, EXPIRES, "ends before it begins") for line in (289, 1036, 1727)],
        ),
        (
            *("taiwan_hearing_aid_permits.csv", TAIWAN, "%Y/%m/%d"),
            (3_386, 317, 3_069, 317),
            {Status.REVOKED: 178, Status.VALID: 86, Status.EXPIRED: 53},
            [],
        ),
    ],
    ids=["chicago", "oxford", "taiwan"],
)
def test_a_real_roster_loads_and_everybody_comes_out_as_the_rules_say(
    connection: Connection,
    facts: Facts,
    file: str,
    columns: dict[str, str],
    date_format: str,
    rows_loaded_repeated_mentors: tuple[int, int, int, int],
    statuses: dict[Status, int],
    rejected: list[tuple[int, str, str]],
) -> None:
    """By statuses that a program of its own has counted. Loaded again, nothing changes; and a night runs on it."""
    if not (FOLDER / file).is_file():
        pytest.skip(f"the real rosters are not here: no {FOLDER / file}")
    facts.organisation("real", portal=None)
    constants = {"organisation": "real"} | ({"kind": "permit"} if columns is TAIWAN else {})
    options = LoadOptions(columns=columns, constants=constants, date_formats=(date_format,))

    first, again = (load(connection, FOLDER / file, options=options) for _ in range(2))

    assert [(problem.line, problem.column, problem.reason) for problem in first.problems] == rejected
    rows, loaded, repeated, added = rows_loaded_repeated_mentors
    counts = {"rows": rows, "loaded": loaded, "repeated": repeated, "rejected": len(rejected)}
    assert first == report(**counts, mentors_added=added, certificates_added=loaded)
    assert again == report(**counts, unchanged=loaded)
    ids = [row[0] for row in connection.execute("SELECT id FROM mentors ORDER BY id")]
    mentors = reading.read(connection, ids, lock=False).mentors
    found = Counter(status for mentor in mentors for status in rules.statuses(mentor, TODAY).values())
    found[Status.VALID] += found.pop(Status.EXPIRING, 0)
    assert +found == statuses
    done = night(connection, deliver=False, allow_mass_change=True).to_document()
    assert (done["mentors"]["reviewed"], done["problems"], done["held"]) == (len(mentors), [], [])
