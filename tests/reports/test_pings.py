"""The ping at the end of a run."""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from certjob.reports import pings
from tests.conftest import Certjob
from tests.support.command_line import Finished, assert_no_secret, started
from tests.support.facts import Facts
from tests.support.ping_host import SECRET_PATH, PingHost, ping_host
from tests.support.portal_answers import hang
from tests.support.portal_server import PortalServer

LONG_AGO = date(2025, 1, 1)
WARNING = "certjob run: warning: the ping to CERTJOB_PING_URL failed: {}; the run itself is not affected\n"


@pytest.fixture
def host() -> Iterator[PingHost]:
    with ping_host() as host:
        yield host


@pytest.fixture
def here(here: Certjob, tmp_path: Path) -> Certjob:
    """A command with a mail channel, whose output must not contain the secret address."""

    def run(*arguments: str, **settings: str) -> Finished:
        result = here(*arguments, **{"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}"} | settings)
        assert_no_secret(result)
        assert SECRET_PATH not in result.stdout + result.stderr
        return result

    return run


def test_ping_of_a_run_that_did_its_work_is_a_success(here: Certjob, facts: Facts, host: PingHost) -> None:
    """Exit 0 and exit 3 are a POST with the run's id; the body has numbers and codes, without data about people."""
    facts.certified_mentor(facts.organisation(portal=None), LONG_AGO)
    quiet = here("run", "--json", CERTJOB_PING_URL=host.url)
    facts.certified_mentor(facts.organisation("nhf"), LONG_AGO)
    attention = here("run", "--json", CERTJOB_PING_URL=host.url)

    run_ids = [json.loads(result.stdout)["run_id"] for result in (quiet, attention)]
    assert (quiet.returncode, attention.returncode) == (0, 3)
    assert [(ping.what, ping.run_id) for ping in host.pings] == [("", run_id) for run_id in run_ids]
    assert [ping.body for ping in host.pings] == [
        {"exit_code": 0, "alerts": {}, "stopped": []},
        {"exit_code": 3, "alerts": {"may_be_visible": 1}, "stopped": ["portal:no_url"]},
    ]


def test_ping_of_a_run_that_failed_is_a_failure(here: Certjob, host: PingHost) -> None:
    """A monitor reports it at once."""
    for settings, code in (
        ({"CERTJOB_DATABASE_URL": "postgresql://certjob@127.0.0.1:1/certjob"}, 1),
        ({"CERTJOB_DATABASE_URL": "postgresql://a:b@c@127.0.0.1/x"}, 2),
    ):
        host.pings.clear()

        result = here("run", CERTJOB_PING_URL=host.url, **settings)

        assert result.returncode == code
        assert [(ping.what, ping.body) for ping in host.pings] == [("fail", {"exit_code": code})]


def test_only_a_full_run_makes_a_ping(here: Certjob, facts: Facts, host: PingHost) -> None:
    """Any other ping would hide that no full run took place."""
    facts.organisation("hlf", portal=None)

    for arguments in ("run --dry-run", "run --organisation hlf", "deliver"):
        here(*arguments.split(), CERTJOB_PING_URL=host.url)

    assert host.pings == []


def test_failed_ping_is_repeated_once_and_is_only_a_warning(
    here: Certjob, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are recorded as successes."""
    monkeypatch.setattr(pings, "PAUSE_SECONDS", 0.01)

    with ping_host([500, 200, 503, 503, 404, 404]) as host:
        repeated, unavailable, wrong = (here("run", CERTJOB_PING_URL=host.url) for _ in range(3))

    assert [result.returncode for result in (repeated, unavailable, wrong)] == [0, 0, 0]
    assert repeated.stderr == ""
    assert unavailable.stderr == WARNING.format("its host answered 503")
    assert wrong.stderr == WARNING.format("its host answered 404")
    assert host.told == [""] * 6
    assert facts.rows("SELECT outcome FROM job_runs") == [("ok",)] * 3


@pytest.mark.usefixtures("facts")
def test_silent_host_gets_one_ping_with_a_limit(here: Certjob, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is ten seconds, here less."""
    monkeypatch.setattr(pings, "TOTAL_SECONDS", 0.3)

    with ping_host([None]) as host:
        result = here("run", CERTJOB_PING_URL=host.url)

    assert (result.returncode, host.told) == (0, [""])
    assert result.stderr == WARNING.format("its host did not answer in time")


def test_stopped_run_makes_its_ping_in_time(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """A monitor that does not answer has one second, here after a grace of half a second."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    with PortalServer(default=hang()) as portal, ping_host([None]) as host:
        environment |= portal.settings | {"CERTJOB_PING_URL": host.url}
        with started("run", environment=environment, folder=tmp_path, grace=0.5) as child:
            portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
            result = child.stop_within(6)

    assert (result.returncode, "stopped by SIGTERM" in result.stderr, host.told) == (1, True, ["fail"])
