"""The rules in Python against the same rules in SQL, which were written for the benchmarks."""

from contextlib import contextmanager

from certjob import database
from tests.benchmarks.bench import populate, set_based_night
from tests.benchmarks.night import compare_states
from tests.conftest import fresh_database
from tests.support.command_line import today
from tests.support.nights import EVERYTHING, night


def test_first_night_writes_the_same_rows_as_set_based_sql(server_url: str, database_url: str) -> None:
    """1,500 mentors with one to three certificates, in two copies of a database. For a tenth one ended yesterday."""
    with database.connect(database_url) as connection:
        for is_due in (False, True):
            populate(connection, 1_500, due_percent=10, is_due=is_due)
        name = connection.info.dbname

    with (
        contextmanager(fresh_database)(server_url, name) as copied_url,
        database.connect(database_url) as ours,
        database.connect(copied_url) as reference,
    ):
        night(ours, today(), deliver=False, allow=EVERYTHING)
        set_based_night(reference, today())

        assert compare_states(ours, reference) > 5_000
