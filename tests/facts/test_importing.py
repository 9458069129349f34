"""Loading a CSV: the rows become facts, the later line wins, a second load changes nothing, whoever else is at work."""

from datetime import UTC, date, datetime
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from certjob import database
from certjob.database import Connection
from certjob.errors import DatabaseUnavailableError, MentorBusyError, StoppedBySignalError
from certjob.facts import loading
from certjob.facts.loading import LoadReport, load
from certjob.facts.roster import Cost, LoadOptions, Problem
from certjob.stopping import StopFlag
from tests.support.facts import Facts
from tests.support.loading import REQUIRED, Loader, many, report, row
from tests.support.nights import in_background
from tests.support.waiting import until, waits_for_a_lock

App = psycopg.Connection[tuple[object, ...]]

CONTACT = UUID("0b6c0f5e-52a5-4f0e-8f0c-0d5a3c9c7a11")
HEADER = (
    "organisation,member_no,full_name,email,locale,dynamics_contact_id,kind,issued_on,expires_on,revoked_on,left_on"
)
STRICT = LoadOptions(strict=True)
AGAIN = "load the same file again, which is safe"


@pytest.fixture
def loader(connection: Connection, facts: Facts, tmp_path: Path) -> Loader:
    """Loads into a database with the organisation ``hlf``."""
    facts.organisation("hlf")
    return Loader(connection, tmp_path)


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits and small batches, so that a test of long ones ends soon."""
    monkeypatch.setattr(loading, "_LOCK_TIMEOUT_MS", 20)
    monkeypatch.setattr(loading, "_BUSY_LIMIT", 5)
    monkeypatch.setattr(loading, "ROWS_PER_BATCH", 100)


def test_a_row_becomes_a_mentor_and_a_certificate(loader: Loader) -> None:
    """All columns, both date forms, a name in any script."""
    line = f"{{{str(CONTACT).upper()}}},likeperson,2024-02-01,1.2.2026,05.03.2025,"
    loaded = loader.rows(
        f"HLF,M1, Kåre  Ødegård ,kare@example.org,NN,{line}",
        "hlf,M2,山田 太郎,,,,likeperson,2024-02-01,2026-02-01,,2025-05-31",
        header=HEADER,
    )

    mentors = "SELECT member_no, full_name, email, locale, dynamics_contact_id, left_at FROM mentors ORDER BY 1"
    assert loader.found(mentors) == [
        ("M1", "Kåre Ødegård", "kare@example.org", "nn", CONTACT, None),
        ("M2", "山田 太郎", None, "nb", None, datetime(2025, 5, 31, tzinfo=UTC)),
    ]
    certificates = "SELECT kind, issued_on, expires_on, status, revoked_at FROM certificates ORDER BY revoked_at"
    row = ("likeperson", date(2024, 2, 1), date(2026, 2, 1), "recorded")
    assert loader.found(certificates) == [(*row, datetime(2025, 3, 5, tzinfo=UTC)), (*row, None)]
    assert loader.found("SELECT DISTINCT portal_visible FROM mentors") == [(True,)]
    assert (loaded, loader.due()) == (report(rows=2, loaded=2, mentors_added=2, certificates_added=2), ["M1", "M2"])


def test_what_is_so_already_is_not_written_and_what_is_empty_or_absent_changes_nothing(
    loader: Loader, facts: Facts
) -> None:
    """Not a row is written, not even locked; empty dates revive nothing. An å in one character or in two is one."""
    rows = [
        f"hlf,M\u00e51,Kari,kari@example.org,en,{CONTACT},likeperson,2024-02-01,2026-02-01,2025-06-01,2025-06-02",
        "hlf,M\u00e51,,,,,førstehjelp,2024-02-01,2026-02-01,,",
        "hlf,M2,Per,per@example.org,,,likeperson,2024-02-01,2026-02-01,,",
    ]
    loader.rows(*rows, header=HEADER)
    loader.settle()
    before = loader.versions()

    again = loader.rows(*rows, header=HEADER)
    empty = loader.rows("hlf,Ma\u030a1,, ,,,likeperson,2024-02-01,2026-02-01,,", header=HEADER)
    absent = loader.rows(row("M\u00e51", ends="2026-02-01"))

    assert (again, empty) == (report(rows=3, loaded=3, unchanged=3), report(rows=1, loaded=1, unchanged=1))
    assert (absent, loader.versions()) == (empty, before)
    facts.organisation("lhl", portal=None)  # the same number is somebody else there
    assert loader.rows(row("M2", ends="2026-02-01").replace("hlf", "lhl")).mentors_added == 1


def test_what_changes_is_changed_in_place_and_only_its_mentor_is_looked_at_again(loader: Loader) -> None:
    """A certificate keeps its id, so its reminders re-arm; another issue date is a renewal, with a row of its own.

    Another contact: push whatever is wanted. Another name: nothing to decide.
    """
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
    assert loaded == report(rows=5, loaded=5, mentors_changed=3, certificates_changed=1, unchanged=4)
    assert loader.due() == ["M1", "M2", "M3"]
    assert loader.found("SELECT id FROM certificates ORDER BY id") == ids
    changed = [(True, "Kari"), (None, "Kari"), (True, "Kari"), (True, "Kari Nordmann"), (True, "Kari")]
    assert loader.found("SELECT portal_visible, full_name FROM mentors ORDER BY member_no") == changed

    renewed = loader.rows(row("M5", begins="2026-02-02", ends="2028-02-01"))
    assert (renewed, loader.due()) == (report(rows=1, loaded=1, certificates_added=1), ["M1", "M2", "M3", "M5"])
    ends = "SELECT expires_on::text, count(*) FROM certificates GROUP BY 1 ORDER BY 1"
    assert loader.found(ends) == [("2026-02-01", 4), ("2028-02-01", 2)]


def test_a_revocation_and_a_departure_keep_the_hour_that_the_app_knows(loader: Loader) -> None:
    """The file knows only the day; another day replaces it, and the mentor is looked at again."""
    header = REQUIRED + ",revoked_on,left_on"
    loader.rows(row("M1", "2025-06-01", "2025-06-01", ends="2026-02-01"), header=header)
    loader.connection.execute("UPDATE certificates SET revoked_at = '2025-06-01 11:30+00'")
    loader.connection.execute("UPDATE mentors SET left_at = '2025-06-01 11:30+00'")
    loader.settle()
    hours = datetime(2025, 6, 1, 11, 30, tzinfo=UTC), datetime(2025, 6, 2, tzinfo=UTC)

    for changed, (day, hour) in enumerate(zip(("2025-06-01", "02.06.2025"), hours, strict=True)):
        loaded = loader.rows(row("M1", day, day, ends="2026-02-01"), header=header)

        counts = {"certificates_changed": changed, "mentors_changed": changed, "unchanged": 1 - changed}
        assert loaded == report(rows=1, loaded=1, **counts)
        assert loader.found("SELECT revoked_at, left_at FROM certificates, mentors") == [(hour, hour)]
        assert loader.due() == ["M1"] * changed


def test_the_later_of_two_lines_wins_and_the_earlier_is_counted_as_repeated(loader: Loader) -> None:
    """What the later line leaves empty, the earlier one still says; a bad later line leaves the earlier one."""
    header = REQUIRED + ",email,revoked_on"
    rows = (
        row("M1", "a@example.org", "2025-01-01", ends="2026-02-01"),
        row("M2", "", "", ends="2026-02-01"),
        row("M1", "b@example.org", "", ends="2025-02-01"),
        row("M1", "", "", begins="01.02.2024", ends="2027-02-01"),
        row("M2", "", "", ends="2026-02-30"),
    )

    assert loader.rows(*rows, header=header).repeated == 2
    assert loader.found(
        "SELECT m.email, c.expires_on, c.revoked_at FROM mentors m JOIN certificates c ON c.mentor_id = m.id ORDER BY 1"
    ) == [("b@example.org", date(2027, 2, 1), datetime(2025, 1, 1, tzinfo=UTC)), (None, date(2026, 2, 1), None)]
    assert loader.rows(*rows, header=header) == report(rows=5, loaded=2, repeated=2, rejected=1, unchanged=2)


@pytest.mark.usefixtures("hurry")
def test_lines_of_one_mentor_far_apart_in_the_file_do_not_undo_each_other(loader: Loader) -> None:
    """First and last line of a file that takes several commits, as do very many certificates of one mentor."""
    text = many(250).replace(REQUIRED, REQUIRED + ",email").replace("2027-01-01", "2027-01-01,")
    first, last = row("M000077", "first@example.org", ends="2025-01-01"), row("M000077", "z@b.no", ends="2029-01-01")
    kinds = "\n".join(row("M000077", "", kind=f"kind {number}", ends="2026-02-01") for number in range(180))
    text = text.replace("email\n", f"email\n{first}\n") + f"\n{last}\n{kinds}"

    assert loader(text) == report(rows=432, loaded=430, repeated=2, mentors_added=250, certificates_added=430)
    before = loader.versions()
    late = "SELECT m.email FROM mentors m JOIN certificates c ON mentor_id = m.id WHERE expires_on > '2028-1-1'"
    assert loader.found(late) == [("z@b.no",)]
    assert loader(text) == report(rows=432, loaded=430, repeated=2, unchanged=430)
    assert loader.versions() == before


def test_a_file_of_mentors_alone_corrects_addresses_and_contact_ids_and_adds_nobody(loader: Loader) -> None:
    """No certificate is needed to correct an address, and none is touched. A mistyped number would become a mentor."""
    loader.rows(*(row(number, ends="2026-02-01") for number in ("M1", "M2")))
    loader.settle()
    header = "organisation,member_no,email,dynamics_contact_id"
    rows = ("hlf,M1,old@example.org,", "hlf,M2,,", f"hlf,M1,kari@example.org,{CONTACT}", "hlf,M11,per@example.org,")

    loaded = loader.rows(*rows, header=header)
    reason = "no such mentor; somebody new comes with a certificate"
    assert loader.problems == [Problem(line=5, column="(line)", reason=reason)]
    assert loaded == report(rows=4, loaded=2, repeated=1, rejected=1, mentors_changed=1, unchanged=1)
    before = loader.versions()
    assert loader.rows(*rows, header=header) == report(rows=4, loaded=2, repeated=1, rejected=1, unchanged=2)
    assert (loader.versions(), loader.due()) == (before, ["M1"])
    found = loader.found("SELECT email, dynamics_contact_id FROM mentors ORDER BY member_no")
    assert found == [("kari@example.org", CONTACT), (None, None)]


FORBID = "ALTER TABLE certificates ADD CONSTRAINT no_such_kind CHECK (kind <> 'forbidden')"
"""A rule that only the database knows."""


def test_two_mentors_with_one_contact_are_both_loaded_and_the_second_without_it(loader: Loader) -> None:
    """The contact ID is wrong, the renewal is not; whoever reads the report corrects it. Not so for another rule."""
    loader.connection.execute(FORBID)
    rows = [row(f"M{n}", str(CONTACT) if n < 3 else "", ends="2026-02-01") for n in (1, 2, 3)]
    odd = row("M4", str(UUID(int=4)), kind="forbidden", ends="2026-02-01")

    loaded = loader.rows(*rows, odd, header=REQUIRED + ",dynamics_contact_id")

    assert (loaded.loaded, loaded.rejected) == (3, 1)
    reason = "another mentor of the organisation has this contact ID"
    problem, refused = loader.problems
    assert problem == Problem(line=3, column="dynamics_contact_id", reason=reason, cost=Cost.CELL)
    assert (refused.line, refused.cost) == (5, Cost.ROW)
    assert loader.found("SELECT dynamics_contact_id FROM mentors ORDER BY member_no") == [(CONTACT,), (None,), (None,)]


@pytest.mark.parametrize(("options", "kept"), [(LoadOptions(), 1_200), (STRICT, 0)], ids=["", "strict"])
def test_a_value_that_only_the_database_refuses_costs_its_own_row(
    loader: Loader, options: LoadOptions, kept: int
) -> None:
    """Not its batch, not the other certificates of the mentor; the rule is named, the row's content is not."""
    loader.connection.execute(FORBID)
    numbers = ("M000007", "M001100", "M999999")
    forbidden = [row(number, kind="forbidden", ends="2026-02-01") for number in numbers]

    loaded = loader("\n".join([many(1_200), *forbidden]), options=options)

    assert sorted((each.line, each.column, each.reason) for each in loader.rejected) == [
        (line, "(line)", "the database refuses it (no_such_kind)") for line in (1_202, 1_203, 1_204)
    ]
    assert (loaded.rows, loaded.loaded, loaded.rejected) == (1_203, kept, 3)
    counts = "SELECT (SELECT count(*) FROM certificates), (SELECT count(*) FROM mentors)"
    assert loader.found(counts) == [(kept, kept)]


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("options", [LoadOptions(), STRICT], ids=["", "strict"])
def test_it_commits_by_a_thousand_rows_and_a_strict_load_all_at_once(
    loader: Loader, app: App, options: LoadOptions
) -> None:
    """What is done is done, and locks are not held for long. A pooler that gets the session finds nothing in it."""
    seen: list[tuple[int, int, int]] = []

    def look(written: int, all_rows: int) -> None:
        seen.append((written, all_rows, len(app.execute("SELECT FROM mentors").fetchall())))
        app.rollback()

    loaded = loader(many(250), options=options, on_progress=look)

    assert seen == [(done, 250, 0 if options.strict else done) for done in (100, 200, 250)]
    assert loaded.certificates_added == 250
    left = (
        "SELECT relname::text FROM pg_class WHERE relname = 'load_rows' UNION SELECT name FROM pg_prepared_statements"
    )
    assert (loader.found(left), loader.found("SHOW lock_timeout")) == ([], [("0",)])


