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
from tests.chaos.plans import Command
from tests.chaos.servers import Received
from tests.support.command_line import Finished
from tests.support.programmes import read_people

if TYPE_CHECKING:
    from tests.chaos.run import ChaosRun

_OPEN_WORK = b"""
    SELECT 'event', mentor_id, status FROM portal_sync_events WHERE status <> 'delivered' OR claim_token IS NOT NULL
    UNION ALL SELECT 'failure', mentor_id, kind FROM dynamics_sync_failures WHERE resolved_at IS NULL
    UNION ALL SELECT 'reminder', mentor_id, status FROM cert_notification_log
    WHERE status IN ('pending', 'failed') OR claim_token IS NOT NULL
    UNION ALL SELECT 'review', id, member_no FROM mentors WHERE review_on <= %s
"""
_REMINDERS = b"""
    SELECT l.id, l.mentor_id, m.email, l.cert_id, l.threshold_days, (c.cycle ->> 'expires_on')::date
    FROM cert_notification_log AS l JOIN mentors AS m ON m.id = l.mentor_id
    CROSS JOIN jsonb_array_elements(l.history || jsonb_build_object('expires_on', l.expires_on)) AS c (cycle)
"""


def result_complaints(command: Command, result: Finished, trigger: Trigger) -> Iterator[str]:
    """The exit code fits the fault, and stderr has only certjob's own lines."""
    name, code, said = command.words[0], result.returncode, result.stderr
    action = trigger.fault.action if trigger.fault is not None and trigger.is_done else None
    expected = {0, 3} if action in {None, Action.OVERTAKE} else {-9, 0, 1, 3}
    if code not in expected or re.search("Traceback|internal error|unforeseen", said + result.stdout):
        yield f"{name} ended with {code}, expected {sorted(expected)}: {said!r} {result.stdout}"
    if command.fault is not None and action is Action.OVERTAKE and not re.search("lost (its|their) lease", said):
        yield f"{name} was overtaken and does not report its lost lease: {said!r}"
    if not re.fullmatch(rf"(certjob {name}: .*\n)*", said) or (code in {0, 1} and bool(said) is not bool(code)):
        yield f"{name} ended with {code} and said: {said!r}"


def state_complaints(connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """Each status, pause and wanted value follows the rules, and no work is left."""
    for person in read_people(connection, run.today).values():
        if not person.is_calm:
            yield f"{person.member_no} does not follow the rules: {person.decision}"
    for row in connection.execute(_OPEN_WORK, (run.today,)):
        yield f"still open after the recovery: {row}"


def portal_complaints(_connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """The portal shows the right mentors, and got no request about anyone else."""
    people = {person.contact_id: person for person in run.people}
    for contact, shown in run.portal.visible.items():
        person = people[contact]
        if person.has_portal and shown is not person.decision.visible:
            yield f"{person.member_no}: the portal shows the opposite of {person.decision.visible}"
        if not person.has_portal and contact in run.portal.applied:
            yield f"{person.member_no}: a call for the organisation without a portal"


def contract_complaints(_connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """One call at a time for each contact, no old value after a newer one, one value for a key."""
    for first, second in run.portal.overlaps:
        yield f"two calls at once: {first.idempotency_key} and {second.idempotency_key} ({first.contact_id})"
    pushes = [request for request in run.portal.requests if request.method == "POST"]
    for contact in {push.contact_id for push in pushes}:
        sent = [push.order for push in pushes if push.contact_id == contact]
        for what, orders in (("sent", sent), ("applied", run.portal.applied.get(contact, []))):
            if orders != sorted(orders):
                yield f"an old value was {what} after a newer one, to {contact}: {orders}"
    values = {(push.order, push.contact_id, push.visible) for push in pushes}
    if len(values) > len({order for order, *_ in values}):
        yield f"a key has two values: {values}"


def reminder_complaints(connection: Connection, run: "ChaosRun") -> Iterator[str]:
    """Each due reminder was received, and no other; a second copy says so and has the same Message-ID."""
    ((secret,),) = connection.execute("SELECT key FROM mail_key")
    cycles = {}
    for row_id, mentor_id, email, cert_id, threshold, day in connection.execute(_REMINDERS):
        key = reminder_key(row_id, secret=secret, mentor_id=mentor_id, threshold_days=threshold, expires_on=day)
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


AT_THE_END = (state_complaints, portal_complaints, contract_complaints, reminder_complaints)
