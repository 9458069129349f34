"""One mentor's story as the JSON document of ``certjob explain --json``: the same as the page, in keys."""

from collections.abc import Mapping
from typing import Any

from certjob.domain import explanations, rules
from certjob.domain.models import Certificate
from certjob.views.explain.history import LoggedReminder, MentorHistory, Pause, Step


def to_document(story: MentorHistory) -> dict[str, Any]:
    """Return everything that is known; times have their offset, dates are the programme's days."""
    person, mentor, today = story.person, story.mentor, story.today
    return {
        "outcome": "ok",
        "today": today,
        "mentor": {
            "id": person.id,
            "member_no": person.member_no,
            "full_name": person.full_name,
            "email": person.email,
            "organisation": person.slug,
            "organisation_name": person.organisation_name,
            "dynamics_contact_id": person.contact_id,
            "left_at": person.left_at,
        },
        "active": not (mentor.left or mentor.open_pauses),
        "certified": not (rules.lapsed_certificates(mentor, today) or rules.holds_nothing(mentor, today)),
        "without_certificate": rules.holds_nothing(mentor, today),
        "certified_because": list(explanations.why_certified(mentor, today)),
        "certificates": [_certificate(story, certificate) for certificate in mentor.certificates],
        "pauses": [_pause(pause) for pause in story.pauses],
        "reminders": [_reminder(row) for row in story.reminders],
        "portal": _portal(story),
        "review": {"due": story.review_is_due, "on": person.review_on, "changes_something": story.is_stale},
        "last_night": story.last_night,
        "held": [line for line in (story.held, story.held_reminders) if line],
        "next": {"on": story.steps[0].on, "what": [step.text for step in story.next_steps]} if story.steps else None,
        "coming": [_step(step) for step in story.steps],
    }


def _certificate(story: MentorHistory, certificate: Certificate) -> dict[str, Any]:
    mentor, today = story.mentor, story.today
    siblings = [other for other in mentor.certificates if other.kind == certificate.kind]
    note = story.notes.get(certificate.id)
    revoked_at = note.revoked_at if note else None
    revoked_on = revoked_at.astimezone(story.zone).date() if revoked_at else None
    return {
        "id": certificate.id,
        "kind": certificate.kind,
        "optional": certificate.kind in mentor.organisation.optional_kinds,
        "issued_on": certificate.issued_on,
        "expires_on": certificate.expires_on,
        "days_left": (certificate.expires_on - today).days,
        "revoked_at": revoked_at,
        "status": rules.status_of(certificate, siblings, mentor, today),
        "because": explanations.why_status(certificate, mentor, today, revoked_on=revoked_on),
        "stored_status": certificate.status,
        "stored_on": note.noted_on if note else None,
        "no_reminder_because": explanations.why_no_reminder(certificate, mentor, today),
    }


def _pause(pause: Pause) -> dict[str, Any]:
    return {
        "reason": pause.reason,
        "actor": pause.actor,
        "paused_at": pause.paused_at,
        "lifted_at": pause.lifted_at,
        "lifted_by": pause.lifted_by,
    }


def _reminder(row: LoggedReminder) -> dict[str, Any]:
    earlier: list[Mapping[str, Any]] = list(row.history)
    return {
        "certificate_id": row.cert_id,
        "threshold_days": row.threshold_days,
        "expires_on": row.expires_on,
        "status": row.status,
        "attempts": row.attempts,
        "queued_at": row.queued_at,
        "sent_at": row.sent_at,
        "maybe_sent": row.maybe_sent,
        "next_attempt_at": row.next_attempt_at if row.status == "pending" else None,
        "error": row.last_error,
        "code": row.failure_code if row.last_error else None,
        "earlier": earlier,
    }


def _portal(story: MentorHistory) -> dict[str, Any] | None:
    """None where there is no portal."""
    portal = story.portal
    if not story.mentor.organisation.has_portal:
        return None
    push = {
        "visible": portal.visible,
        "status": portal.status,
        "wanted_at": portal.wanted_at,
        "rounds": portal.rounds,
        "next_attempt_at": portal.next_attempt_at if portal.status == "pending" else None,
        "in_work": portal.is_claimed,
        "error": portal.error,
        "code": portal.code,
    }
    failure = {
        "kind": portal.failure_kind,
        "calls": portal.calls,
        "since": portal.failing_since,
        "last_failed_at": portal.last_failed_at,
        "error": portal.error,
        "code": portal.code,
    }
    return {
        "wanted": story.person.wanted,
        "confirmed": portal.confirmed,
        "confirmed_at": portal.confirmed_at,
        "read_at": portal.read_at,
        "was_shown": portal.was_shown,
        "push": push if portal.status else None,
        "failure": failure if portal.failure_kind else None,
        "resolved_failures": portal.resolved_failures,
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "on": step.on,
        "at": step.at,
        "kind": step.kind,
        "text": step.text,
        "certificate_id": step.certificate_id,
        "threshold_days": step.threshold_days,
        "held": step.held,
    }
