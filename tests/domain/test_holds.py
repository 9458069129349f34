"""The guards' rule: which surprising changes are held, for which numbers."""

from collections import Counter

import pytest

from certjob.domain.holds import held_changes, hold_reason, limit
from certjob.domain.models import Change, Effect

REMOVAL, RETURN, VISIBILITY, REMINDER = Change.REMOVAL, Change.RETURN, Change.VISIBILITY, Change.REMINDER


def held(now: dict[Change, int], *, certified: int = 0, past: dict[Change, int] | None = None) -> set[Change]:
    return set(held_changes(Counter(now), past=Counter(past or {}), certified=certified))


@pytest.mark.parametrize(("certified", "most"), [(0, 20), (146, 20), (147, 21), (349, 49), (350, 50), (1_000_000, 50)])
def test_limit_is_twenty_or_a_seventh_of_the_certified_and_at_most_fifty(certified: int, most: int) -> None:
    assert limit(certified) == most
    for kind in (REMOVAL, VISIBILITY, REMINDER):
        assert held({kind: most}, certified=certified) == set()
        assert held({kind: most + 1}, certified=certified) == {kind}


def test_ten_returns_without_a_recent_certificate_are_the_limit_of_any_organisation() -> None:
    assert held({RETURN: 10}, certified=5_000) == set()
    assert held({RETURN: 11}, certified=5_000) == {RETURN}


def test_removals_go_out_while_other_changes_of_visibility_are_held() -> None:
    """Fifteen new mentors must not hold a revocation."""
    assert held({REMOVAL: 15, VISIBILITY: 4, RETURN: 2}) == {VISIBILITY, RETURN}
    assert held({REMOVAL: 21, VISIBILITY: 1}) == {REMOVAL, VISIBILITY}


def test_reminders_are_counted_alone() -> None:
    assert held({REMOVAL: 20, REMINDER: 20}) == set()
    assert held({REMOVAL: 1, REMINDER: 21}) == {REMINDER}


def test_changes_of_the_last_twenty_hours_add_up() -> None:
    assert held({REMOVAL: 3}, past={REMOVAL: 17}) == set()
    assert held({REMOVAL: 3}, past={REMOVAL: 18}) == {REMOVAL}
    assert held({VISIBILITY: 3}, past={REMOVAL: 18}) == {VISIBILITY}
    assert held({REMINDER: 1}, past={REMOVAL: 99}) == set()
    assert held({}, past=dict.fromkeys(Change, 99)) == set()


@pytest.mark.parametrize("kind", list(Change))
def test_more_mentors_hold_at_least_as_much(kind: Change) -> None:
    """So a bound can stand for the counts, and the certified are counted only above the smallest limit."""
    for mentors in range(100):
        assert held({kind: mentors}, certified=500) <= held({kind: mentors + 1}, certified=500)
        assert held({kind: mentors}, certified=500) <= held({kind: mentors})


def test_reason_has_the_number_of_mentors_and_what_would_happen() -> None:
    effects = {Effect.REMINDER: 2, Effect.REVOKED: 1, Effect.ENDS_SOON: 40}

    assert hold_reason(effects) == "43 mentors are held back (1 revoked, 40 ends soon, 2 reminder)"
    assert hold_reason({Effect.LEFT: 1}) == "1 mentor is held back (1 left)"