@pytest.mark.usefixtures("hurry")
def test_a_load_that_is_stopped_or_loses_its_database_says_how_much_is_committed_and_can_be_repeated(
    loader: Loader, app: App
) -> None:
    """It stops while the file is read, and between batches; a strict one leaves nothing."""
    stop = StopFlag()
    stop.signal_name = "SIGINT"
    with pytest.raises(StoppedBySignalError, match="nothing was loaded"):
        loader(many(250), stop=stop, on_progress=lambda *_: stop.set(), options=STRICT)
    with pytest.raises(StoppedBySignalError, match="stopped by SIGINT while the file was read; nothing was loaded"):
        loader(many(250), stop=stop)
    assert loader.found("SELECT FROM mentors") == []
    stop = StopFlag()
    stop.signal_name = "SIGINT"

    with pytest.raises(StoppedBySignalError, match=f"stopped by SIGINT; 100 rows of the file are loaded; {AGAIN}"):
        loader(many(250), stop=stop, on_progress=lambda *_: stop.set())
    repeated = loader(many(250))
    assert (repeated.unchanged, repeated.certificates_added) == (100, 150)

    def cut(_: int, __: int) -> None:
        app.execute("SELECT pg_terminate_backend(%s)", (loader.connection.info.backend_pid,))
        app.commit()

    with pytest.raises(DatabaseUnavailableError, match=f"the database went away; 100 rows of the file are .*; {AGAIN}"):
        loader(many(250), on_progress=cut)


