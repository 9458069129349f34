"""What must be true: at every look, and once everything is healthy again."""

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from certjob.database import Connection
from certjob.domain.models import Reminder
from certjob.mail.reminder_mail import reminder_key
from tests.chaos.faults import Action
from tests.chaos.outside import Taken
from tests.chaos.strikes import Strike
from tests.support.calm import read_people
from tests.support.command_line import Finished

if TYPE_CHECKING:
    from tests.chaos.play import Play

FACTS = b"""
    SELECT m.member_no, to_jsonb(m) - '{portal_visible,certified_until,review_on}'::text[],
        (SELECT jsonb_agg(to_jsonb(c) - 'status' ORDER BY c.id) FROM certificates AS c WHERE c.mentor_id = m.id),
        (SELECT jsonb_agg(p ORDER BY p.id) FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.actor <> 'certjob')
    FROM mentors AS m ORDER BY m.member_no
"""
"""What people have written of each mentor."""


def result_complaints(
    result: Finished, *, command: str, strike: Strike, is_victim: bool, has_reported: bool
) -> Iterator[str]:
    """The exit code fits, and a code that is not 0 says why on stderr, in lines that are certjob's own.

    What needs attention, and an earlier run of the same day ``has_reported``, a run does not repeat.
    """
    code, said = result.returncode, result.stderr
    action = strike.fault.action if strike.fault is not None and strike.is_struck else None
    expected = {0, 3}
    if is_victim and action is Action.OVERTAKE:
        expected = {3}
    elif action is Action.RESTART or (is_victim and action not in {None, Action.LATE, Action.CANCEL}):
        expected = {-9} if is_victim and strike.has_killed else {0, 1, 3}
    if code not in expected:
        yield f"{command} ended with {code}, expected {sorted(expected)}: {said!r}"
    if found := re.search("Traceback|internal error|unforeseen", said + result.stdout):
        yield f"{command} said {found[0]!r}: {said}{result.stdout}"
    if code == 0 and said:
        yield f"{command} ended well and was not quiet: {said!r}"
    is_repeated = code == 3 and command == "run" and has_reported and not said
    if code in {1, 2, 3} and not is_repeated and not re.fullmatch(rf"(certjob {command}: .*\n)+", said):
        yield f"{command} ended with {code} and did not say why in its own words: {said!r}"
    if expected == {3} and not re.search("lost (its|their) lease", said):
        yield f"{command} was overtaken, and has no word of its lost lease: {said!r}"


def look_complaints(connection: Connection, *, events: dict[int, tuple[int, str]]) -> Iterator[str]:
    """At every moment no event is gone, and one that was delivered stays so; ``events`` is brought up to date."""
    now = {row[0]: row[1:] for row in connection.execute("SELECT id, version, status FROM portal_sync_events")}
    for event_id, (version, status) in events.items():
        if event_id not in now or (status == "delivered" and now[event_id] != (version, status)):
            yield f"event {event_id} was {status} in version {version}, and now: {now.get(event_id, 'it is gone')}"
    events.update(now)


def unseen_complaints(connection: Connection) -> Iterator[str]:
    """After a command that ended by itself no hide is open that nobody works on and nobody is told of."""
    for row in connection.execute(
        "SELECT e.id, m.member_no FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id"
        " JOIN organisations AS o ON o.id = m.organisation_id"
        " WHERE e.status IN ('pending', 'blocked') AND NOT e.visible AND o.portal IS NOT NULL"
        " AND NOT (e.claim_token IS NOT NULL AND e.next_attempt_at > now())"
        " AND NOT EXISTS (SELECT FROM dynamics_sync_failures AS f"
        "     WHERE f.mentor_id = e.mentor_id AND f.resolved_at IS NULL)"
    ):
        yield f"the hide {row[0]} of {row[1]} waits unseen"


def fact_complaints(connection: Connection, play: "Play") -> Iterator[str]:
    """certjob changes no fact."""
    for before, after in zip(play.facts, connection.execute(FACTS).fetchall(), strict=True):
        if before != after:
            yield f"facts of {before[0]} changed: {before} became {after}"


def state_complaints(connection: Connection, play: "Play") -> Iterator[str]:
    """Each status, pause and wanted value is as the rules want it, and nobody is due any more."""
    for person in read_people(connection, play.today).values():
        if not person.is_calm:
            yield f"{person.member_no} is not as the rules want: {person.decision}"
    for row in connection.execute("SELECT member_no FROM mentors WHERE review_on <= %s", (play.today,)):
        yield f"{row[0]} is due after the recovery"


