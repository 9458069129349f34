"""The programme's rules: from the facts about one mentor and a date to the state that mentor should be in.

Pure functions. No rule asks what happened last night, so a missed night, a second run or a crash heal themselves.
Rows of one mentor and kind are ordered by (expires_on, issued_on); the later row is the one that counts.
"""

from collections.abc import Iterable, Sequence
from datetime import date

from certjob.domain.models import (
    IN_FORCE,
    OWN_PAUSE_REASON,
    Certificate,
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
"""An organisation may always pause, or bring back, this many mentors in one run."""

MASS_CHANGE_PART = 10
"""And always one in so many of its active ones."""

MASS_REMINDER_LIMIT = 5_000
"""More new reminders than this in one organisation and run are held back."""

_LAST_DAY = date.max.toordinal()


def decide(mentor: Mentor, today: date) -> Decision:
    """Return the changes that bring this mentor to the state of ``today``, and the next day to look again."""
    organisation = mentor.organisation
    transitions: list[Transition] = []
    reminders: list[Reminder] = []
    review_days: list[int] = []
    held = False
    uncertified = False
    for kind, certificates in _by_kind(mentor.certificates).items():
        statuses = [status_of(certificate, certificates, mentor, today) for certificate in certificates]
        for certificate, status in zip(certificates, statuses, strict=True):
            if status is not certificate.status:
                transitions.append(
                    Transition(certificate_id=certificate.id, from_status=certificate.status, to_status=status)
                )
            threshold = _due_threshold(certificate, status, certificates, mentor, today)
            if threshold is not None:
                reminders.append(
                    Reminder(cert_id=certificate.id, threshold_days=threshold, expires_on=certificate.expires_on)
                )
            review_days.extend(_review_days(certificate, status, certificates, mentor))
        if kind not in organisation.optional_kinds and any(status is not Status.UPCOMING for status in statuses):
            held = True
            uncertified = uncertified or not any(status in IN_FORCE for status in statuses)

    own_pause = next((pause for pause in mentor.open_pauses if pause.reason == OWN_PAUSE_REASON), None)
    pause = None if mentor.left else _pause_change(uncertified=uncertified, own_pause_open=own_pause is not None)
    own_pause_open = pause is PauseChange.OPEN or (own_pause is not None and pause is not PauseChange.LIFT)
    others_open = len(mentor.open_pauses) > (own_pause is not None)
    active = not (mentor.left or own_pause_open or others_open)
    return Decision(
        mentor_id=mentor.id,
        member_no=mentor.member_no,
        organisation=organisation,
        transitions=tuple(sorted(transitions, key=lambda transition: transition.certificate_id)),
        pause=pause,
        own_pause_id=own_pause.id if own_pause else None,
        reminders=tuple(sorted(reminders)),
        visible=active,
        push=organisation.has_portal and mentor.portal_visible is not active,
        without_certificate=active and not held,
        review_on=_earliest_after(today, review_days),
    )


def status_of(certificate: Certificate, siblings: Iterable[Certificate], mentor: Mentor, today: date) -> Status:
    """Return what a certificate is on ``today``; the first rule that matches wins.

    ``siblings`` are the rows of the same mentor and kind, the certificate itself may be among them.
    """
    if certificate.revoked:
        return Status.REVOKED
    if certificate.issued_on > today:
        return Status.UPCOMING
    if any(
        not other.revoked and other.issued_on <= today and _order(other) > _order(certificate) for other in siblings
    ):
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
    siblings = [other for other in mentor.certificates if other.kind == certificate.kind]
    status = status_of(certificate, siblings, mentor, today)
    return _due_threshold(certificate, status, siblings, mentor, today)


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
    siblings = [other for other in mentor.certificates if other.kind == certificate.kind]
    if status_of(certificate, siblings, mentor, today) is Status.RENEWED or _is_continued(certificate, siblings):
        return "renewed"
    threshold = due_threshold(certificate, mentor, today)
    if threshold == reminder.threshold_days:
        return None
    overtaken = threshold is not None and threshold < reminder.threshold_days
    days_left = (certificate.expires_on - today).days
    return "too late" if overtaken or not _is_in_time(reminder.threshold_days, days_left) else "not due"


def replacement(certificate: Certificate, siblings: Iterable[Certificate], today: date) -> Certificate | None:
    """Return the row that counts instead of this one: the last of those of its kind that come later and have begun.

    A certificate that is neither revoked nor upcoming is ``renewed`` exactly while there is one.
    """
    later = (other for other in siblings if not other.revoked and _order(other) > _order(certificate))
    return max((other for other in later if other.issued_on <= today), key=_order, default=None)


def continuation(certificate: Certificate, siblings: Iterable[Certificate]) -> Certificate | None:
    """Return the first later row that begins before this one has ended, so that nobody need be reminded of it."""
    following = [
        other
        for other in siblings
        if not other.revoked and _order(other) > _order(certificate) and _follows_at_once(other, certificate)
    ]
    return min(following, key=_order, default=None)


def days_left_bounds(status: Status, *, largest_threshold: int | None) -> tuple[int | None, int | None]:
    """Return the fewest and the most days left that a certificate of this status can have; None: no bound.

    For looking in the right place; ``largest_threshold`` is that of all organisations in question.
    """
    if status is Status.EXPIRED:
        return None, -1
    if status is Status.VALID:
        return 0, None
    if status is Status.EXPIRING:
        return 0, -1 if largest_threshold is None else largest_threshold
    return None, None


def lapsed_certificates(mentor: Mentor, today: date) -> list[Certificate]:
    """Return why a mentor is not certified: of each kind that counts and is not in force, the row that counts."""
    lapsed = []
    for kind, certificates in sorted(_by_kind(mentor.certificates).items()):
        if kind in mentor.organisation.optional_kinds:
            continue
        statuses = {c.id: status_of(c, certificates, mentor, today) for c in certificates}
        held = [c for c in certificates if statuses[c.id] is not Status.UPCOMING]
        if held and not any(statuses[c.id] in IN_FORCE for c in held):
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
        for certificates in _by_kind(mentor.certificates).values()
        for certificate in certificates
        if status_of(certificate, certificates, mentor, today) in IN_FORCE
        and (certificate.expires_on - today).days <= within_days
        and not _is_continued(certificate, certificates)
    ]


