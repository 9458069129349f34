"""What other rules would change tonight: the numbers of two runs, and nothing is written."""

from datetime import timedelta
from typing import Any

import pytest

from certjob.errors import ConfigurationError
from certjob.facts.organisations import set_organisation
from certjob.reports.rule_change import RuleChange, Tonight, compare_rules
from tests.support.facts import TODAY, Facts
from tests.support.nights import night


def compare(facts: Facts, **rules: Any) -> RuleChange:
    """What other rules of hlf would change."""
    unchanged = {"portal": None, "thresholds": None, "optional_kinds": None}
    return compare_rules(facts.connection, "hlf", today=TODAY, **unchanged | rules)


def run(facts: Facts) -> None:
    night(facts.connection, deliver=False, allow_mass_change=True)


@pytest.fixture
def settled(facts: Facts) -> Facts:
    """A portal organisation after a night: three in force, one of them in its last month, and two who have ended."""
    hlf, other = facts.organisation(), facts.organisation("lhl")
    for organisation, days in ((hlf, 20), (hlf, 75), (hlf, 80), (hlf, -5), (hlf, -400), (other, 75)):
        facts.certified_mentor(organisation, TODAY + timedelta(days=days))
    run(facts)
    return facts


def test_ninety_days_of_notice_are_two_more_mails_tonight(settled: Facts) -> None:
    """Only this organisation's mentors; who was reminded already is not counted, and the change does what was said."""
    thresholds = [90, 60, 30, 14, 7, 1, -1]
    before = settled.rows("SELECT id, review_on::text FROM mentors ORDER BY id")

    change = compare(settled, thresholds=thresholds)
    untouched = settled.rows("SELECT id, review_on::text FROM mentors ORDER BY id")
    reminders = len(settled.rows("SELECT FROM cert_notification_log"))
    set_organisation(settled.connection, "hlf", thresholds=thresholds)
    run(settled)

    assert (change, untouched) == (RuleChange(now=Tonight(), then=Tonight(reminders=2)), before)
    assert len(settled.rows("SELECT FROM cert_notification_log")) == reminders + 2


def test_what_other_rules_would_do_is_counted_beside_what_happens_anyway(settled: Facts) -> None:
    """Paused people come back and are shown; another portal is told of everybody; those who ended since are in both."""
    change = compare(settled, optional_kinds=["likeperson"])
    assert (change.now, change.then) == (Tonight(), Tonight(resumed=2, shown=2))

    assert compare(settled, portal="none").then == Tonight()
    set_organisation(settled.connection, "hlf", portal="none")
    run(settled)
    assert compare(settled, portal="dynamics").then == Tonight(shown=3, hidden=2)
    set_organisation(settled.connection, "hlf", portal="dynamics")
    run(settled)

    yesterday = TODAY - timedelta(days=1)
    settled.connection.execute("UPDATE certificates SET expires_on = %s WHERE expires_on > %s", (yesterday, TODAY))
    change = compare(settled, thresholds=[])
    assert change == RuleChange(now=Tonight(paused=3, hidden=3, reminders=3), then=Tonight(paused=3, hidden=3))


def test_an_organisation_that_does_not_exist_is_refused(facts: Facts) -> None:
    with pytest.raises(ConfigurationError, match="no organisation 'hlf'"):
        compare(facts)
