"""The programme's rules: decide the state of one mentor on a date from that mentor's facts.

All functions are pure. No rule depends on an earlier run, so the next run makes up for a missed night or a crash, and a
second run is harmless. The certificates of one mentor and kind are ordered by (expires_on, issued_on).
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from uuid import UUID

from certjob.domain.models import (
    IN_FORCE,
    LAST_PORTAL_DAY,
    NO_SURPRISE,
    NOT_CERTIFIED,
    OWN_PAUSE_REASON,
    Certificate,
    Change,
    Decision,
    Effect,
    Mentor,
    OpenPause,
    PauseChange,
    Reminder,
    Status,
    Surprise,
    Transition,
)

_LAST_DAY = date.max.toordinal()

LATEST_AFTER_EXPIRY_DAYS = 14
"""A reminder after the last day is at most this many days late, so an import of old data sends no mail about 2019."""

SOON_DAYS = 60
"""An earlier last day is surprising within this many days. Beyond, a certificate that is new may explain it."""

COURSE_DAYS = 45
"""A certificate is issued at most this many days after its course."""


def decide(mentor: Mentor, today: date) -> Decision:
    """Return the changes that this mentor needs on ``today``, and the day of the next review."""
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
        if status is Status.REVOKED or status is Status.RENEWED:
            continue  # only a changed fact ends these
        reminded = not (mentor.left or any(_following(certificate, mentor)))
        threshold = _due_threshold(certificate, status, mentor, today) if reminded else None
        if threshold is not None:
            reminders.append(
                Reminder(cert_id=certificate.id, threshold_days=threshold, expires_on=certificate.expires_on)
            )
        review_days += _review_days(certificate, mentor, reminded=reminded)

    last_day = certified_until(mentor, today)
    never_certified = last_day < today and has_had_no_kind(mentor, today)
    own_pause = next((pause for pause in mentor.open_pauses if pause.reason == OWN_PAUSE_REASON), None)
    pause, lapsed_kinds = _pause_change(mentor, own_pause, today, must_pause=last_day < today and not never_certified)
    stays_paused = own_pause is not None and pause is not PauseChange.LIFT
    active = not mentor.left and len(mentor.open_pauses) == (own_pause is not None)
    visible = active and last_day >= today and not stays_paused
    # A mentor without a contact ID who has never been certified, also by the last review, was never on the portal.
    was_certified = mentor.certified_until not in (None, NOT_CERTIFIED)
    never_shown = never_certified and not was_certified and not mentor.has_contact
    nothing_to_hide = never_shown and mentor.portal_visible is True
    changes_visibility = mentor.portal_visible is not visible and not nothing_to_hide
    new_last_day = visible and _has_new_last_day(mentor, last_day)
    push = organisation.has_portal and (changes_visibility or new_last_day)
    due = tuple(sorted(reminders))
    now = today.toordinal()
    coming_days = [day for day in review_days if now < day <= _LAST_DAY]
    return Decision(
        mentor_id=mentor.id,
        member_no=mentor.member_no,
        organisation=organisation,
        transitions=tuple(sorted(transitions, key=lambda transition: transition.certificate_id)),
        seen=_seen(mentor, today),
        pause=pause,
        own_pause_id=own_pause.id if own_pause else None,
        lapsed_kinds=lapsed_kinds,
        reminders=due,
        certified_until=last_day,
        stored_until=mentor.certified_until,
        visible=visible,
        push=push,
        nothing_to_hide=nothing_to_hide,
        new_last_day=organisation.has_portal and new_last_day,
        surprise=_surprise(mentor, today, pause=pause, push=push, visible=visible, last_day=last_day, reminders=due),
        without_certificate=active and never_certified and not stays_paused,
        review_on=date.fromordinal(min(coming_days)) if coming_days else None,
    )


def certified_until(mentor: Mentor, today: date) -> date:
    """Return the last day on which the mentor is certified if no fact changes, whether the mentor is paused or not.

    A mentor is certified while a kind that counts is in force, and so is each kind that counts and that the mentor has
    had. Returns NOT_CERTIFIED if the mentor is not certified today.
    """
    last_days: list[date] = []
    in_force = False
    for certificates in _counting_kinds(mentor).values():
        coming = [each for each in certificates if not each.revoked and each.expires_on >= today]
        coming.sort(key=lambda each: each.issued_on)
        begun = bool(coming) and coming[0].issued_on <= today
        if not begun and any(each.revoked or each.issued_on <= today for each in certificates):
            return NOT_CERTIFIED
        in_force = in_force or begun
        last_day = coming[0].expires_on
        for each in coming[1:]:
            if (each.issued_on - last_day).days <= 1:
                last_day = max(last_day, each.expires_on)
        last_days.append(last_day)
    return min(last_days) if in_force else NOT_CERTIFIED


def status_of(certificate: Certificate, mentor: Mentor, today: date) -> Status:
    """Return the status on ``today`` of one of this mentor's certificates. The first rule that matches applies."""
    if certificate.revoked:
        return Status.REVOKED
    if certificate.issued_on > today:
        return Status.UPCOMING
    if any(_begun(certificate, mentor, today)):
        return Status.RENEWED
    days_left = (certificate.expires_on - today).days
    if days_left < 0:
        return Status.EXPIRED
    return Status.EXPIRING if days_left <= max(mentor.organisation.reminder_thresholds, default=-1) else Status.VALID


