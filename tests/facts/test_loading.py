"""Load a CSV file: facts, repeated loads, and other sessions."""

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import InputError, MentorBusyError
from certjob.facts import loading
from certjob.facts.loading import LoadReport, load
from certjob.facts.roster import Problem
from tests.facts.loading import REQUIRED, Loader, counts, many, row
from tests.support.facts import TODAY, Facts
from tests.support.nights import in_background, night
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

CONTACT = UUID("0b6c0f5e-52a5-4f0e-8f0c-0d5a3c9c7a11")
HEADER = REQUIRED + ",full_name,email,locale,dynamics_contact_id,revoked_on,left_on"
WITH_CONTACT = REQUIRED + ",dynamics_contact_id"
CONTACTS = "SELECT member_no, dynamics_contact_id FROM mentors ORDER BY 1"


@pytest.fixture
def loader(connection: Connection, facts: Facts) -> Loader:
    """Loads into a database with the organisation ``hlf``."""
    facts.organisation("hlf")
    return Loader(connection)


def test_row_becomes_a_mentor_and_a_certificate(loader: Loader) -> None:
    loaded = loader.rows(
        f"HLF,M1,likeperson,2024-02-01,1.2.2026, Kåre  Ødegård ,kare@example.org,NN,{CONTACT},05.03.2025,",
        "hlf,M2,likeperson,2024-02-01,2026-02-01,山田 太郎,,,,,2025-05-31",
        header=HEADER,
    )

    mentors = "SELECT member_no, full_name, email, locale, dynamics_contact_id, left_at FROM mentors ORDER BY 1"
    assert loader.found(mentors) == [
        ("M1", "Kåre Ødegård", "kare@example.org", "nn", CONTACT, None),
        ("M2", "山田 太郎", None, "nb", None, datetime(2025, 5, 31, tzinfo=UTC)),
    ]
    certificates = "SELECT kind, issued_on, expires_on, status, revoked_at FROM certificates ORDER BY revoked_at"
    certificate = ("likeperson", date(2024, 2, 1), date(2026, 2, 1), "recorded")
    assert loader.found(certificates) == [(*certificate, datetime(2025, 3, 5, tzinfo=UTC)), (*certificate, None)]
    assert (loaded, loader.due()) == ({"mentors_added": 2, "certificates_added": 2}, ["M1", "M2"])


@pytest.mark.parametrize(
    ("row_again", "header"),
    [
        pytest.param(f"kari@example.org,en,{CONTACT},2025-06-01,2025-06-02", HEADER, id="same row"),
        pytest.param(" ,,,,", HEADER, id="empty cells"),
        pytest.param(None, REQUIRED, id="without the columns"),
    ],
)
def test_second_load_writes_and_locks_nothing(loader: Loader, row_again: str | None, header: str) -> None:
    """An empty cell or an absent column keeps the stored value."""
    start = "hlf,M\u00e51,førstehjelp,2024-02-01,2026-02-01"
    loader.rows(f"{start},Kari,kari@example.org,en,{CONTACT},2025-06-01,2025-06-02", header=HEADER)
    loader.settle()
    before = loader.versions()

    assert loader.rows(start if row_again is None else f"{start},Kari,{row_again}", header=header) == {}
    assert (loader.versions(), loader.due()) == (before, [])


def test_same_number_in_another_organisation_is_another_mentor(loader: Loader, facts: Facts) -> None:
    facts.organisation("lhl", portal=None)
    loader.rows(row("M1", ends="2026-02-01"))

    assert loader.rows(row("M1", ends="2026-02-01").replace("hlf", "lhl"))["mentors_added"] == 1


def test_change_is_made_in_place_and_makes_the_mentor_due(loader: Loader) -> None:
    """A certificate keeps its id, and with it its reminders. A new name causes no review."""
    header = REQUIRED + ",full_name,email,dynamics_contact_id"
    lines = [row(f"M{n}", "Kari", "old@example.org", "", ends="2026-02-01") for n in range(1, 6)]
    loader.rows(*lines, header=header)
    loader.settle()
    ids = loader.found("SELECT id FROM certificates ORDER BY id")

    loaded = loader.rows(
        row("M1", "Kari", "old@example.org", "", ends="2028-02-01"),
        row("M2", "Kari", "old@example.org", str(CONTACT), ends="2026-02-01"),
        row("M3", "Kari", "new@example.org", "", ends="2026-02-01"),
        row("M4", "Kari Nordmann", "old@example.org", "", ends="2026-02-01"),
        lines[-1],
        header=header,
    )

    assert loaded == {"mentors_changed": 3, "certificates_changed": 1}
    assert loader.due() == ["M1", "M2", "M3"]
    assert loader.found("SELECT id FROM certificates ORDER BY id") == ids


