"""How a run says why it needs attention, a line each."""

from collections.abc import Sequence
from uuid import UUID

from certjob.portal.comparison import Comparison, Difference
from certjob.review.plan import LOCKED, MAY_STAY_VISIBLE, ReviewCounts

_MOST_REASONS = 5
"""So many lines about mentors that are broken; the JSON document has each with its reason."""
_OTHER_REASONS = "other reasons; --json has them"
_WORDS = {
    LOCKED: ("mentor was skipped", "mentors were skipped"),
    MAY_STAY_VISIBLE: ("mentor may stay visible", "mentors may stay visible"),
}
"""For mentors with a reason of everybody's; the others are broken."""


def differing(comparison: Comparison, locked: Sequence[Difference]) -> list[str]:
    """What a reading of the portal leaves for people to do."""
    lines = counted(
        len(comparison.unknown),
        "contact on the portal is no mentor's",
        "contacts on the portal are no mentor's",
        see_alerts=True,
    )
    lines += counted(
        len(comparison.contradictory),
        "contact is to be visible for one organisation and hidden for another, and is kept hidden",
        "contacts are to be visible for one organisation and hidden for another, and are kept hidden",
        see_alerts=True,
    )
    if locked:
        names = ", ".join(each.member_no for each in locked[:5]) + (", …" if len(locked) > 5 else "")
        count = "1 mentor is" if len(locked) == 1 else f"{len(locked):,} mentors are"
        lines.append(f"{count} locked by another session and not corrected ({names}); run `certjob reconcile` again")
    return lines


def named(review: ReviewCounts, *, only_lost_portal: bool) -> list[str]:
    """The mentors that need attention, by id and reason; many are cut to the first few (the JSON document has all)."""
    by_reason: dict[str, list[UUID]] = {}
    for problem in review.problems:
        if problem.reason == MAY_STAY_VISIBLE or not only_lost_portal:
            by_reason.setdefault(problem.reason, []).append(problem.mentor_id)
    broken = [reason for reason in by_reason if reason not in _WORDS]
    if len(broken) > _MOST_REASONS:
        others = [by_reason.pop(reason) for reason in broken[_MOST_REASONS - 1 :]]
        by_reason[_OTHER_REASONS] = [mentor_id for ids in others for mentor_id in ids]
    lines = []
    for reason, ids in by_reason.items():
        words = _WORDS.get(reason, ("mentor is broken", "mentors are broken"))
        names = ", ".join(map(str, ids[:5])) + (f" and {len(ids) - 5:,} more" if len(ids) > 5 else "")
        lines += [f"{count} ({reason}): {names}" for count in counted(len(ids), *words)]
    return lines


def counted(number: int, singular: str, plural: str, *, see_alerts: bool = False) -> list[str]:
    if not number:
        return []
    text = f"1 {singular}" if number == 1 else f"{number:,} {plural}"
    return [f"{text}; see `certjob alerts`" if see_alerts else text]
