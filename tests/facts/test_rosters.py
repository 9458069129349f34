"""Real rosters that nobody here wrote: they load, their bad rows are named, and a night runs on them."""

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from certjob import database
from certjob.domain import rules
from certjob.domain.models import Mentor, PauseChange, Status
from certjob.facts import reading as facts
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
    options: LoadOptions
    rows: int
    certificates: int
    repeated: int
    mentors: int
    rejected: tuple[Problem, ...]
    statuses: dict[Status, int]
    """On TODAY, counted by a program of its own; *in force* are both valid and expiring ones, under ``valid``."""

    @property
    def path(self) -> Path:
        """Where it is; skips the test where it is not."""
        path = FOLDER / self.file
        if not path.is_file():
            pytest.skip(f"the real rosters are not here: no {path}")
        return path


CHICAGO = RealRoster(
    file="chicago_business_licences.csv",
    options=LoadOptions(
        columns={
            "member_no": "ACCOUNT NUMBER",
            "kind": "LICENSE DESCRIPTION",
            "issued_on": "LICENSE TERM START DATE",
            "expires_on": "LICENSE TERM EXPIRATION DATE",
            "revoked_on": "LICENSE STATUS CHANGE DATE",
        },
        constants={"organisation": "real"},
        date_formats=("%m/%d/%Y",),
    ),
    rows=561,
    certificates=557,
    repeated=2,
    mentors=141,
    rejected=(
        Problem(line=304, column="LICENSE TERM START DATE", reason="empty"),
        Problem(line=495, column="LICENSE TERM START DATE", reason="empty"),
    ),
    statuses={Status.RENEWED: 356, Status.EXPIRED: 159, Status.REVOKED: 42},
)

OXFORD = RealRoster(
    file="oxford_hmo_licences.csv",
    options=LoadOptions(
        columns={"member_no": "property_id", "issued_on": "Licence Commenced", "expires_on": "Licence Expires"},
        constants={"organisation": "real"},
        date_formats=("%d/%m/%Y",),
    ),
    rows=3_227,
    certificates=3_224,
    repeated=0,
    mentors=3_215,
    rejected=(
        Problem(line=289, column="Licence Expires", reason="ends before it begins", value="2018-01-05 to 2018-01-04"),
        Problem(line=1036, column="Licence Expires", reason="ends before it begins", value="2018-12-18 to 2018-12-17"),
        Problem(line=1727, column="Licence Expires", reason="ends before it begins", value="3017-03-02 to 2021-01-24"),
    ),
    statuses={Status.RENEWED: 6, Status.EXPIRED: 3_218},
)

TAIWAN = RealRoster(
    file="taiwan_hearing_aid_permits.csv",
    options=LoadOptions(
        columns={
            "member_no": "permit_no",
            "full_name": "holder",
            "expires_on": "valid_until",
            "revoked_on": "cancelled_on",
        },
        constants={"organisation": "real", "kind": "permit"},
        date_formats=("%Y/%m/%d",),
    ),
    rows=3_386,
    certificates=317,
    repeated=3_069,
    mentors=317,
    rejected=(),
    statuses={Status.REVOKED: 178, Status.VALID: 86, Status.EXPIRED: 53},
)


@pytest.fixture(autouse=True)
def organisation(facts: Facts) -> None:
    """The rosters belong to one organisation without a portal."""
    facts.organisation("real", portal=None)


def mentors_in(connection: database.Connection) -> list[Mentor]:
    """Every mentor, as the night reads them."""
    ids = [row[0] for row in connection.execute("SELECT id FROM mentors ORDER BY id")]
    return facts.read(connection, ids, lock=False).mentors


def statuses_on(mentors: list[Mentor], today: date) -> Counter[Status]:
    """How many certificates the rules call what."""
    counter: Counter[Status] = Counter()
    for mentor in mentors:
        known = {
            transition.certificate_id: transition.to_status for transition in rules.decide(mentor, today).transitions
        }
        counter.update(known.get(certificate.id, certificate.status) for certificate in mentor.certificates)
    counter[Status.VALID] += counter.pop(Status.EXPIRING, 0)
    return +counter


