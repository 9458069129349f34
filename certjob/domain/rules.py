"""The programme's rules: from the facts about one mentor and a date to the state that mentor should be in.

Pure functions. No rule asks what happened last night, so a missed night, a second run or a crash heal themselves.
Rows of one mentor and kind are ordered by (expires_on, issued_on); the later row is the one that counts.
"""

from collections.abc import Iterable, Iterator
from datetime import date
from uuid import UUID

from certjob.domain.models import (
    IN_FORCE,
    LAST_PORTAL_DAY,
    NOT_CERTIFIED,
    OWN_PAUSE_REASON,
    Certificate,
    Change,
    Decision,
    Mentor,
    PauseChange,
    Reminder,
    Status,
    Transition,
)

LATEST_AFTER_EXPIRY_DAYS = 14
"""A notice about a past expiry goes out at most this many days late: an old import mails nobody about 2019."""

MASS_CHANGE_MINIMUM = 20
"""So many surprising changes of a kind in 20 hours are never held."""

CERTIFIED_PER_CHANGE = 10
"""Beyond that, one in so many of the organisation's certified mentors may change."""

MASS_REMINDER_LIMIT = 5_000
"""More new reminders than this in one organisation and run are held back."""

_LAST_DAY = date.max.toordinal()


def decide(mentor: Mentor, today: date) -> Decision:
    """Return the changes that bring this mentor to the state of ``today``, and the next day to look again."""
    organisation = mentor.organisation
    transitions: list[Transition] = []
    reminders: list[Reminder] = []
    review_days: list[int] = []
    for certificate in mentor.certificates:
        status = status_of(certificate, mentor, today)
        if status is not certificate.status:
            transitions.append(
                Transition(certificate_id=certificate.id, from_status=certificate.status, to_status=status)
            )
        reminded = not (mentor.left or any(_following(certificate, mentor)))
        threshold = _due_threshold(certificate, status, mentor, today) if reminded else None
        if threshold is not None:
            reminders.append(
                Reminder(cert_id=certificate.id, threshold_days=threshold, expires_on=certificate.expires_on)
            )
        review_days.extend(_review_days(certificate, status, mentor, reminded=reminded))

    last_day = certified_until(mentor, today)
    never_certified = last_day < today and holds_nothing(mentor, today)
    own_pause = next((pause for pause in mentor.open_pauses if pause.reason == OWN_PAUSE_REASON), None)
    uncertified = last_day < today and not never_certified
    pause = None if mentor.left else _pause_change(uncertified=uncertified, own_pause_open=own_pause is not None)
    active = not mentor.left and len(mentor.open_pauses) == (own_pause is not None)
    visible = active and last_day >= today
    # The portal cannot show a mentor who never had a contact, and there is no certificate that a contact would be for.
    nothing_to_hide = never_certified and mentor.portal_visible is True and not mentor.has_contact
    changes_visibility = mentor.portal_visible is not visible and not nothing_to_hide
    moved_from = _moved_from(mentor, last_day) if organisation.has_portal and visible else None
    push = (organisation.has_portal and changes_visibility) or moved_from is not None
    change, foreseen = _guarded_change(mentor, today, pause=pause, push=push, visible=visible)
    return Decision(
        mentor_id=mentor.id,
        member_no=mentor.member_no,
        organisation=organisation,
        transitions=tuple(sorted(transitions, key=lambda transition: transition.certificate_id)),
        pause=pause,
        own_pause_id=own_pause.id if own_pause else None,
        reminders=tuple(sorted(reminders)),
        certified_until=last_day,
        visible=visible,
        push=push,
        moved_from=moved_from,
        change=change,
        foreseen=foreseen,
        without_certificate=active and never_certified,
        review_on=_earliest_after(today, review_days),
    )


def _moved_from(mentor: Mentor, last_day: date) -> date | None:
    """Return the last visible day that was wanted, if the mentor stays visible until another day.

    None after the first review: `certjob reconcile` tells an existing portal the days.
    """
    wanted = mentor.certified_until
    if mentor.portal_visible is not True or not mentor.has_contact or wanted in (None, NOT_CERTIFIED):
        return None
    return wanted if min(wanted, LAST_PORTAL_DAY) != min(last_day, LAST_PORTAL_DAY) else None