def statuses(mentor: Mentor, today: date) -> dict[UUID, Status]:
    """Return the status of each certificate on ``today``, by its id."""
    return {certificate.id: status_of(certificate, mentor, today) for certificate in mentor.certificates}


def due_threshold(certificate: Certificate, mentor: Mentor, today: date) -> int | None:
    """Return the threshold in days of the reminder that is due, or None.

    Only the smallest threshold reached is due, so a missed week leads to one message and not five.
    """
    if mentor.left or continuation(certificate, mentor):
        return None
    return _due_threshold(certificate, status_of(certificate, mentor, today), mentor, today)


def cancel_reason(reminder: Reminder, mentor: Mentor, today: date) -> str | None:
    """Return why a queued reminder must not be sent, or None if it still applies.

    The mail stage asks just before sending, and stores the reason in ``cert_notification_log.last_error``.
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
    is_overtaken = threshold is not None and threshold < reminder.threshold_days
    days_left = (certificate.expires_on - today).days
    return "too late" if is_overtaken or not _is_in_time(reminder.threshold_days, days_left) else "not due"


def replacement(certificate: Certificate, mentor: Mentor, today: date) -> Certificate | None:
    """Return the last later certificate of the same kind that has begun. This certificate is then ``renewed``."""
    return max(_begun(certificate, mentor, today), key=_order, default=None)


def continuation(certificate: Certificate, mentor: Mentor) -> Certificate | None:
    """Return the first later certificate of the same kind that begins without a gap. Then no reminder is needed."""
    return min(_following(certificate, mentor), key=_order, default=None)


def lapsed_certificates(mentor: Mentor, today: date) -> list[Certificate]:
    """Return the certificates that explain why a mentor is paused, one for each kind not in force.

    It is the last one of its kind, and a revoked one only if all are revoked.
    """
    lapsed = []
    for _, certificates in sorted(_counting_kinds(mentor).items()):
        status = {certificate: status_of(certificate, mentor, today) for certificate in certificates}
        begun = [certificate for certificate in certificates if status[certificate] is not Status.UPCOMING]
        if begun and IN_FORCE.isdisjoint(status.values()):
            lapsed.append(max(begun, key=lambda c: (not c.revoked, _order(c))))
    return lapsed


def has_had_no_kind(mentor: Mentor, today: date) -> bool:
    """Return whether the mentor has never had a kind that counts."""
    certificates = (each for kind in _counting_kinds(mentor).values() for each in kind)
    return not any(each.revoked or each.issued_on <= today for each in certificates)


def ending_certificates(mentor: Mentor, today: date, *, within_days: int) -> list[Certificate]:
    """Return the certificates in force that end within this many days and are not continued without a gap."""
    if mentor.left:
        return []
    return [
        certificate
        for certificate in mentor.certificates
        if status_of(certificate, mentor, today) in IN_FORCE
        and (certificate.expires_on - today).days <= within_days
        and continuation(certificate, mentor) is None
    ]


# Generators: an existence check stops at the first match. With 200 certificates of a kind it takes a tenth of the time.


def _begun(certificate: Certificate, mentor: Mentor, today: date) -> Iterator[Certificate]:
    return (other for other in _later(certificate, mentor) if other.issued_on <= today)


def _following(certificate: Certificate, mentor: Mentor) -> Iterator[Certificate]:
    return (other for other in _later(certificate, mentor) if (other.issued_on - certificate.expires_on).days <= 1)


def _later(certificate: Certificate, mentor: Mentor) -> Iterator[Certificate]:
    """Yield the later certificates of the same kind that are not revoked."""
    for other in mentor.certificates:
        is_of_kind = other is not certificate and other.kind == certificate.kind
        if is_of_kind and not other.revoked and _order(other) > _order(certificate):
            yield other


def _order(certificate: Certificate) -> tuple[date, date]:
    return (certificate.expires_on, certificate.issued_on)


def _counting_kinds(mentor: Mentor) -> dict[str, list[Certificate]]:
    """Return the certificates of each kind that is not optional."""
    kinds: dict[str, list[Certificate]] = {}
    for certificate in mentor.certificates:
        if certificate.kind not in mentor.organisation.optional_kinds:
            kinds.setdefault(certificate.kind, []).append(certificate)
    return kinds


def _due_threshold(certificate: Certificate, status: Status, mentor: Mentor, today: date) -> int | None:
    """Return the due threshold, for a mentor who has not left and a certificate without a continuation."""
    if status is not Status.EXPIRING and status is not Status.EXPIRED:  # a valid one has reached no threshold
        return None
    days_left = (certificate.expires_on - today).days
    threshold = min((t for t in mentor.organisation.reminder_thresholds if days_left <= t), default=None)
    return threshold if threshold is not None and _is_in_time(threshold, days_left) else None


def _is_in_time(threshold: int, days_left: int) -> bool:
    """Return whether it is not too late to send the reminder of this threshold."""
    return days_left >= 0 if threshold >= 0 else threshold - days_left <= LATEST_AFTER_EXPIRY_DAYS


def _review_days(certificate: Certificate, mentor: Mentor, *, reminded: bool) -> list[int]:
    """Return the days, as ordinals, on which this certificate can change a decision. Some may be in the past."""
    last_day = certificate.expires_on.toordinal()
    thresholds = mentor.organisation.reminder_thresholds
    if thresholds and not reminded:
        thresholds = (max(thresholds),)
    return [certificate.issued_on.toordinal(), last_day + 1, *[last_day - threshold for threshold in thresholds]]


def _has_new_last_day(mentor: Mentor, last_day: date) -> bool:
    """Return whether a mentor who is visible stays so until another day; False at the first review, which pushes."""
    previous = mentor.certified_until
    if mentor.portal_visible is not True or not mentor.has_contact or previous in (None, NOT_CERTIFIED):
        return False
    return min(previous, LAST_PORTAL_DAY) != min(last_day, LAST_PORTAL_DAY)


def _pause_change(
    mentor: Mentor, own_pause: OpenPause | None, today: date, *, must_pause: bool
) -> tuple[PauseChange | None, frozenset[str] | None]:
    """Return the change of certjob's pause, and its lapsed kinds if they change.

    The pause ends when each kind that lapsed is in force again, or optional. Otherwise deleting a certificate would
    lift it.
    """
    if mentor.left or not (must_pause or own_pause):
        return None, None
    in_force = {
        each.kind for each in mentor.certificates if not each.revoked and each.issued_on <= today <= each.expires_on
    }
    lapsed = {
        kind
        for kind, certificates in _counting_kinds(mentor).items()
        if kind not in in_force and any(each.revoked or each.issued_on <= today for each in certificates)
    }
    if own_pause is None:
        return PauseChange.OPEN, frozenset(lapsed)
    if not lapsed and own_pause.lapsed_kinds <= in_force | mentor.organisation.optional_kinds:
        return PauseChange.LIFT, None
    return None, None if lapsed <= own_pause.lapsed_kinds else own_pause.lapsed_kinds | lapsed


def seen_key(kind: str, expires_on: date) -> str:
    """Return a certificate's kind and last day, as a review stores that it has seen them."""
    return f"{expires_on} {kind}"