@pytest.fixture
def night(worker_url: str, tmp_path: Path) -> Night:
    """A night of today by the command; it must end well, or with something for a person."""
    return partial(_night, worker_url, tmp_path)


def _night(worker_url: str, folder: Path) -> dict[str, Any]:
    environment = {"CERTJOB_DATABASE_URL": worker_url}
    ended = run_in_process("run", "--allow-mass-change", "--json", environment=environment, folder=folder)
    assert ended.returncode in (0, 3), ended.stderr
    document: dict[str, Any] = json.loads(ended.stdout)
    return document


@pytest.mark.parametrize("roster", [CHICAGO, OXFORD, TAIWAN], ids=lambda roster: str(roster.file))
def test_a_real_roster_loads_its_renewals_are_renewals_and_a_night_runs_on_it(
    connection: database.Connection, night: Night, roster: RealRoster
) -> None:
    """Bad rows are named by line, column and reason. Everybody comes out as the rules say; the next night is quiet."""
    report = load(connection, roster.path, options=roster.options)
    again = load(connection, roster.path, options=roster.options)

    assert tuple(report.problems) == roster.rejected
    assert report == LoadReport(
        rows=roster.rows,
        loaded=roster.certificates,
        rejected=len(roster.rejected),
        repeated=roster.repeated,
        mentors_added=roster.mentors,
        mentors_changed=0,
        certificates_added=roster.certificates,
        certificates_changed=0,
        unchanged=0,
    )
    assert (again.unchanged, again.mentors_changed) == (roster.certificates, 0)

    mentors = mentors_in(connection)
    assert statuses_on(mentors, TODAY) == roster.statuses

    document = night()
    second = night()
    today = date.fromisoformat(document["today"])
    decisions = [rules.decide(mentor, today) for mentor in mentors]
    assert document["mentors"]["reviewed"] == roster.mentors
    assert document["mentors"]["paused"] == sum(decision.pause is PauseChange.OPEN for decision in decisions)
    assert document["certificates"] == {
        status: count
        for status in ("valid", "expiring", "expired", "renewed", "revoked", "upcoming")
        for count in [sum(change.to_status == status for d in decisions for change in d.transitions)]
    }
    assert (document["mentors"]["skipped"], document["problems"], document["held"]) == (0, [], [])
    assert second["today"] != document["today"] or second["mentors"]["reviewed"] == 0


def snapshots(path: Path, folder: Path) -> dict[str, Path]:
    """The ten days of the Taiwan list, each as the file of that day."""
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    files = {}
    for day in sorted({row[0] for row in rows}):
        files[day] = folder / f"{day}.csv"
        with files[day].open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *[row for row in rows if row[0] == day]])
    return files


def test_ten_days_of_one_list_change_what_changed_and_nothing_else(
    connection: database.Connection, night: Night, tmp_path: Path
) -> None:
    """Played in order, most days bring nothing; a prolonged permit changes in place; nights review who changed."""
    days = snapshots(TAIWAN.path, tmp_path)
    reports: dict[str, LoadReport] = {}
    expiries: dict[str, int] = {}
    reviewed: dict[str, int] = {}

    for day, path in days.items():
        before = dict(connection.execute("SELECT id, expires_on FROM certificates").fetchall())
        reports[day] = load(connection, path, options=TAIWAN.options)
        assert not reports[day].problems
        after = dict(connection.execute("SELECT id, expires_on FROM certificates").fetchall())
        expiries[day] = sum(after[key] != expires_on for key, expires_on in before.items())
        if day in ("2024-10-31", "2024-12-23", "2026-01-17", "2026-07-01"):
            reviewed[day] = night()["mentors"]["reviewed"]

    changed = {day: (r.certificates_added, r.certificates_changed) for day, r in reports.items()}
    assert {day: counts for day, counts in changed.items() if any(counts)} == {
        "2024-10-31": (310, 0),
        "2026-01-17": (6, 20),
        "2026-03-14": (0, 3),
        "2026-07-01": (1, 4),
    }
    assert {day: count for day, count in expiries.items() if count} == {
        "2026-01-17": 2,
        "2026-03-14": 3,
        "2026-07-01": 4,
    }
    assert reviewed == {"2024-10-31": 310, "2024-12-23": 0, "2026-01-17": 26, "2026-07-01": 8}