def test_a_load_and_the_app_both_make_their_changes(loader: Loader, app: App, database_url: str) -> None:
    """The load waits for a certificate that the app changes; in a deadlock with the app it tries again."""
    loader.rows(*(row(number, ends="2026-02-01") for number in ("M1", "M2")))
    dates = "SELECT expires_on::text, revoked_at IS NOT NULL FROM certificates ORDER BY 1"
    with database.connect(database_url) as observer:

        def go_on_when_the_load_waits(statement: str) -> None:
            until(lambda: waits_for_a_lock(observer, loader.connection))
            app.execute(statement.encode())
            app.commit()

        app.execute("UPDATE certificates SET expires_on = '2030-01-01', revoked_at = '2025-05-05 12:00+00'")
        with in_background(lambda: go_on_when_the_load_waits("SELECT")):
            loaded = loader.rows(row("M1", ends="2027-02-01"), row("M2", ends="2026-02-01"))
        assert (loaded.certificates_changed, loaded.unchanged) == (2, 0)
        assert loader.found(dates) == [("2026-02-01", True), ("2027-02-01", True)]

        app.execute("SET deadlock_timeout = '10s'")  # the load notices first
        app.execute("UPDATE mentors SET full_name = 'Kari'")
        with in_background(lambda: go_on_when_the_load_waits("UPDATE certificates SET revoked_at = NULL")):
            loaded = loader.rows(row("M1", ends="2028-02-01"))
    assert (loaded.certificates_changed, loader.rejected) == (1, [])
    assert loader.found(dates) == [("2026-02-01", False), ("2028-02-01", False)]


