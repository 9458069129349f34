"""The invariants of a run: after each command, and at the end, when everything is healthy again."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from certjob.database import Connection
from certjob.domain.models import Reminder
from certjob.mail.reminder_mail import reminder_key
from tests.chaos.database_proxy import Trigger
from tests.chaos.faults import Action
from tests.chaos.servers import Received
from tests.support.command_line import Finished
from tests.support.programmes import read_people

if TYPE_CHECKING:
    from tests.chaos.run import ChaosRun

FACTS = b"""
    SELECT m.member_no, to_jsonb(m) - '{portal_visible,certified_until,review_on}'::text[],
        (SELECT jsonb_agg(to_jsonb(c) - 'status' ORDER BY c.id) FROM certificates AS c WHERE c.mentor_id = m.id),
        (SELECT jsonb_agg(p ORDER BY p.id) FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.actor <> 'certjob')
    FROM mentors AS m ORDER BY m.member_no
"""
_UNSEEN_HIDES = b"""
    SELECT e.id, m.member_no FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id
    JOIN organisations AS o ON o.id = m.organisation_id
    WHERE e.status IN ('pending', 'blocked') AND NOT e.visible AND o.portal IS NOT NULL
        AND NOT (e.claim_token IS NOT NULL AND e.next_attempt_at > now())
        AND NOT EXISTS (
            SELECT FROM dynamics_sync_failures AS f WHERE f.mentor_id = e.mentor_id AND f.resolved_at IS NULL
        )
"""
_OPEN_WORK = b"""
    SELECT 'event', mentor_id, status FROM portal_sync_events WHERE status <> 'delivered' OR claim_token IS NOT NULL
    UNION ALL SELECT 'failure', mentor_id, kind FROM dynamics_sync_failures WHERE resolved_at IS NULL
    UNION ALL SELECT 'reminder', mentor_id, status FROM cert_notification_log
    WHERE status IN ('pending', 'failed') OR claim_token IS NOT NULL
"""
_REMINDERS = b"""
    SELECT l.id, l.mentor_id, m.email, l.cert_id, l.threshold_days, (c.cycle ->> 'expires_on')::date
    FROM cert_notification_log AS l JOIN mentors AS m ON m.id = l.mentor_id
    CROSS JOIN jsonb_array_elements(l.history || jsonb_build_object('expires_on', l.expires_on)) AS c (cycle)
