"""Real rosters that nobody here wrote: they load, their bad rows are named, and a night runs on them."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import PauseChange, Status
from certjob.facts import reading
from certjob.facts.loading import LoadReport, load
from certjob.facts.roster import LoadOptions, Problem
from tests.support.command_line import run_in_process
from tests.support.facts import TODAY, Facts

Night = Callable[[], dict[str, Any]]

FOLDER = Path(__file__).parents[3] / "shared" / "rosters"


@dataclass(frozen=True, slots=True, kw_only=True)
class RealRoster:
    """One of the files, with what it takes to load it and what is in it."""

    file: str
    columns: dict[str, str]
    constants: dict[str, str] = field(default_factory=dict)
    date_format: str
    counts: dict[str, int]
    rejected: tuple[Problem, ...] = ()
    statuses: dict[Status, int]
    """On TODAY, counted by a program of its own; *in force* are both valid and expiring ones, under ``valid``."""

    @property
    def path(self) -> Path:
        """Where it is; skips the test where it is not."""
        path = FOLDER / self.file
        if not path.is_file():
            pytest.skip(f"the real rosters are not here: no {path}")
        return path

    @property
    def options(self) -> LoadOptions:
        constants = self.constants | {"organisation": "real"}
        return LoadOptions(columns=self.columns, constants=constants, date_formats=(self.date_format,))


START, END = "LICENSE TERM START DATE", "LICENSE TERM EXPIRATION DATE"
CHICAGO = RealRoster(
    file="chicago_business_licences.csv",
    columns={"member_no": "ACCOUNT NUMBER", "kind": "LICENSE DESCRIPTION", "issued_on": START, "expires_on": END}
    | {"revoked_on": "LICENSE STATUS CHANGE DATE"},
    date_format="%m/%d/%Y",
    counts={"rows": 561, "loaded": 557, "repeated": 2, "mentors_added": 141},
    rejected=tuple(Problem(line=line, column=START, reason="empty") for line in (304, 495)),
    statuses={Status.RENEWED: 356, Status.EXPIRED: 159, Status.REVOKED: 42},
)
OXFORD = RealRoster(
    file="oxford_hmo_licences.csv",
    columns={"member_no": "property_id", "issued_on": "Licence Commenced", "expires_on": "Licence Expires"},
    date_format="%d/%m/%Y",
    counts={"rows": 3_227, "loaded": 3_224, "repeated": 0, "mentors_added": 3_215},
    rejected=tuple(
        Problem(line=line, column="Licence Expires", reason="ends before it begins", value=value)
        for line, value in (
            (289, "2018-01-05 to 2018-01-04"),
            (1036, "2018-12-18 to 2018-12-17"),
            (1727, "3017-03-02 to 2021-01-24"),
        )
    ),
    statuses={Status.RENEWED: 6, Status.EXPIRED: 3_218},
)
TAIWAN = RealRoster(
    file="taiwan_hearing_aid_permits.csv",
    columns={
        "member_no": "permit_no",
        "full_name": "holder",
        "expires_on": "valid_until",
        "revoked_on": "cancelled_on",
    },
    constants={"kind": "permit"},
    date_format="%Y/%m/%d",
    counts={"rows": 3_386, "loaded": 317, "repeated": 3_069, "mentors_added": 317},
    statuses={Status.REVOKED: 178, Status.VALID: 86, Status.EXPIRED: 53},
)


@pytest.fixture
def night(worker_url: str, facts: Facts, tmp_path: Path) -> Night:
    """A night of today by the command; it must end well, or with something for a person."""
    facts.organisation("real", portal=None)

    def run() -> Any:
        environment = {"CERTJOB_DATABASE_URL": worker_url}
        ended = run_in_process("run", "--allow-mass-change", "--json", environment=environment, folder=tmp_path)
        assert ended.returncode in (0, 3), ended.stderr
        return json.loads(ended.stdout)

    return run


@pytest.mark.parametrize("roster", [CHICAGO, OXFORD, TAIWAN], ids=lambda roster: str(roster.file))
def test_a_real_roster_loads_its_renewals_are_renewals_and_a_night_runs_on_it(
    connection: Connection, night: Night, roster: RealRoster
) -> None:
    """Bad rows are named by line, column and reason. Everybody comes out as the rules say; the next night is quiet."""
    report = load(connection, roster.path, options=roster.options)
    again = load(connection, roster.path, options=roster.options)

    assert tuple(report.problems) == roster.rejected
    loaded, nothing = roster.counts["loaded"], {"mentors_changed": 0, "certificates_changed": 0, "unchanged": 0}
    counts = roster.counts | nothing | {"rejected": len(roster.rejected), "certificates_added": loaded}
    assert report == LoadReport(**counts)  # type: ignore[arg-type]
    assert (again.unchanged, again.mentors_changed) == (loaded, 0)

    ids = [row[0] for row in connection.execute("SELECT id FROM mentors ORDER BY id")]
    mentors = reading.read(connection, ids, lock=False).mentors
    statuses = Counter(status for mentor in mentors for status in rules.statuses(mentor, TODAY).values())
    statuses[Status.VALID] += statuses.pop(Status.EXPIRING, 0)
    assert +statuses == roster.statuses

    document, second = night(), night()
    decisions = [rules.decide(mentor, date.fromisoformat(document["today"])) for mentor in mentors]
    assert document["mentors"]["reviewed"] == len(mentors)
    assert document["mentors"]["paused"] == sum(decision.pause is PauseChange.OPEN for decision in decisions)
    changes = Counter(change.to_status for decision in decisions for change in decision.transitions)
    assert {status: number for status, number in document["certificates"].items() if number} == changes
    assert (document["mentors"]["skipped"], document["problems"], document["held"]) == (0, [], [])
    assert second["today"] != document["today"] or second["mentors"]["reviewed"] == 0
