"""What other rules would change tonight: the numbers of two runs, and nothing is written."""

from datetime import timedelta
from uuid import uuid4

import pytest

from certjob import database
from certjob.errors import ConfigurationError
from certjob.facts.organisations import set_organisation
from certjob.night import nightly
from certjob.night.nightly import NightOptions
from certjob.stopping import StopFlag
from certjob.views.rule_change import RuleChange, Tonight, compare_rules
from tests.support.facts import TODAY, Facts
from tests.support.nights import NoProgress, delivery


def run(connection: database.Connection) -> None:
    nightly.run(
        connection,
        options=NightOptions(today=TODAY, deliver=False, allow_mass_change=True),
        delivery=delivery(),
        stop=StopFlag(),
        progress=NoProgress(),
    )


@pytest.fixture
def settled(connection: database.Connection, facts: Facts) -> database.Connection:
    """A portal organisation after a night: three in force, one of them in its last month, and two who have ended."""
    organisation = facts.organisation()
    for days in (20, 75, 80, -5, -400):
        facts.certified_mentor(organisation, TODAY + timedelta(days=days), contact_id=uuid4())
    other = facts.organisation("lhl")
    facts.certified_mentor(other, TODAY + timedelta(days=75))
    run(connection)
    return connection


def compare(connection: database.Connection, **rules: object) -> RuleChange:
    return compare_rules(
        connection,
        "hlf",
        today=TODAY,
        **({"portal": None, "thresholds": None, "optional_kinds": None} | rules),  # type: ignore[arg-type]
    )


def test_ninety_days_of_notice_are_two_more_mails_tonight(settled: database.Connection, facts: Facts) -> None:
    """Only this organisation's mentors; who was reminded already is not counted, and the change does what was said."""
    thresholds = [90, 60, 30, 14, 7, 1, -1]
    before = facts.rows("SELECT id, review_on::text FROM mentors ORDER BY id")

    change = compare(settled, thresholds=thresholds)
    untouched = facts.rows("SELECT id, review_on::text FROM mentors ORDER BY id")
    reminders = len(facts.rows("SELECT FROM cert_notification_log"))
    set_organisation(settled, "hlf", thresholds=thresholds)
    run(settled)

    assert change == RuleChange(now=Tonight(), then=Tonight(reminders=2))
    assert untouched == before
    assert len(facts.rows("SELECT FROM cert_notification_log")) == reminders + 2


def test_a_kind_that_becomes_optional_brings_the_paused_back(settled: database.Connection) -> None:
    """And shows them."""
    change = compare(settled, optional_kinds=["likeperson"])

    assert (change.now, change.then) == (Tonight(), Tonight(resumed=2, shown=2))


def test_what_would_happen_anyway_is_in_both_numbers(settled: database.Connection, facts: Facts) -> None:
    """A mentor whose certificate has ended meanwhile is paused by the rules as they are, too."""
    settled.execute("UPDATE certificates SET expires_on = %s WHERE expires_on > %s", (TODAY - timedelta(days=1), TODAY))

    change = compare(settled, thresholds=[])

    assert change == RuleChange(now=Tonight(paused=3, hidden=3, reminders=3), then=Tonight(paused=3, hidden=3))


def test_another_portal_is_told_of_everybody(settled: database.Connection) -> None:
    """Nobody knows what a new one shows; without one nobody is called for."""
    assert compare(settled, portal="none").then == Tonight()
    set_organisation(settled, "hlf", portal="none")
    run(settled)
    assert compare(settled, portal="dynamics").then == Tonight(shown=3, hidden=2)


def test_an_organisation_that_does_not_exist_is_refused(connection: database.Connection) -> None:
    with pytest.raises(ConfigurationError, match="no organisation 'hlf'"):
        compare(connection)