def certified_until(mentor: Mentor, today: date) -> date:
    """Return the last day on which the mentor is certified if no fact changes, whatever pauses are open.

    Certified means that some kind that counts is in force, and that no kind that counts has lapsed. Returns
    NOT_CERTIFIED if that is not so today.
    """
    last_days: list[date] = []
    in_force = False
    for kind, certificates in _by_kind(mentor.certificates).items():
        if kind in mentor.organisation.optional_kinds:
            continue
        coming = [each for each in certificates if not each.revoked and each.expires_on >= today]
        coming.sort(key=lambda each: each.issued_on)
        begun = bool(coming) and coming[0].issued_on <= today
        if not begun and any(each.revoked or each.issued_on <= today for each in certificates):
            return NOT_CERTIFIED
        in_force = in_force or begun
        last_day = coming[0].expires_on
        for each in coming:
            if (each.issued_on - last_day).days <= 1:
                last_day = max(last_day, each.expires_on)
        last_days.append(last_day)
    return min(last_days) if in_force else NOT_CERTIFIED


def status_of(certificate: Certificate, mentor: Mentor, today: date) -> Status:
    """Return what a certificate of this mentor is on ``today``; the first rule that matches wins."""
    if certificate.revoked:
        return Status.REVOKED
    if certificate.issued_on > today:
        return Status.UPCOMING
    if any(_begun(certificate, mentor, today)):
        return Status.RENEWED
    days_left = (certificate.expires_on - today).days
    if days_left < 0:
        return Status.EXPIRED
    thresholds = mentor.organisation.reminder_thresholds
    if thresholds and days_left <= max(thresholds):
        return Status.EXPIRING
    return Status.VALID


def due_threshold(certificate: Certificate, mentor: Mentor, today: date) -> int | None:
    """Return the one threshold (days) that a reminder about this certificate is due for today, or None.

    The smallest threshold reached, so that a missed week sends one message and not five. Nothing while a row
    continues the certificate without a gap, nothing to a mentor who has left.
    """
    if mentor.left or continuation(certificate, mentor):
        return None
    return _due_threshold(certificate, status_of(certificate, mentor, today), mentor, today)


def cancel_reason(reminder: Reminder, mentor: Mentor, today: date) -> str | None:
    """Return why a queued reminder must not be sent any more, or None if it is still right.

    Asked under the claim, on the facts of the moment; the word is kept in ``cert_notification_log.last_error``.
    """
    certificate = next((c for c in mentor.certificates if c.id == reminder.cert_id), None)
    if certificate is None:
        return "deleted"
    if mentor.left:
        return "left"
    if certificate.revoked:
        return "revoked"
    if certificate.expires_on != reminder.expires_on:
        return "extended" if certificate.expires_on > reminder.expires_on else "shortened"
    if replacement(certificate, mentor, today) or continuation(certificate, mentor):
        return "renewed"
    threshold = due_threshold(certificate, mentor, today)
    if threshold == reminder.threshold_days:
        return None
    overtaken = threshold is not None and threshold < reminder.threshold_days
    days_left = (certificate.expires_on - today).days
    return "too late" if overtaken or not _is_in_time(reminder.threshold_days, days_left) else "not due"


def replacement(certificate: Certificate, mentor: Mentor, today: date) -> Certificate | None:
    """Return the row that counts instead of this one: the last of those of its kind that come later and have begun.

    A certificate that is neither revoked nor upcoming is ``renewed`` exactly while there is one.
    """
    return max(_begun(certificate, mentor, today), key=_order, default=None)


def continuation(certificate: Certificate, mentor: Mentor) -> Certificate | None:
    """Return the first later row that begins without a gap, so that nobody need be reminded of this one's end."""
    return min(_following(certificate, mentor), key=_order, default=None)


# Whoever asks only whether there is one stops at the first: with 200 rows of a kind, a tenth of the time.


def _begun(certificate: Certificate, mentor: Mentor, today: date) -> Iterator[Certificate]:
    return (other for other in _later(certificate, mentor) if other.issued_on <= today)


def _following(certificate: Certificate, mentor: Mentor) -> Iterator[Certificate]:
    return (other for other in _later(certificate, mentor) if (other.issued_on - certificate.expires_on).days <= 1)


def _later(certificate: Certificate, mentor: Mentor) -> Iterator[Certificate]:
    """Yield the rows of its kind that come later in the order and are not revoked."""
    order = _order(certificate)
    for other in mentor.certificates:
        if other.kind == certificate.kind and _order(other) > order and not other.revoked:
            yield other


def statuses(mentor: Mentor, today: date) -> dict[UUID, Status]:
    """Return what each of a mentor's certificates is on ``today``, by its id."""
    return {certificate.id: status_of(certificate, mentor, today) for certificate in mentor.certificates}


