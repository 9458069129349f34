"""What `certjob load` costs beside a bare COPY of the same file and the same upsert."""

import time
from datetime import timedelta
from pathlib import Path

from certjob.database import Connection
from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import certjob
from tests.benchmarks.figures import Figure, in_turns, per_second
from tests.benchmarks.population import run_script, today

_STAGE = """
    CREATE TEMPORARY TABLE bare_rows (
        organisation text, member_no text, full_name text, email text, kind text, issued_on date, expires_on date
    ) ON COMMIT DROP
"""
_ORGANISATIONS = "INSERT INTO organisations (slug, name) SELECT 'org' || n, 'O' || n FROM generate_series(1, 5) AS n"
_LOADED = "SELECT count(*), count(DISTINCT mentor_id), sum(expires_on - issued_on) FROM certificates"


def run(bench: Bench) -> list[Figure]:
    """A file with one certificate for each mentor, into an empty database."""
    rows = max(bench.mentors // 10, 1)
    bench.say(f"a file of {rows:,} rows")
    path = bench.folder / "roster.csv"
    _write_file(path, rows)
    loaded: dict[str, object] = {}
    peaks: list[float] = []
    with bench.server.fresh("bench_load") as template:
        with bench.server.connect(template) as connection:
            connection.execute(_ORGANISATIONS.encode())

        def ours() -> float:
            bench.say("  certjob load")
            with bench.server.copy(template) as name:
                done = certjob("load", str(path), "--json", database_url=bench.server.url(name))
                peaks.append(done.peak_mb)
                with bench.server.connect(name) as connection:
                    loaded["ours"] = connection.execute(_LOADED.encode()).fetchall()
            return done.seconds

        def bare() -> float:
            bench.say("  COPY and two upserts")
            with bench.server.copy(template) as name, bench.server.connect(name) as connection:
                began = time.perf_counter()
                _load_bare(connection, path)
                took = time.perf_counter() - began
                loaded["bare"] = connection.execute(_LOADED.encode()).fetchall()
            return took

        ratio = in_turns(ours, bare, rounds=bench.rounds)
    if loaded["ours"] != loaded["bare"]:
        raise RuntimeError(str(loaded))
    return [
        Figure(
            part="load",
            name=f"{rows:,} rows, new",
            ours=per_second(rows, ratio.ours, "rows"),
            reference=f"{per_second(rows, ratio.reference, 'rows')}, COPY and upsert",
            ratio=ratio,
            notes=f"whole process, every row checked, {max(peaks):.0f} MB",
        )
    ]


def _write_file(path: Path, rows: int) -> None:
    day = today()
    with path.open("w", encoding="utf-8") as file:
        file.write("organisation,member_no,full_name,email,kind,issued_on,expires_on\n")
        for number in range(rows):
            expires_on = day + timedelta(days=number % 727 - 60)
            file.write(
                f"org{number % 5 + 1},M{number},Mentor {number},m{number}@example.org,likeperson,"
                f"{expires_on - timedelta(days=730)},{expires_on}\n"
            )


def _load_bare(connection: Connection, path: Path) -> None:
    with connection.transaction():
        connection.execute(_STAGE.encode())
        with (
            path.open("rb") as file,
            connection.cursor() as cursor,
            cursor.copy(b"COPY pg_temp.bare_rows FROM STDIN (FORMAT csv, HEADER)") as copy,
        ):
            while block := file.read(1 << 20):
                copy.write(block)
        connection.execute("ANALYZE bare_rows")
        run_script(connection, "bare_load.sql")
