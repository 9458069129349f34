"""Real rosters that nobody here wrote: they load, their bad rows are named, and a night runs on them."""

import json
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import PauseChange, Status
from certjob.facts import reading
from certjob.facts.loading import LoadReport, load
from certjob.facts.roster import LoadOptions, Problem
from tests.support.command_line import run_in_process
from tests.support.facts import TODAY, Facts

FOLDER = Path(__file__).parents[3] / "shared" / "rosters"
START, END, EXPIRES = "LICENSE TERM START DATE", "LICENSE TERM EXPIRATION DATE", "Licence Expires"


class Roster(NamedTuple):
    """One of the files, with what it takes to load it and what is in it."""

    file: str
    columns: dict[str, str]
    constants: dict[str, str]
    date_format: str
    rows_loaded_repeated_mentors: tuple[int, int, int, int]
    statuses: dict[Status, int]
    """On TODAY, counted by a program of its own; *in force* are both valid and expiring ones, under ``valid``."""
    rejected: tuple[Problem, ...] = ()


ENDS_BEFORE = (
    (289, "2018-01-05 to 2018-01-04"),
    (1036, "2018-12-18 to 2018-12-17"),
    (1727, "3017-03-02 to 2021-01-24"),
)
ROSTERS = (
    Roster(
        "chicago_business_licences.csv",
        {"member_no": "ACCOUNT NUMBER", "kind": "LICENSE DESCRIPTION", "issued_on": START, "expires_on": END}
        | {"revoked_on": "LICENSE STATUS CHANGE DATE"},
        {},
        "%m/%d/%Y",
        (561, 557, 2, 141),
        {Status.RENEWED: 356, Status.EXPIRED: 159, Status.REVOKED: 42},
        tuple(Problem(line=line, column=START, reason="empty") for line in (304, 495)),
    ),
    Roster(
        "oxford_hmo_licences.csv",
        {"member_no": "property_id", "issued_on": "Licence Commenced", "expires_on": EXPIRES},
        {},
        "%d/%m/%Y",
        (3_227, 3_224, 0, 3_215),
        {Status.RENEWED: 6, Status.EXPIRED: 3_218},
        tuple(
            Problem(line=line, column=EXPIRES, reason="ends before it begins", value=value)
            for line, value in ENDS_BEFORE
        ),
    ),
    Roster(
        "taiwan_hearing_aid_permits.csv",
        {"member_no": "permit_no", "full_name": "holder", "expires_on": "valid_until", "revoked_on": "cancelled_on"},
        {"kind": "permit"},
        "%Y/%m/%d",
        (3_386, 317, 3_069, 317),
        {Status.REVOKED: 178, Status.VALID: 86, Status.EXPIRED: 53},
    ),
)


@pytest.mark.parametrize("roster", ROSTERS, ids=lambda roster: str(roster.file))
def test_a_real_roster_loads_its_renewals_are_renewals_and_a_night_runs_on_it(
    connection: Connection, facts: Facts, worker_url: str, tmp_path: Path, roster: Roster
) -> None:
    """Bad rows are named by line, column and reason. Everybody comes out as the rules say; the next night is quiet."""
    path = FOLDER / roster.file
    if not path.is_file():
        pytest.skip(f"the real rosters are not here: no {path}")
    facts.organisation("real", portal=None)
    constants = roster.constants | {"organisation": "real"}
    options = LoadOptions(columns=roster.columns, constants=constants, date_formats=(roster.date_format,))

    report, again = (load(connection, path, options=options) for _ in range(2))

    assert tuple(report.problems) == roster.rejected
    rows, loaded, repeated, added = roster.rows_loaded_repeated_mentors
    counts = {"rows": rows, "loaded": loaded, "repeated": repeated, "rejected": len(roster.rejected)}
    counts |= {"mentors_added": added, "mentors_changed": 0, "certificates_added": loaded, "certificates_changed": 0}
    assert report == LoadReport(**counts, unchanged=0)  # type: ignore[arg-type]
    assert (again.unchanged, again.mentors_changed) == (loaded, 0)

    ids = [row[0] for row in connection.execute("SELECT id FROM mentors ORDER BY id")]
    mentors = reading.read(connection, ids, lock=False).mentors
    statuses = Counter(status for mentor in mentors for status in rules.statuses(mentor, TODAY).values())
    statuses[Status.VALID] += statuses.pop(Status.EXPIRING, 0)
    assert +statuses == roster.statuses

    def night() -> Any:
        environment = {"CERTJOB_DATABASE_URL": worker_url}
        ended = run_in_process("run", "--allow-mass-change", "--json", environment=environment, folder=tmp_path)
        assert ended.returncode in (0, 3), ended.stderr
        return json.loads(ended.stdout)

    document, second = night(), night()
    decisions = [rules.decide(mentor, date.fromisoformat(document["today"])) for mentor in mentors]
    assert document["mentors"]["reviewed"] == len(mentors)
    assert document["mentors"]["paused"] == sum(decision.pause is PauseChange.OPEN for decision in decisions)
    changes = Counter(change.to_status for decision in decisions for change in decision.transitions)
    assert {status: number for status, number in document["certificates"].items() if number} == changes
    assert (document["mentors"]["skipped"], document["problems"], document["held"]) == (0, [], [])
    assert second["today"] != document["today"] or second["mentors"]["reviewed"] == 0
