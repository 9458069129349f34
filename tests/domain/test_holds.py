"""The guards' rule: which kinds of changes are held, for which numbers."""

from collections import Counter

import pytest

from certjob.domain import rules
from certjob.domain.holds import is_permitted, judge
from certjob.domain.models import Change

ANY_KIND = pytest.mark.parametrize("what", list(Change))


NONE = Counter[str]()


def held(counts: Counter[str], certified: int = 0, *, past: Counter[str] = NONE, allow: int = 0) -> list[str]:
    return list(judge(counts, past=past, certified=certified, allow=allow))


@ANY_KIND
@pytest.mark.parametrize(
    ("changes", "certified", "is_held"),
    [(20, 0, False), (21, 0, True), (21, 209, True), (21, 210, False), (60, 600, False), (61, 609, True)],
)
def test_limit_is_twenty_or_a_tenth_of_the_certified(what: str, changes: int, certified: int, is_held: bool) -> None:
    assert held(Counter({what: changes}), certified) == ([what] if is_held else [])


def test_each_kind_is_judged_alone_with_its_changes_of_the_last_20_hours() -> None:
    assert held(Counter(pauses=15, returns=15)) == []
    assert held(Counter(pauses=6, returns=6), past=Counter(pauses=15)) == ["pauses"]
    assert held(NONE, past=Counter(pauses=99)) == held(Counter(returns=1), past=Counter(pauses=99)) == []


def test_permission_is_for_both_kinds_together_and_for_the_whole_run() -> None:
    """With one change more than permitted, all of them stay held."""
    assert held(Counter(pauses=30, returns=30), allow=60) == []
    assert held(Counter(pauses=30, returns=31), allow=60) == ["pauses", "returns"]
    assert is_permitted(Counter(pauses=10), past=Counter(permitted=50, pauses=50), allow=60)
    assert held(Counter(pauses=1), past=Counter(permitted=60, pauses=60), allow=60) == ["pauses"]


def test_reminders_are_counted_alone_and_for_one_run() -> None:
    most = rules.MASS_REMINDER_LIMIT
    assert held(Counter(reminders=most)) == held(Counter(pauses=20, reminders=most)) == []
    assert (
        held(Counter(reminders=1), past=Counter(reminders=most)) == held(Counter(reminders=most + 1)) == ["reminders"]
    )
    assert held(Counter(reminders=most + 1), allow=most + 1) == []


@ANY_KIND
def test_smallest_limit_holds_whatever_a_larger_one_holds(what: str) -> None:
    """So the certified mentors are counted only if the smallest limit is exceeded."""
    for changes in range(0, 300, 7):
        assert set(held(Counter({what: changes}), 1_000)) <= set(held(Counter({what: changes})))