"""


def result_complaints(
    result: Finished, *, command: str, trigger: Trigger, is_victim: bool, has_reported: bool
) -> Iterator[str]:
    """The exit code fits the fault, and stderr explains each code but 0 in certjob's own lines.

    ``has_reported``: an earlier run of the day has printed the alerts, and no run repeats them.
    """
    code, said = result.returncode, result.stderr
    action = trigger.fault.action if trigger.fault is not None and trigger.is_done else None
    expected = {0, 3}
    if is_victim and action is Action.OVERTAKE:
        expected = {3}
        if not re.search("lost (its|their) lease", said):
            yield f"{command} was overtaken and does not report its lost lease: {said!r}"
    elif is_victim and action in {Action.KILL, Action.BLACK_HOLE_KILL}:
        expected = {-9, 0, 1, 3}  # it may have ended just before
    elif action is Action.RESTART or (is_victim and action not in {None, Action.LATE}):
        expected = {0, 1, 3}
    if code not in expected or re.search("Traceback|internal error|unforeseen", said + result.stdout):
        yield f"{command} ended with {code}, expected {sorted(expected)}: {said!r} {result.stdout}"
    is_repeated = code == 3 and command == "run" and has_reported and not said
    explains = said == "" if code == 0 else re.fullmatch(rf"(certjob {command}: .*\n)+", said) or code < 0
    if not (explains or is_repeated):
        yield f"{command} ended with {code} and said: {said!r}"


def event_complaints(connection: Connection, *, events: dict[int, tuple[int, str]]) -> Iterator[str]:
    """After each command: no event is gone, and delivered events stay so. Updates ``events``."""
    now = {row[0]: row[1:] for row in connection.execute("SELECT id, version, status FROM portal_sync_events")}
    for event_id, (version, status) in events.items():
        if event_id not in now or (status == "delivered" and now[event_id] != (version, status)):
            yield f"event {event_id} was {status} in version {version}, and now: {now.get(event_id, 'it is gone')}"
    events.update(now)


def unseen_complaints(connection: Connection) -> Iterator[str]:
    """After a command without a fault: every open hide is in progress or reported."""
    for event_id, member_no in connection.execute(_UNSEEN_HIDES):
        yield f"no one knows of the open hide {event_id} of {member_no}"


def state_complaints(connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """certjob changes no fact; each status, pause and wanted value follows the rules, and no mentor is due."""
    for before, after in zip(run.facts, connection.execute(FACTS).fetchall(), strict=True):
        if before != after:
            yield f"facts of {before[0]} changed: {before} became {after}"
    for person in read_people(connection, run.today).values():
        if not person.is_calm:
            yield f"{person.member_no} does not follow the rules: {person.decision}"
    for row in connection.execute("SELECT member_no FROM mentors WHERE review_on <= %s", (run.today,)):
        yield f"{row[0]} is due after the recovery"


def portal_complaints(_connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """The portal shows the right mentors, and got no request about anyone else."""
    for contact, person in run.on_the_portal().items():
        if contact in run.corrected and contact not in run.portal.applied:
            yield f"{person.member_no}: no push was made"
        if run.portal.visible[contact] is not person.decision.visible:
            yield f"{person.member_no}: the portal shows the opposite of {person.decision.visible}"
    others = {person.contact_id for person in run.people if not person.has_portal}
    if calls := [one for one in run.portal.pushes if one.contact_id in others]:
        yield f"calls for the organisation without a portal: {calls}"


def contract_complaints(_connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """One call at a time for each contact, no old value after a newer one, one value for a key, valid requests."""
    for first, second in run.portal.overlaps:
        yield f"two calls at once: {first.idempotency_key} and {second.idempotency_key} ({first.contact_id})"
    pushes = run.portal.pushes
    for contact in {push.contact_id for push in pushes}:
        sent = [push.order for push in pushes if push.contact_id == contact]
        for what, orders in (("sent", sent), ("applied", run.portal.applied.get(contact, []))):
            if orders != sorted(orders):
                yield f"an old value was {what} after a newer one, to {contact}: {orders}"
    values = {(push.order, push.contact_id, push.visible) for push in pushes}
    if len(values) > len({order for order, *_ in values}):
        yield f"a key has two values: {values}"
    if malformed := [push.body for push in pushes if None in (push.contact_id, push.visible)]:
        yield f"requests break the contract: {malformed}"


def outbox_complaints(connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """Every event is delivered, every failure is resolved, and no row is claimed or pending."""
    for row in connection.execute(_OPEN_WORK):
        yield f"still open after the recovery: {row}"
    versions = dict(connection.execute("SELECT id, version FROM portal_sync_events").fetchall())
    if ahead := [push.order for push in run.portal.pushes if push.order[1] > versions.get(push.order[0], 0)]:
        yield f"pushed {ahead}, but the events' versions are {versions}"


def reminder_complaints(connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """Each due reminder was received, and no other; a second copy says so and has the same Message-ID."""
    cycles = {}
    for row_id, mentor_id, email, cert_id, threshold, day in connection.execute(_REMINDERS):
        key = reminder_key(row_id, mentor_id=mentor_id, threshold_days=threshold, expires_on=day)
        cycles[f"<certjob-{key}"] = email, Reminder(cert_id=cert_id, threshold_days=threshold, expires_on=day)
    received: dict[Reminder, list[Received]] = defaultdict(list)
    for message in run.mail_server.received:
        address, due = cycles.get(message.message_id.partition("@")[0], ("", None))
        if due is None or due not in run.ever_due or address != message.to:
            yield f"a reminder that was never due, or to a wrong address: {message}, {due}"
        elif any((copy.message_id, message.says_repeat) != (message.message_id, True) for copy in received[due]):
            yield f"a reminder came twice: {due}: {message}, after {received[due]}"
        if due is not None:
            received[due].append(message)
    for person in run.people:
        for due in {*person.decision.reminders} - received.keys():
            yield f"a reminder was never received: {person.member_no}, {due}"


AT_THE_END = (state_complaints, portal_complaints, contract_complaints, outbox_complaints, reminder_complaints)
