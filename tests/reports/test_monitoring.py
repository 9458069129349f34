"""External monitoring: pings at the beginning and the end of a run, which change nothing about it."""

import json
import time
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
from tests.support.smtp_server import server_tls

LONG_AGO = date(2025, 1, 1)
DEAD = f"http://127.0.0.1:1/{SECRET_PATH}"
WARNING = "certjob run: warning: {}; the run itself is not touched\n"


@pytest.fixture
def host() -> Iterator[PingHost]:
    with ping_host() as host:
        yield host


@pytest.fixture
def here(here: Certjob, tmp_path: Path) -> Certjob:
    """A cron line whose night needs nobody; what it says holds no secret."""

    def run(*arguments: str, **settings: str) -> Finished:
        result = here(*arguments, **{"CERTJOB_NOTIFY_URL": f"maildir:{tmp_path / 'maildir'}"} | settings)
        assert_no_secret(result)
        assert SECRET_PATH not in result.stdout + result.stderr
        return result

    return run


def test_a_night_tells_its_beginning_and_its_end(here: Certjob, facts: Facts, host: PingHost) -> None:
    """POST, the same rid, which is the run's id; at the end counts only, nobody's id or name."""
    mentor = facts.certified_mentor(facts.organisation(portal=None), LONG_AGO)

    result = here("run", "--json", CERTJOB_PING_URL=host.url)

    run_id = json.loads(result.stdout)["run_id"]
    assert (result.returncode, result.stderr) == (0, "")
    assert [(ping.what, ping.run_id) for ping in host.pings] == [("start", run_id), ("", run_id)]
    start, end = (ping.body for ping in host.pings)
    assert (start, end["exit_code"], end["mentors"]["paused"]) == ({}, 0, 1)
    assert str(mentor) not in json.dumps(end)
    assert sorted(name for name, part in end.items() if isinstance(part, str)) == ["command", "outcome", "today"]
    numbers = [number for part in end.values() if isinstance(part, dict) for number in part.values()]
    assert {type(number) for number in numbers} == {int}


def test_a_second_check_hears_what_needs_attention_and_the_first_that_the_night_ran(
    here: Certjob, facts: Facts, host: PingHost
) -> None:
    """A push blocked for weeks rings there, and hides no night that never ran; alone, a check hears the code.

    A night that failed is the first one's business: whether something needs attention, nobody knows then. Without
    readable settings nobody can be told.
    """
    facts.organisation(portal=None)
    with ping_host() as second:
        both = {"CERTJOB_PING_URL": host.url, "CERTJOB_ATTENTION_PING_URL": second.url}
        for settings, code, first_hears, second_hears in (
            ({}, 0, ["start", ""], [""]),
            ({"CERTJOB_DATABASE_URL": "postgresql://certjob@127.0.0.1:1/certjob"}, 1, ["start", "1"], []),
            ({"CERTJOB_MAIL_FROM": "nobody"}, 2, ["start", "2"], []),
            ({"CERTJOB_DATABASE_URL": "postgresql://a:b@c@127.0.0.1/x"}, 2, ["start", "2"], []),
            ({"CERTJOB_TIME_ZONE": "Europe/Nowhere"}, 2, [], []),
        ):
            assert here("run", **both, **settings).returncode == code
            assert (host.told, second.told) == (first_hears, second_hears)
            assert code == 0 or [ping.body for ping in host.pings[1:]] == [{"exit_code": code} for _ in first_hears[1:]]
            host.pings.clear()
            second.pings.clear()

        facts.certified_mentor(facts.organisation("nhf"), LONG_AGO)
        alone = here("run", CERTJOB_PING_URL=host.url)
        here("run", **both)
        assert (alone.returncode, host.told, second.told) == (3, ["start", "3", "start", ""], ["fail"])
        assert second.pings[0].body == host.pings[3].body
        assert (host.pings[1].body["exit_code"], host.pings[1].body["stop_codes"]) == (3, ["portal:no_url"])


def test_only_nights_ping(here: Certjob, facts: Facts, host: PingHost) -> None:
    """One address has one schedule: a delivery, or one organisation's run, would hide that no night has run."""
    facts.organisation("hlf", portal=None)
    for arguments in ("run --dry-run", "run --organisation hlf", "deliver", "alerts", "status"):
        here(*arguments.split(), CERTJOB_PING_URL=host.url)
        assert host.pings == [], arguments


def test_a_check_that_does_not_hear_is_a_line_of_its_own_and_changes_nothing(
    here: Certjob, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With -q too, and the other is told; what failed is tried once more, for ten seconds at most, here shortened."""
    assert pings.TOTAL_SECONDS == 10.0
    monkeypatch.setattr(pings, "PAUSE_SECONDS", 0.01)
    missed = WARNING.format("the ping to {} did not get through: {}")
    with ping_host() as second:
        both = here("run", "-q", CERTJOB_PING_URL=DEAD, CERTJOB_ATTENTION_PING_URL=f"{DEAD}-2")
        one = here("run", "-v", CERTJOB_LOG_FORMAT="json", CERTJOB_PING_URL=DEAD, CERTJOB_ATTENTION_PING_URL=second.url)
    away = missed.format("CERTJOB_PING_URL", "its host cannot be reached")
    assert both.stderr == away + away.replace("PING_URL", "ATTENTION_PING_URL")
    assert (both.returncode, one.returncode, second.told) == (0, 0, [""])
    assert "CERTJOB_PING_URL" in one.stderr  # and its address is not

    cases: list[tuple[list[int | None], list[str], str]] = [
        ([500, 200], ["start", "start", ""], ""),
        ([429, 429], ["start", "start", ""], "its host answered 429"),
        ([503, 503], ["start", "start", ""], "its host answered 503"),
        ([302, 302], ["start", "start", ""], "its host answered 302, so it is not a ping address"),
        ([None, None], ["start", ""], "its host did not answer in time"),
    ]
    for answers, told, reason in cases:
        monkeypatch.setattr(pings, "TOTAL_SECONDS", 1.0 if None in answers else 10.0)
        began = time.monotonic()
        with ping_host(answers) as host:
            result = here("run", CERTJOB_PING_URL=host.url)
        assert (result.returncode, host.told) == (0, told), answers
        assert result.stderr == (missed.format("CERTJOB_PING_URL", reason) if reason else "")
        assert time.monotonic() - began < 8

    with ping_host(tls=server_tls()) as host:  # the address is the secret; it is not told to whoever answers
        refused = here("run", CERTJOB_PING_URL=host.url)
        assert (refused.returncode, host.told) == (0, [])
        assert "its host's certificate is not trusted" in refused.stderr
    assert facts.rows("SELECT DISTINCT outcome FROM job_runs") == [("ok",)]


def test_a_night_that_is_stopped_tells_so_in_time(environment: dict[str, str], facts: Facts, tmp_path: Path) -> None:
    """Also when the host of the pings says nothing: it has a second, here after a grace of half a one."""
    facts.certified_mentor(facts.organisation(), LONG_AGO)
    with PortalServer(default=hang()) as portal, ping_host([200, None]) as host:
        environment |= {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key}
        environment |= {"CERTJOB_PING_URL": host.url}
        with started("run", environment=environment, folder=tmp_path, grace=0.5) as child:
            portal.wait_until(lambda: len(portal.requests) == 1, timeout_seconds=60)
            result = child.stop_within(6)

    assert (result.returncode, "stopped by SIGTERM" in result.stderr, host.told[:2]) == (1, True, ["start", "1"])