def _seen(mentor: Mentor, today: date) -> tuple[str, ...] | None:
    """Return the certificates that reviews have seen, or None without a new one.

    Deleted ones that have not ended are included, because some apps delete and enter all certificates every day.
    """
    if not any(each.unseen for each in mentor.certificates):
        return None
    deleted = (key for key in mentor.seen if key >= today.isoformat())
    return tuple(sorted({seen_key(each.kind, each.expires_on) for each in mentor.certificates}.union(deleted)))


def _surprise(
    mentor: Mentor,
    today: date,
    *,
    pause: PauseChange | None,
    push: bool,
    visible: bool,
    last_day: date,
    reminders: tuple[Reminder, ...],
) -> Surprise:
    """Return the changes that the guards count."""
    if not (pause or push or reminders or last_day < (mentor.certified_until or NOT_CERTIFIED)):
        return NO_SURPRISE
    change, effect, foreseen = _visibility_change(
        mentor, today, pause=pause, push=push, visible=visible, last_day=last_day
    )
    unseen = {each.id for each in mentor.certificates if each.unseen} if reminders else ()
    new = tuple(each for each in reminders if each.cert_id in unseen) if unseen else ()
    if change is None and not new:
        return NO_SURPRISE
    return Surprise(change=None if foreseen else change, change_after_gap=change, effect=effect, reminders=new)