def test_new_first_day_is_a_new_certificate(loader: Loader) -> None:
    loader.rows(row("M1", ends="2026-02-01"))

    assert loader.rows(row("M1", begins="2026-02-02", ends="2028-02-01")) == {"certificates_added": 1}


def test_revocation_and_departure_keep_the_hour_that_the_app_knows(loader: Loader) -> None:
    """The file knows only the day. Another day replaces it."""
    header = REQUIRED + ",revoked_on,left_on"
    loader.rows(row("M1", "2025-06-01", "2025-06-01", ends="2026-02-01"), header=header)
    loader.connection.execute("UPDATE certificates SET revoked_at = '2025-06-01 11:30+00'")
    loader.connection.execute("UPDATE mentors SET left_at = '2025-06-01 11:30+00'")
    times = "SELECT revoked_at, left_at FROM certificates, mentors"

    assert loader.rows(row("M1", "2025-06-01", "2025-06-01", ends="2026-02-01"), header=header) == {}
    assert loader.found(times) == [(datetime(2025, 6, 1, 11, 30, tzinfo=UTC),) * 2]
    changed = loader.rows(row("M1", "02.06.2025", "02.06.2025", ends="2026-02-01"), header=header)
    assert changed == {"mentors_changed": 1, "certificates_changed": 1}
    assert loader.found(times) == [(datetime(2025, 6, 2, tzinfo=UTC),) * 2]


def test_file_of_mentors_alone_adds_no_one(loader: Loader) -> None:
    """A mistyped number would become a mentor without a certificate."""
    loader.rows(*(row(number, ends="2026-02-01") for number in ("M1", "M2")))
    loader.settle()

    report = loader(f"organisation,member_no,email,dynamics_contact_id\nhlf,M1,k@b.no,{CONTACT}\nhlf,M11,p@b.no,")

    reason = "no such mentor; a new mentor needs a certificate"
    assert report.problems == [Problem(line=3, column="member_no", reason=reason)]
    assert (counts(report), report.skipped) == ({"mentors_changed": 1}, 1)
    assert (loader.due(), loader.found(CONTACTS)) == (["M1"], [("M1", CONTACT), ("M2", None)])


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """Contact IDs (as numbers) by organisation and mentor: stored before, in the file, and refused."""

    stored: dict[str, int] = field(default_factory=dict)
    file: dict[str, int]
    refused: list[str] = field(default_factory=list)


@pytest.mark.parametrize(
    "contacts",
    [
        pytest.param(
            Contacts(file={"hlf,M1": 1, "hlf,M2": 1, "hlf,M3": 3}, refused=["hlf,M1", "hlf,M2"]), id="twice in the file"
        ),
        pytest.param(
            Contacts(stored={"hlf,M1": 1}, file={"hlf,M1": 1, "hlf,M2": 1}, refused=["hlf,M2"]),
            id="of a known mentor in the file",
        ),
        pytest.param(
            Contacts(stored={"lhl,M1": 1}, file={"hlf,M1": 1}, refused=["hlf,M1"]), id="of another organisation"
        ),
        pytest.param(Contacts(stored={"hlf,M1": 1, "hlf,M2": 2}, file={"hlf,M1": 2, "hlf,M2": 1}), id="swapped"),
        pytest.param(Contacts(stored={"hlf,M1": 1}, file={"hlf,M1": 2, "hlf,M2": 1}), id="given to a new mentor"),
        pytest.param(
            Contacts(
                stored={"hlf,M1": 1, "hlf,M2": 2, "hlf,M3": 3},
                file={"hlf,M1": 3, "hlf,M2": 1},
                refused=["hlf,M1", "hlf,M2"],
            ),
            id="kept by a mentor who is refused",
        ),
    ],
)
def test_contact_id_of_another_mentor_is_refused(loader: Loader, facts: Facts, contacts: Contacts) -> None:
    """The mentor is skipped. The problem does not name the other mentor."""
    facts.organisation("lhl")

    def load_contacts(wanted: dict[str, int]) -> LoadReport:
        lines = [f"{mentor},likeperson,2024-02-01,2026-02-01,{UUID(int=contact)}" for mentor, contact in wanted.items()]
        return loader("\n".join([WITH_CONTACT, *lines]))

    assert load_contacts(contacts.stored).problems == []

    report = load_contacts(contacts.file)

    lines = [line for line, mentor in enumerate(contacts.file, start=2) if mentor in contacts.refused]
    reason = "another mentor has this contact ID"
    assert report.problems == [Problem(line=line, column="dynamics_contact_id", reason=reason) for line in lines]
    assert report.skipped == len(lines)
    loaded = {mentor: contact for mentor, contact in contacts.file.items() if mentor not in contacts.refused}
    found = (
        "SELECT slug || ',' || member_no, dynamics_contact_id"
        " FROM mentors JOIN organisations o ON o.id = organisation_id"
    )
    assert dict(loader.found(found)) == {
        mentor: UUID(int=contact) for mentor, contact in (contacts.stored | loaded).items()
    }