def lapsed_certificates(mentor: Mentor, today: date) -> list[Certificate]:
    """Return why a mentor is not certified: of each kind that counts and is not in force, the row that counts."""
    lapsed = []
    for kind, certificates in sorted(_by_kind(mentor.certificates).items()):
        if kind in mentor.organisation.optional_kinds:
            continue
        status = {certificate: status_of(certificate, mentor, today) for certificate in certificates}
        held = [certificate for certificate in certificates if status[certificate] is not Status.UPCOMING]
        if held and IN_FORCE.isdisjoint(status.values()):
            lapsed.append(max(held, key=lambda c: (not c.revoked, _order(c))))
    return lapsed


def holds_nothing(mentor: Mentor, today: date) -> bool:
    """Return whether no kind that counts has ever begun, so that no pause can follow from one that ends."""
    return not any(
        certificate.kind not in mentor.organisation.optional_kinds
        and (certificate.revoked or certificate.issued_on <= today)
        for certificate in mentor.certificates
    )


def ending_certificates(mentor: Mentor, today: date, *, within_days: int) -> list[Certificate]:
    """Return what is in force today, ends within so many days, and is not continued without a gap."""
    if mentor.left:
        return []
    return [
        certificate
        for certificate in mentor.certificates
        if status_of(certificate, mentor, today) in IN_FORCE
        and (certificate.expires_on - today).days <= within_days
        and continuation(certificate, mentor) is None
    ]


def mass_change_limit(certified_mentors: int) -> int:
    """Return how many surprising changes of a kind do not look like a wrong clock or import: 20, or a tenth."""
    return max(MASS_CHANGE_MINIMUM, certified_mentors // CERTIFIED_PER_CHANGE)


def _order(certificate: Certificate) -> tuple[date, date]:
    return (certificate.expires_on, certificate.issued_on)


def _by_kind(certificates: Iterable[Certificate]) -> dict[str, list[Certificate]]:
    kinds: dict[str, list[Certificate]] = {}
    for certificate in certificates:
        kinds.setdefault(certificate.kind, []).append(certificate)
    return kinds


def _due_threshold(certificate: Certificate, status: Status, mentor: Mentor, today: date) -> int | None:
    """Return the due threshold of a certificate that nothing continues, of a mentor who has not left."""
    if status not in (Status.VALID, Status.EXPIRING, Status.EXPIRED):
        return None
    days_left = (certificate.expires_on - today).days
    threshold = min((t for t in mentor.organisation.reminder_thresholds if days_left <= t), default=None)
    return threshold if threshold is not None and _is_in_time(threshold, days_left) else None


def _is_in_time(threshold: int, days_left: int) -> bool:
    """Whether it is not too late to send the reminder of this threshold."""
    return days_left >= 0 if threshold >= 0 else threshold - days_left <= LATEST_AFTER_EXPIRY_DAYS


def _review_days(certificate: Certificate, status: Status, mentor: Mentor, *, reminded: bool) -> Iterable[int]:
    """The days (ordinals) on which this certificate can change anything by itself, past ones included."""
    if status in (Status.REVOKED, Status.RENEWED):  # only a changed fact ends these
        return
    expiry = certificate.expires_on.toordinal()
    yield certificate.issued_on.toordinal()
    yield expiry + 1
    thresholds = mentor.organisation.reminder_thresholds
    if not thresholds:
        return
    yield expiry - max(thresholds)
    if reminded:
        for threshold in thresholds:
            yield expiry - threshold


def _guarded_change(
    mentor: Mentor, today: date, *, pause: PauseChange | None, push: bool, visible: bool
) -> tuple[Change | None, bool]:
    """Return what the guard counts, and whether the last review foresaw it."""
    hides = push and not visible
    if hides and any(each.reason != OWN_PAUSE_REASON for each in mentor.open_pauses):
        return None, True  # never held, also if certjob pauses the mentor as well
    if pause is PauseChange.OPEN or hides:
        return Change.REMOVAL, mentor.certified_until is not None and mentor.certified_until < today
    if visible and (pause is PauseChange.LIFT or (push and mentor.portal_visible is False)):
        return Change.RETURN, mentor.due_by_calendar
    return None, True


def _pause_change(*, uncertified: bool, own_pause_open: bool) -> PauseChange | None:
    if uncertified == own_pause_open:
        return None
    return PauseChange.OPEN if uncertified else PauseChange.LIFT


def _earliest_after(today: date, days: Iterable[int]) -> date | None:
    coming = [day for day in days if today.toordinal() < day <= _LAST_DAY]
    return date.fromordinal(min(coming)) if coming else None