def exceeds_mass_change(changes: int, *, active_mentors: int) -> bool:
    """Return whether so many pauses (or returns) in one run look like a bad clock or a bad import."""
    return changes > MASS_CHANGE_MINIMUM and changes * MASS_CHANGE_PART > active_mentors


def _order(certificate: Certificate) -> tuple[date, date]:
    return (certificate.expires_on, certificate.issued_on)


def _by_kind(certificates: Iterable[Certificate]) -> dict[str, list[Certificate]]:
    kinds: dict[str, list[Certificate]] = {}
    for certificate in certificates:
        kinds.setdefault(certificate.kind, []).append(certificate)
    return kinds


def _is_continued(certificate: Certificate, siblings: Iterable[Certificate]) -> bool:
    """Whether a later row starts at the latest on the day after this one's last day."""
    return any(
        not other.revoked and _order(other) > _order(certificate) and _follows_at_once(other, certificate)
        for other in siblings
    )


def _follows_at_once(other: Certificate, certificate: Certificate) -> bool:
    """Whether one begins at the latest on the day after the other's last day."""
    return (other.issued_on - certificate.expires_on).days <= 1


def _due_threshold(
    certificate: Certificate, status: Status, siblings: Sequence[Certificate], mentor: Mentor, today: date
) -> int | None:
    if mentor.left or status not in (Status.VALID, Status.EXPIRING, Status.EXPIRED):
        return None
    days_left = (certificate.expires_on - today).days
    reached = [threshold for threshold in mentor.organisation.reminder_thresholds if days_left <= threshold]
    if not reached:
        return None
    threshold = min(reached)
    return threshold if _is_in_time(threshold, days_left) and not _is_continued(certificate, siblings) else None


def _is_in_time(threshold: int, days_left: int) -> bool:
    """Whether it is not too late to send the reminder of this threshold."""
    return days_left >= 0 if threshold >= 0 else threshold - days_left <= LATEST_AFTER_EXPIRY_DAYS


def _review_days(
    certificate: Certificate, status: Status, siblings: Sequence[Certificate], mentor: Mentor
) -> Iterable[int]:
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
    if not mentor.left and not _is_continued(certificate, siblings):
        for threshold in thresholds:
            yield expiry - threshold


def _pause_change(*, uncertified: bool, own_pause_open: bool) -> PauseChange | None:
    if uncertified == own_pause_open:
        return None
    return PauseChange.OPEN if uncertified else PauseChange.LIFT


def _earliest_after(today: date, days: Iterable[int]) -> date | None:
    coming = [day for day in days if today.toordinal() < day <= _LAST_DAY]
    return date.fromordinal(min(coming)) if coming else None