def test_load_counts_whom_the_next_run_pauses_and_brings_back(loader: Loader, facts: Facts) -> None:
    """It applies the rules to mentors of the file with facts that changed since their last review."""
    past, future = str(TODAY - timedelta(days=1)), str(TODAY + timedelta(days=100))
    loader.rows(*(row(f"M{n}", ends=past if n < 3 else future) for n in range(1, 6)))
    night(facts.connection)
    assert facts.rows("SELECT count(*) FROM mentor_pauses WHERE lifted_at IS NULL") == [(2,)]

    report = loader("\n".join([REQUIRED, *(row(f"M{n}", ends=past if n > 1 else future) for n in range(1, 6))]))

    assert (report.paused_next_run, report.brought_back_next_run) == (3, 1)
    done = night(facts.connection).to_document()
    assert (done["mentors"]["paused"], done["mentors"]["resumed"]) == (3, 1)


def test_value_that_a_constraint_refuses_loads_nothing(loader: Loader) -> None:
    """The error names the constraint and does not quote the row."""
    loader.connection.execute("ALTER TABLE certificates ADD CONSTRAINT no_such_kind CHECK (kind <> 'forbidden')")

    with pytest.raises(InputError, match=r"the database rejects this file \(no_such_kind\); nothing was loaded"):
        loader("\n".join([many(10), row("M1", kind="forbidden", ends="2026-02-01")]))

    assert loader.found("SELECT FROM mentors") == []


def test_load_leaves_nothing_in_the_session(loader: Loader) -> None:
    """A pooler gives the session to someone else."""
    loader(many(10))

    assert loader.found("SELECT FROM pg_class WHERE starts_with(relname, 'load_')") == []
    assert loader.found("SELECT FROM pg_prepared_statements") == []
    assert loader.found("SHOW lock_timeout") == [("0",)]


def test_load_and_app_both_make_their_changes(loader: Loader, app: App, database_url: str) -> None:
    """The load waits for a certificate that the app changes; after a deadlock with the app it tries again."""
    loader.rows(*(row(number, ends="2026-02-01") for number in ("M1", "M2")))
    dates = "SELECT expires_on::text, revoked_at IS NOT NULL FROM certificates ORDER BY 1"
    with database.connect(database_url) as observer:

        def go_on_when_the_load_waits(statement: str) -> None:
            until(lambda: waits_for_a_lock(observer, loader.connection))
            app.execute(statement.encode())
            app.commit()

        app.execute("UPDATE certificates SET revoked_at = '2025-05-05 12:00+00'")
        with in_background(lambda: go_on_when_the_load_waits("SELECT")):
            loaded = loader.rows(row("M1", ends="2027-02-01"), row("M2", ends="2026-02-01"))
        assert loaded == {"certificates_changed": 1}
        assert loader.found(dates) == [("2026-02-01", True), ("2027-02-01", True)]

        app.execute("SET deadlock_timeout = '10s'")  # the load notices first
        app.execute("UPDATE mentors SET full_name = 'Kari'")
        with in_background(lambda: go_on_when_the_load_waits("UPDATE certificates SET revoked_at = NULL")):
            loaded = loader.rows(row("M1", ends="2028-02-01"))
    assert loaded == {"certificates_changed": 1}
    assert loader.found(dates) == [("2026-02-01", False), ("2028-02-01", False)]


def test_load_gives_up_if_another_session_keeps_a_row(
    loader: Loader, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later load succeeds."""
    monkeypatch.setattr(loading, "_LOCK_TIMEOUT_MS", 20)
    loader(many(200))
    app.execute("SELECT FROM mentors WHERE member_no = 'M000013' FOR NO KEY UPDATE")
    text = many(50, expires_on="2028-01-01")

    with pytest.raises(MentorBusyError, match="nothing was loaded; load it again"):
        loader(text)

    assert loader.found("SELECT FROM certificates WHERE expires_on = '2028-01-01'") == []
    app.rollback()
    assert counts(loader(text)) == {"certificates_changed": 50}


def test_two_loads_of_one_file_at_once_share_the_work(loader: Loader, database_url: str) -> None:
    """No load fails, and no row exists twice."""
    content = many(1_200, certificates=2).encode()
    reports: list[LoadReport] = []

    def run() -> None:
        with database.connect(database_url) as connection:
            reports.append(load(connection, content, today=TODAY))

    with in_background(run), in_background(run):
        run()

    assert [(each.skipped, each.problems) for each in reports] == [(0, [])] * 3
    assert sum(each.mentors_added for each in reports) == 1_200
    assert sum(each.certificates_added for each in reports) == 2_400
    assert len(loader.found("SELECT FROM certificates")) == 2_400
