"""How a run says why it needs attention, a line each."""

from collections.abc import Sequence, Set
from uuid import UUID

from certjob.portal.comparison import Comparison
from certjob.review.plan import LOCKED, ReviewCounts

_MOST_NAMES = 5


def differing(comparison: Comparison) -> list[str]:
    """What a reading of the portal leaves for people to do."""
    lines = counted(
        len(comparison.unknown),
        "contact on the portal does not belong to any mentor",
        "contacts on the portal do not belong to any mentor",
        see_alerts=True,
    )
    lines += _listed(
        [each.member_no for each in comparison.locked],
        "mentor is locked by another session and not corrected, run `certjob reconcile` again",
        "mentors are locked by another session and not corrected, run `certjob reconcile` again",
    )
    return lines


def named(review: ReviewCounts, *, known: Set[UUID]) -> list[str]:
    """The mentors that need attention, by id: the first few of each kind (the JSON document has all).

    Someone knows about those of ``known``.
    """
    broken = [f"{mentor_id} ({reason})" for mentor_id, reason in review.broken.items() if mentor_id not in known]
    skipped = [mentor_id for mentor_id in review.skipped if mentor_id not in known]
    lines = _listed(skipped, f"mentor was skipped ({LOCKED})", f"mentors were skipped ({LOCKED})")
    return lines + _listed(broken, "mentor is broken", "mentors are broken")


def counted(number: int, singular: str, plural: str, *, see_alerts: bool = False) -> list[str]:
    """Return a line about so many, none about none."""
    if not number:
        return []
    text = f"1 {singular}" if number == 1 else f"{number:,} {plural}"
    return [f"{text}; see `certjob alerts`" if see_alerts else text]


def _listed(names: Sequence[object], singular: str, plural: str) -> list[str]:
    few = ", ".join(map(str, names[:_MOST_NAMES]))
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return [f"{count}: {few}{more}" for count in counted(len(names), singular, plural)]