def _visibility_change(
    mentor: Mentor, today: date, *, pause: PauseChange | None, push: bool, visible: bool, last_day: date
) -> tuple[Change | None, Effect, bool]:
    """Return the change of visibility, its effect, and whether the last review foresaw it.

    A person's pause hides the mentor in any case, so other facts have no effect.
    """
    if any(each.reason != OWN_PAUSE_REASON for each in mentor.open_pauses):
        return None, Effect.REMINDER, True
    stored, has_new_contact = mentor.certified_until, push and mentor.contact_replaced
    if pause is PauseChange.OPEN or (push and not visible):
        revoked = any(each.revoked and each.issued_on <= today <= each.expires_on for each in mentor.certificates)
        effect = Effect.LEFT if mentor.left else Effect.REVOKED if revoked else Effect.ENDED
        if has_new_contact:  # the end of a certification may be known already
            is_news = mentor.left or pause is PauseChange.OPEN
            return Change.VISIBILITY, effect if is_news else Effect.NEW_CONTACT, False
        never_reviewed = stored is None and not mentor.certificates
        ended = mentor.decided_visible is False or (stored is not None and stored < today)
        return Change.REMOVAL, effect, never_reviewed or ended
    if visible and mentor.decided_visible is False and (push or pause is PauseChange.LIFT):
        was_certified = stored is not None and stored >= today
        is_free = was_certified or _has_recent_certificate(mentor, today)
        change = Change.VISIBILITY if is_free else Change.RETURN
        return change, Effect.RETURNS, mentor.due_by_calendar and not has_new_contact
    if has_new_contact:
        return Change.VISIBILITY, Effect.NEW_CONTACT, False
    if stored is not None and today <= last_day < stored and not mentor.left:
        if (last_day - today).days <= SOON_DAYS:
            return Change.REMOVAL, Effect.ENDS_SOON, False
        seen = replace(mentor, certificates=tuple(each for each in mentor.certificates if not each.unseen))
        if certified_until(seen, today) < stored:
            return Change.REMOVAL, Effect.ENDS_EARLIER, False
    return None, Effect.REMINDER, True


def _has_recent_certificate(mentor: Mentor, today: date) -> bool:
    """Return whether a certificate that counts was issued in the last COURSE_DAYS, and is in force."""
    return any(
        0 <= (today - each.issued_on).days <= COURSE_DAYS
        and today <= each.expires_on
        and not each.revoked
        and each.kind not in mentor.organisation.optional_kinds
        for each in mentor.certificates
    )
