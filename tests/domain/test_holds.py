"""The guards' rule: which kinds of changes are held, for which numbers."""

from collections import Counter

import pytest

from certjob.domain.holds import LIMITS, MENTORS, REMINDED, Past, held_kinds
from certjob.domain.models import Change, Effect

NONE = Counter[str]()


def held(
    *counts: tuple[str, int], certified: int = 0, past: Past | None = None, allow: int = 0, is_after_gap: bool = False
) -> list[str]:
    """Return the held kinds. Each change is one of another mentor."""
    numbers = Counter(dict(counts))
    numbers[MENTORS] = sum(number for kind, number in counts if kind in LIMITS and kind != Change.REMINDER)
    return list(held_kinds(numbers, past=past or Past(), certified=certified, allow=allow, is_after_gap=is_after_gap))


@pytest.mark.parametrize(
    ("kind", "minimum", "certified", "share", "most"),
    [
        (Change.REMOVAL, 10, 300, 30, 50),
        (Change.REMINDER, 10, 300, 30, 50),
        (Change.CONTACT, 20, 200, 40, 50),
        (Change.COURSE, 40, 5_000, 100, None),
        (Change.RETURN, 10, 5_000, 10, 10),
        (Change.DEPARTURE, 20, 5_000, 500, None),
        (Change.REINSTATEMENT, 20, 5_000, 500, None),
        (Change.AFTER_GAP, 20, 5_000, 500, None),
    ],
)
def test_limits_of_the_owners_table(kind: str, minimum: int, certified: int, share: int, most: int | None) -> None:
    """The larger of a number and a share of the certified mentors, but never more than a third number."""
    for limit, of_certified in ((minimum, 0), (share, certified), *([(most, 1_000_000)] if most else [])):
        assert held((kind, limit), certified=of_certified) == []
        assert held((kind, limit + 1), certified=of_certified) == [kind]


def test_each_kind_is_judged_alone_with_its_changes_of_the_last_20_hours() -> None:
    past = Past(counted=Counter(pauses=8))

    assert held(("pauses", 8), ("returns", 8)) == []
    assert held(("pauses", 3), ("returns", 3), past=past) == ["pauses"]
    assert held(past=Past(counted=Counter(pauses=99))) == []
    assert held(("returns", 1), past=Past(counted=Counter(pauses=99))) == []


def test_permission_is_for_all_kinds_together_and_for_the_whole_run() -> None:
    """With one change more than permitted, all of them stay held."""
    assert held(("pauses", 30), ("returns", 30), allow=60) == []
    assert held(("pauses", 30), ("returns", 31), allow=60) == ["pauses", "returns"]
    permitted = Past(permitted=Counter(pauses=60, mentors=60))
    assert held(("pauses", 1), past=permitted, allow=61) == []
    assert held(("pauses", 1), past=permitted, allow=60) == ["pauses"]


def test_permission_is_also_for_as_many_reminders() -> None:
    assert held(("pauses", 60), ("reminders", 60), allow=60) == []
    assert held(("pauses", 60), ("reminders", 61), allow=60) == ["reminders"]
    permitted = Past(permitted=Counter(reminders=60))
    assert held(("reminders", 1), past=permitted, allow=60) == ["reminders"]


def test_while_changes_after_a_gap_are_held_no_reminder_is_sent() -> None:
    assert held(("after_gap", 21), (REMINDED, 1), is_after_gap=True) == ["after_gap", "reminders"]
    assert held(("after_gap", 20), (REMINDED, 1), is_after_gap=True) == []
    assert held(("after_gap", 21), (REMINDED, 1), is_after_gap=True, allow=21) == []
    assert held(("pauses", 21), (REMINDED, 1)) == ["pauses"]


def test_reason_names_last_days_that_move_earlier() -> None:
    counts = Counter({Change.REMOVAL: 60, MENTORS: 60, Effect.ENDS_SOON: 48, Effect.ENDS_EARLIER: 1})

    reasons = held_kinds(counts, past=Past(counted=Counter(pauses=2)), certified=300, allow=0)

    assert reasons == {
        "pauses": "11 mentors would be paused or hidden, 48 would end within 60 days, 1 would end earlier after 2 in"
        " the last 20 hours, the limit is 30 (of 300 certified)"
    }


@pytest.mark.parametrize("kind", list(Change))
def test_smallest_limit_holds_whatever_a_larger_one_holds(kind: str) -> None:
    """So the certified mentors are counted only if the smallest limit is exceeded."""
    for changes in range(0, 300, 7):
        assert set(held((kind, changes), certified=1_000)) <= set(held((kind, changes)))


@pytest.mark.parametrize("kind", list(Change))
def test_more_changes_hold_at_least_as_much(kind: str) -> None:
    """So a bound can stand for the counts."""
    for changes in range(100):
        assert set(held((kind, changes), certified=500)) <= set(held((kind, changes + 1), certified=500))
