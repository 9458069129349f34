"""A load among other sessions, signals and failures: good rows get in, and what was kept is said."""

import threading
from datetime import date
from pathlib import Path

import psycopg
import pytest

from certjob import database
from certjob.errors import DatabaseUnavailableError, MentorBusyError, StoppedBySignalError
from certjob.facts import loading
from certjob.facts.loading import LoadReport, load
from certjob.facts.roster import LoadOptions, Problem
from tests.support.facts import Facts
from tests.support.loading import Loader, many

App = psycopg.Connection[tuple[object, ...]]


@pytest.fixture
def loader(connection: database.Connection, facts: Facts, tmp_path: Path) -> Loader:
    """Loads into a database with the organisation ``hlf``."""
    facts.organisation("hlf")
    return Loader(connection, tmp_path)


def forbid(connection: database.Connection, kind: str) -> None:
    """A rule that only the database knows."""
    connection.execute(f"ALTER TABLE certificates ADD CONSTRAINT no_such_kind CHECK (kind <> '{kind}')".encode())


@pytest.mark.parametrize("strict", [False, True])
def test_a_value_that_only_the_database_refuses_costs_its_own_row(loader: Loader, facts: Facts, strict: bool) -> None:
    """Not its batch, not the other certificates of the mentor; the rule is named, the row's content is not."""
    forbid(loader.connection, "forbidden")
    text = many(1_200) + "".join(
        f"\nhlf,M{number:06},forbidden,2024-02-01,2026-02-01" for number in (7, 1_100, 999_999)
    )

    report = loader(text, options=LoadOptions(strict=strict))

    assert sorted((row.line, row.column, row.reason) for row in loader.rejected) == [
        (line, "(line)", "the database refuses it (no_such_kind)") for line in (1_202, 1_203, 1_204)
    ]
    assert (report.rows, report.loaded, report.rejected) == (1_203, 0 if strict else 1_200, 3)
    assert facts.rows("SELECT count(*) FROM certificates") == [(0 if strict else 1_200,)]
    assert facts.rows("SELECT count(*) FROM mentors") == [(0 if strict else 1_200,)]


def test_a_load_waits_for_a_certificate_that_the_app_is_changing(loader: Loader, facts: Facts, app: App) -> None:
    """The app's change and the load's are both made, in this order."""
    loader.rows("hlf,M1,likeperson,2024-02-01,2026-02-01", "hlf,M2,likeperson,2024-02-01,2026-02-01")
    app.execute("UPDATE certificates SET expires_on = '2030-01-01', revoked_at = '2025-05-05 12:00+00'")
    release = threading.Timer(0.4, app.commit)
    release.start()

    report = loader.rows("hlf,M1,likeperson,2024-02-01,2027-02-01", "hlf,M2,likeperson,2024-02-01,2026-02-01")

    release.join()
    assert (report.certificates_changed, report.unchanged) == (2, 0)
    assert facts.rows("SELECT expires_on, revoked_at IS NOT NULL FROM certificates ORDER BY expires_on") == [
        (date(2026, 2, 1), True),
        (date(2027, 2, 1), True),
    ]


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits and small batches, so that a test of long ones ends soon."""
    monkeypatch.setattr(loading, "_LOCK_TIMEOUT_MS", 20)
    monkeypatch.setattr(loading, "_BUSY_LIMIT", 5)
    monkeypatch.setattr(loading, "ROWS_PER_BATCH", 100)


def test_a_mentor_whom_another_session_keeps_is_rejected_and_the_others_are_loaded(
    loader: Loader, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the words that tell the next step; the same file loads the rest later."""
    hurry(monkeypatch)
    loader(many(50))
    app.execute("SELECT FROM mentors WHERE member_no = 'M000013' FOR NO KEY UPDATE")
    text = many(50, expires_on="2028-01-01")
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "M000013" in row)

    report = loader(text)
    assert (report.loaded, report.certificates_changed) == (49, 49)
    assert loader.rejected == [
        Problem(line=line, column="(line)", reason="another session keeps this mentor locked; load the file again")
    ]
    app.rollback()
    later = loader(text)

    assert (later.certificates_changed, later.unchanged) == (1, 49)


