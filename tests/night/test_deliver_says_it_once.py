"""`certjob deliver` runs every 15 minutes: it reports a failing push once, not at each of its tries."""

from datetime import date

from tests.conftest import Certjob
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

    settings = {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key, "CERTJOB_PORTAL_ATTEMPTS": "1"}

    def a_mentor_expires() -> None:
        facts.certified_mentor(organisation, LONG_AGO)
        certjob("run", "--no-deliver")

    def deliver_says(what: str) -> None:
        make_due(facts)
        result = certjob("deliver", **settings)
        line = f"certjob deliver: {what}; see `certjob alerts`\n" if what else ""
        assert (result.returncode, result.stdout, result.stderr) == (3 if what else 0, "", line)

    a_mentor_expires()
    a_mentor_expires()  # fewer than end the stage
    deliver_says("2 portal pushes failed")
    calls = len(portal.requests)
    deliver_says("")
    deliver_says("")
    assert len(portal.requests) == calls + 4
    assert certjob("alerts").returncode == 3

    a_mentor_expires()
    deliver_says("1 portal push failed")
    deliver_says("")

    # The portal is back, and does not know one of them; the others' failures are over, and would be new again.
    portal.then(error(404, "contact_not_found"))
    portal.default = ok()
    deliver_says("1 portal push failed")
