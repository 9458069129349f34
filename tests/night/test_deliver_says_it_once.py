"""`certjob deliver` runs every 15 minutes: it reports a failing push once, not at each of its tries."""

from datetime import date

from tests.conftest import Certjob
from tests.support.command_line import Finished
from tests.support.facts import Facts
from tests.support.intents import make_due
from tests.support.portal_answers import error, ok
from tests.support.portal_server import PortalServer

LONG_AGO = date(2025, 1, 1)


def test_only_another_mentor_or_another_reason_is_said_again(
    certjob: Certjob, facts: Facts, portal: PortalServer
) -> None:
    """All are tried each time, and `alerts` has them."""
    portal.default = error(502, "dynamics_unavailable")
    organisation = facts.organisation()

    def deliver() -> Finished:
        make_due(facts)
        settings = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key, "CERTJOB_PORTAL_ATTEMPTS": "1"}
        return certjob("deliver", **settings)

    def assert_says(what: str) -> None:
        result = deliver()
        assert (result.returncode, result.stderr) == (3, f"certjob deliver: {what}; see `certjob alerts`\n")

    def assert_quiet() -> None:
        result = deliver()
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")

    for _ in range(2):  # fewer than end the stage
        facts.certified_mentor(organisation, LONG_AGO)
    certjob("run", "--no-deliver")
    assert_says("2 portal pushes failed")
    calls = len(portal.requests)
    assert_quiet()
    assert_quiet()
    assert len(portal.requests) == calls + 4
    assert certjob("alerts").returncode == 3

    facts.certified_mentor(organisation, LONG_AGO)
    certjob("run", "--no-deliver")
    assert_says("1 portal push failed")
    assert_quiet()

    # The portal is back, and does not know one of them; the others' failures are over, and would be new again.
    portal.then(error(404, "contact_not_found"))
    portal.default = ok()
    assert_says("1 portal push failed")