@pytest.mark.parametrize(("strict", "kept"), [(False, "100 rows of the file are loaded"), (True, "nothing")])
def test_a_load_gives_up_when_other_sessions_hold_everything(
    loader: Loader, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch, strict: bool, kept: str
) -> None:
    """It says how far it got, and that loading again is safe."""
    hurry(monkeypatch)
    loader(many(200))
    app.execute("SELECT FROM mentors WHERE member_no >= 'M000100' FOR NO KEY UPDATE")

    with pytest.raises(MentorBusyError) as refusal:
        loader(many(200, expires_on="2028-01-01"), options=LoadOptions(strict=strict))

    assert kept in str(refusal.value)
    assert "load the same file again, which is safe" in str(refusal.value)
    assert facts.rows("SELECT count(*) FROM certificates WHERE expires_on = '2028-01-01'") == [(0 if strict else 100,)]


def test_two_loads_of_one_file_at_once_share_the_work(loader: Loader, facts: Facts, database_url: str) -> None:
    """Neither fails, nothing is there twice, and both say what they did."""
    text = many(1_200, certificates=2)
    path = loader.directory / "shared.csv"
    path.write_text(text)
    reports: list[LoadReport] = []

    def run() -> None:
        with database.connect(database_url) as connection:
            reports.append(load(connection, path, options=LoadOptions()))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [problem for report in reports for problem in report.problems] == []
    assert [report.loaded for report in reports] == [2_400] * 3
    assert sum(report.mentors_added for report in reports) == 1_200
    assert sum(report.certificates_added for report in reports) == 2_400
    assert facts.rows("SELECT count(*) FROM certificates") == [(2_400,)]


def test_a_load_and_an_app_that_locks_the_other_way_round_both_end(loader: Loader, facts: Facts, app: App) -> None:
    """The app changes a mentor, then a certificate, in one transaction: a deadlock, and the load tries again."""
    loader.rows("hlf,M1,likeperson,2024-02-01,2026-02-01")
    app.execute("SET deadlock_timeout = '10s'")  # the load notices first
    app.execute("UPDATE mentors SET full_name = 'Kari'")

    def change_certificate() -> None:
        app.execute("UPDATE certificates SET revoked_at = now()")
        app.commit()

    other = threading.Timer(0.2, change_certificate)
    other.start()
    report = loader.rows("hlf,M1,likeperson,2024-02-01,2028-02-01")
    other.join()

    assert (report.certificates_changed, loader.rejected) == (1, [])
    assert facts.rows("SELECT expires_on, revoked_at IS NOT NULL FROM certificates") == [(date(2028, 2, 1), True)]


def test_a_stopped_load_says_how_much_is_committed_and_can_be_repeated(
    loader: Loader, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops while the file is read, and between batches; a strict one leaves nothing."""
    hurry(monkeypatch)
    stop = threading.Event()
    with pytest.raises(StoppedBySignalError, match="nothing was loaded"):
        loader(many(250), stop=stop, on_progress=lambda *_: stop.set(), options=LoadOptions(strict=True))
    with pytest.raises(StoppedBySignalError, match="while the file was read; nothing was loaded"):
        loader(many(250), stop=stop)
    assert facts.rows("SELECT FROM mentors") == []
    stop.clear()

    with pytest.raises(StoppedBySignalError) as stopped:
        loader(many(250), stop=stop, on_progress=lambda *_: stop.set())
    repeated = loader(many(250))

    assert str(stopped.value) == (
        "stopped by a signal; 100 rows of the file are loaded; load the same file again, which is safe"
    )
    assert (repeated.unchanged, repeated.certificates_added) == (100, 150)


def test_a_database_that_goes_away_is_an_error_that_tells_what_was_kept(loader: Loader, app: App) -> None:
    """A failover in the middle of a load."""
    pid = loader.connection.info.backend_pid

    def cut(_: int, __: int) -> None:
        app.execute("SELECT pg_terminate_backend(%s)", (pid,))
        app.commit()

    with pytest.raises(DatabaseUnavailableError) as gone:
        loader(many(2_500), on_progress=cut)

    assert str(gone.value) == (
        "the database went away; 1,000 rows of the file are loaded; load the same file again, which is safe"
    )
