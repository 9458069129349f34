"""Lines of a run's report that say why it needs attention."""

from collections.abc import Sequence, Set
from uuid import UUID

from certjob.domain.alert_kinds import Kind, count_in_words
from certjob.portal.comparison import Comparison
from certjob.review.plan import LOCKED, ReviewCounts

_MOST_NAMES = 5


def differing(comparison: Comparison) -> list[str]:
    """Return the unknown contacts and the locked mentors of a comparison with the portal."""
    unknown = len(comparison.unknown)
    again = "locked by another session and not corrected, run `certjob reconcile` again"
    lines = [f"{count_in_words(Kind.UNKNOWN_CONTACTS, unknown)}; see `certjob alerts`"] if unknown else []
    return lines + _listed([each.member_no for each in comparison.locked], f"mentor is {again}", f"mentors are {again}")


def named(review: ReviewCounts, *, known: Set[UUID] = frozenset()) -> list[str]:
    """Return the skipped and the broken mentors by id, without acknowledged ones (``known``).

    Each line has the first five ids, because the JSON document has all of them.
    """
    broken = [f"{mentor_id} ({reason})" for mentor_id, reason in review.broken.items() if mentor_id not in known]
    skipped = [mentor_id for mentor_id in review.skipped if mentor_id not in known]
    lines = _listed(skipped, f"mentor was skipped ({LOCKED})", f"mentors were skipped ({LOCKED})")
    return lines + _listed(broken, "mentor could not be processed", "mentors could not be processed")


def counted(number: int, singular: str, plural: str) -> list[str]:
    """Return one line with the number, or no line for 0."""
    return [f"{number:,} {singular if number == 1 else plural}"] if number else []


def _listed(names: Sequence[object], singular: str, plural: str) -> list[str]:
    few = ", ".join(map(str, names[:_MOST_NAMES]))
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return [f"{count}: {few}{more}" for count in counted(len(names), singular, plural)]
