"""One mentor's story as the JSON document of ``certjob explain --json``: the same as the page, in keys."""

from dataclasses import asdict
from typing import Any

from certjob.domain import explanations, rules
from certjob.domain.models import Certificate
from certjob.reports.explain.history import MentorHistory


def to_document(story: MentorHistory) -> dict[str, Any]:
    """Return everything that is known."""
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
        "pauses": [asdict(pause) for pause in story.pauses],
        "reminders": [asdict(row) for row in story.reminders],
        "portal": _portal(story) if mentor.organisation.has_portal else None,
        "review": {"due": story.review_is_due, "on": person.review_on, "changes_something": story.is_stale},
        "last_night": story.last_night,
        "held": [line for line in (story.held, story.held_reminders) if line],
        "next": {"on": story.steps[0].on, "what": [step.text for step in story.next_steps]} if story.steps else None,
        "coming": [asdict(step) for step in story.steps],
    }


def _portal(story: MentorHistory) -> dict[str, Any]:
    push = asdict(story.push) if story.push else None
    return {"wanted": story.person.wanted, **asdict(story.portal), "push": push}


def _certificate(story: MentorHistory, certificate: Certificate) -> dict[str, Any]:
    mentor, today, note = story.mentor, story.today, story.notes[certificate.id]
    return {
        "id": certificate.id,
        "kind": certificate.kind,
        "optional": certificate.kind in mentor.organisation.optional_kinds,
        "issued_on": certificate.issued_on,
        "expires_on": certificate.expires_on,
        "days_left": (certificate.expires_on - today).days,
        "revoked_at": note.revoked_at,
        "status": rules.status_of(certificate, mentor, today),
        "because": explanations.why_status(certificate, mentor, today, revoked_on=story.revoked_on(certificate.id)),
        "stored_status": certificate.status,
        "stored_on": note.noted_on,
        "no_reminder_because": explanations.why_no_reminder(certificate, mentor, today),
    }