@pytest.mark.usefixtures("hurry")
def test_a_mentor_whom_another_session_keeps_is_rejected_and_a_load_that_meets_many_gives_up(
    loader: Loader, app: App
) -> None:
    """The others are loaded, and the same file loads the rest later; or it says how far it got."""
    loader(many(200))
    app.execute("SELECT FROM mentors WHERE member_no = 'M000013' FOR NO KEY UPDATE")
    text = many(50, expires_on="2028-01-01")
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "M000013" in line)

    loaded = loader(text)

    assert (loaded.loaded, loaded.certificates_changed) == (49, 49)
    reason = "another session keeps this mentor locked; load the file again"
    assert loader.rejected == [Problem(line=line, column="(line)", reason=reason)]
    app.rollback()
    assert loader(text) == report(rows=50, loaded=50, certificates_changed=1, unchanged=49)

    app.execute("SELECT FROM mentors WHERE member_no >= 'M000100' FOR NO KEY UPDATE")
    for options, kept, number in ((STRICT, "nothing was loaded", 0), (LoadOptions(), "100 rows of the file are", 100)):
        with pytest.raises(MentorBusyError, match=f"{kept}.*; {AGAIN}"):
            loader(many(200, expires_on="2029-01-01"), options=options)
        assert len(loader.found("SELECT FROM certificates WHERE expires_on = '2029-01-01'")) == number


def test_two_loads_of_one_file_at_once_share_the_work(loader: Loader, database_url: str) -> None:
    """Neither fails, nothing is there twice, and both say what they did."""
    path = loader.directory / "shared.csv"
    path.write_text(many(1_200, certificates=2))
    reports: list[LoadReport] = []

    def run() -> None:
        with database.connect(database_url) as connection:
            reports.append(load(connection, path, options=LoadOptions()))

    with in_background(run), in_background(run):
        run()

    assert [(each.loaded, each.problems) for each in reports] == [(2_400, [])] * 3
    assert sum(each.mentors_added for each in reports) == 1_200
    assert sum(each.certificates_added for each in reports) == 2_400
    assert len(loader.found("SELECT FROM certificates")) == 2_400
