"""The benchmarks compare fairly."""

from contextlib import contextmanager

from certjob import database
from tests.benchmarks.bench import populate, set_based_night
from tests.benchmarks.night import compare_states
from tests.conftest import fresh_database
from tests.support.command_line import today
from tests.support.nights import EVERYTHING, night


def test_night_and_set_based_sql_end_in_the_same_state(server_url: str, database_url: str) -> None:
    """The rules in Python and the rules in SQL write the same rows."""
    with database.connect(database_url) as one:
        populate(one, 1_500)
        name = one.info.dbname
    with contextmanager(fresh_database)(server_url, name) as copied_url, database.connect(copied_url) as other:
        with database.connect(database_url) as one:
            report = night(one, today(), deliver=False, allow=EVERYTHING)
        set_based_night(other)

        assert report.review is not None
        assert report.review.reviewed == 1_500
        with database.connect(database_url) as one:
            assert compare_states(one, other) > 5_000
