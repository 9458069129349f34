"""The session of a command: the time that a job may take."""

import time
from uuid import uuid4

import pytest
from typer.core import TyperCommand

from certjob.cli.session import Call
from certjob.database import Connection
from certjob.settings import Settings
from certjob.stopping import StopFlag


@pytest.mark.parametrize(
    ("lost_after", "rest"),
    [pytest.param(0, 40, id="first start"), pytest.param(25, 15, id="rest"), pytest.param(39, 2, id="at least 2 min")],
)
def test_job_that_starts_again_gets_the_rest_of_its_time(connection: Connection, lost_after: int, rest: int) -> None:
    """A job that lost its database must not meet the time limit of cron."""
    call = Call(TyperCommand("run"), info_name="run", obj=StopFlag())
    call.settings, call.connection = Settings(_env_file=None, database_url="embedded"), connection
    call.began_at, call.run_id = time.monotonic() - lost_after * 60, uuid4()

    seconds = call.job(seconds=40 * 60).deadline_seconds

    assert seconds == pytest.approx(rest * 60, abs=5)
