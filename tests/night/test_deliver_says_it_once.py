"""`certjob deliver` runs every 15 minutes: it reports a failing push once, not at each of its tries."""

from collections.abc import Callable, Iterator
from datetime import date
from uuid import UUID

import pytest

from tests.conftest import Certjob
from tests.support.command_line import Finished
from tests.support.facts import Facts
from tests.support.portal_answers import error, ok
from tests.support.portal_server import PortalServer

LONG_AGO = date(2025, 1, 1)

Deliver = Callable[[], Finished]


@pytest.fixture
def portal() -> Iterator[PortalServer]:
    with PortalServer(default=error(502, "dynamics_unavailable")) as server:
        yield server


@pytest.fixture
def deliver(certjob: Certjob, portal: PortalServer, facts: Facts) -> Deliver:
    """Run it once every open push is due again; one call each, so that nobody waits."""

    def run() -> Finished:
        facts.connection.execute("UPDATE portal_sync_events SET next_attempt_at = now()")
        settings = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key, "CERTJOB_PORTAL_ATTEMPTS": "1"}
        return certjob("deliver", **settings)

    return run


def two_failing(certjob: Certjob, facts: Facts, deliver: Deliver) -> UUID:
    """Fewer than end the stage; the first `deliver` has said so."""
    organisation = facts.organisation()
    for _ in range(2):
        facts.certified_mentor(organisation, LONG_AGO)
    certjob("run", "--no-deliver")
    assert_says(deliver(), "2 portal pushes failed")
    return organisation


def assert_says(result: Finished, what: str) -> None:
    assert (result.returncode, result.stderr) == (3, f"certjob deliver: {what}; see `certjob alerts`\n")


def assert_quiet(result: Finished) -> None:
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_same_mentors_for_the_same_reason_are_said_once(
    certjob: Certjob, facts: Facts, deliver: Deliver, portal: PortalServer
) -> None:
    """They are tried each time, and `alerts` has them."""
    two_failing(certjob, facts, deliver)
    calls = len(portal.requests)

    assert_quiet(deliver())
    assert_quiet(deliver())

    assert len(portal.requests) == calls + 4
    assert certjob("alerts").returncode == 3


def test_another_mentor_is_said(certjob: Certjob, facts: Facts, deliver: Deliver) -> None:
    """And only that one."""
    organisation = two_failing(certjob, facts, deliver)
    facts.certified_mentor(organisation, LONG_AGO)
    certjob("run", "--no-deliver")

    assert_says(deliver(), "1 portal push failed")
    assert_quiet(deliver())


def test_another_reason_is_said(certjob: Certjob, facts: Facts, deliver: Deliver, portal: PortalServer) -> None:
    """The portal is back, and does not know one of them; the other one's failure is over, and would be new again."""
    two_failing(certjob, facts, deliver)
    portal.then(error(404, "contact_not_found"), ok())

    assert_says(deliver(), "1 portal push failed")