def portal_complaints(_connection: Connection, play: "Play") -> Iterator[str]:
    """The portal shows what the facts ask for, and never heard of anybody else."""
    receiver = play.receiver
    for contact, person in play.reachable().items():
        name = f"{person.member_no} (wanted {'visible' if person.decision.visible else 'hidden'})"
        if contact in play.corrected and contact not in receiver.applied:
            yield f"{name}: nothing was ever pushed"
        if receiver.visible[contact] is not person.decision.visible:
            yield f"{name}: the portal shows the opposite"
    others = {person.contact_id for person in play.people if not person.has_portal}
    if calls := [one for one in receiver.pushes if one.contact_id in others]:
        yield f"calls for the organisation without a portal: {calls}"


def contract_complaints(_connection: Connection, play: "Play") -> Iterator[str]:
    """One call at a time for each contact, no old value after a newer one, no key for two values, nothing malformed."""
    for first, second in play.receiver.overlaps:
        yield f"two calls at once: {first.idempotency_key} and {second.idempotency_key} ({first.contact_id})"
    pushes = play.receiver.pushes
    for contact in {push.contact_id for push in pushes}:
        sent = [push.order for push in pushes if push.contact_id == contact]
        for what, orders in (("sent", sent), ("applied", play.receiver.applied.get(contact, []))):
            if orders != sorted(orders):
                yield f"an old value was {what} after a newer one, to {contact}: {orders}"
    values = {(push.order, push.contact_id, push.visible) for push in pushes}
    if len(values) > len({order for order, *_ in values}):
        yield f"a key was used for two values: {values}"
    if malformed := [push.body for push in pushes if None in (push.contact_id, push.visible)]:
        yield f"requests break the contract: {malformed}"


def intent_complaints(connection: Connection, play: "Play") -> Iterator[str]:
    """Every event is delivered, but those blocked by design; nothing is claimed, pending, or unresolved."""
    reachable = {person.id for person in play.reachable().values()}
    for mentor_id, member_no, status, token, has_failed in connection.execute("""
        SELECT m.id, m.member_no, e.status, e.claim_token,
            EXISTS (SELECT FROM dynamics_sync_failures AS f WHERE f.mentor_id = m.id AND f.resolved_at IS NULL)
        FROM mentors AS m
        LEFT JOIN portal_sync_events AS e
            ON e.mentor_id = m.id AND (e.status <> 'delivered' OR e.claim_token IS NOT NULL)
    """):
        is_by_design = status == "blocked" and token is None and mentor_id not in reachable
        if is_by_design is not has_failed or (status is not None and not is_by_design):
            yield f"{member_no}: event {status}, claimed by {token}; unresolved failure: {has_failed}"
    versions = dict(connection.execute("SELECT id, version FROM portal_sync_events").fetchall())
    if ahead := [push.order for push in play.receiver.pushes if push.order[1] > versions.get(push.order[0], 0)]:
        yield f"pushed were {ahead}, but the events' versions are {versions}"
    for row in connection.execute(
        "SELECT id, status, claim_token FROM cert_notification_log"
        " WHERE status IN ('pending', 'failed') OR claim_token IS NOT NULL"
    ):
        yield f"reminder {row[0]} is {row[1]}, claimed by {row[2]}"


def reminder_complaints(connection: Connection, play: "Play") -> Iterator[str]:
    """Each due reminder was received; none was that was never due; a second copy says so and has the same id."""
    # Whom and what each Message-ID is about.
    log = """
        SELECT l.id, l.mentor_id, m.email, l.cert_id, l.threshold_days, (c.cycle ->> 'expires_on')::date
        FROM cert_notification_log AS l
        JOIN mentors AS m ON m.id = l.mentor_id
        CROSS JOIN jsonb_array_elements(l.history || jsonb_build_object('expires_on', l.expires_on)) AS c (cycle)
    """
    cycles = {
        f"<certjob-{reminder_key(row_id, mentor_id=mentor_id, threshold_days=threshold, expires_on=day)}": (
            email,
            Reminder(cert_id=cert_id, threshold_days=threshold, expires_on=day),
        )
        for row_id, mentor_id, email, cert_id, threshold, day in connection.execute(log.encode())
    }
    received: dict[Reminder, list[Taken]] = defaultdict(list)
    for message in play.postbox.taken:
        address, due = cycles.get(message.message_id.partition("@")[0], ("", None))
        if due is None or due not in play.ever_due or address != message.to:
            yield f"a reminder that was never due, or to a wrong address: {message}, {due}"
        elif any((copy.message_id, message.says_repeat) != (message.message_id, True) for copy in received[due]):
            yield f"a reminder came twice: {due}: {message}, after {received[due]}"
        if due is not None:
            received[due].append(message)
    for person in play.people:
        for due in {*person.decision.reminders} - received.keys():
            yield f"a reminder was never received: {person.member_no}, {due}"


AT_THE_END = (
    fact_complaints,
    state_complaints,
    portal_complaints,
    contract_complaints,
    intent_complaints,
    reminder_complaints,
)
