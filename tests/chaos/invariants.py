"""What must be true: at every look, and once everything is healthy again."""

import re
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from uuid import UUID

from certjob.database import Connection
from certjob.domain.models import Reminder
from tests.chaos.postbox import Taken
from tests.chaos.stage import FACTS, Stage
from tests.support.calm import read_people
from tests.support.command_line import Finished

_MESSAGE_ID = re.compile(r"<certjob-reminder-([0-9]+)-([0-9]+)@.*>")


def result_complaints(result: Finished, *, command: str, expected: set[int], has_reported: bool) -> Iterator[str]:
    """The exit code fits, and a code that is not 0 says why on stderr, in lines that are certjob's own.

    What needs attention, and an earlier run of the same day ``has_reported``, a run does not repeat.
    """
    code, said = result.returncode, result.stderr
    if code not in expected:
        yield f"{command} ended with {code}, expected {sorted(expected)}: {said!r}"
    for word in ("Traceback", "internal error", "unforeseen"):
        if word in said + result.stdout:
            yield f"{command} said {word!r}: {said}{result.stdout}"
    lines = said.splitlines()
    if code == 0 and lines:
        yield f"{command} ended well and was not quiet: {said!r}"
    if code == 3 and command == "run" and has_reported and not lines:
        return
    if code in {1, 2, 3} and (not lines or any(not line.startswith(f"certjob {command}: ") for line in lines)):
        yield f"{command} ended with {code} and did not say why in its own words: {said!r}"


def look_complaints(connection: Connection, *, events_seen: set[int]) -> Iterator[str]:
    """What holds at every moment; ``events_seen`` grows."""
    now = {row[0] for row in connection.execute("SELECT id FROM portal_sync_events")}
    if gone := events_seen - now:
        yield f"events are gone: {sorted(gone)}"
    events_seen |= now


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


def fact_complaints(connection: Connection, stage: Stage) -> Iterator[str]:
    """certjob changes no fact."""
    for before, after in zip(stage.facts, connection.execute(FACTS).fetchall(), strict=True):
        if before != after:
            yield f"facts of {before[0]} changed: {before} became {after}"


def portal_complaints(_connection: Connection, stage: Stage) -> Iterator[str]:
    """The portal shows what the facts ask for, and never heard of anybody else."""
    receiver = stage.receiver
    for person in stage.people:
        if not person.has_portal or person.contact_id is None or not stage.is_reachable(person):
            continue
        wanted = person.decision.visible
        name = f"{person.member_no} (wanted {'visible' if wanted else 'hidden'})"
        if person.contact_id in stage.corrected and person.contact_id not in receiver.applied:
            yield f"{name}: nothing was ever pushed"
        if receiver.visible[person.contact_id] is not wanted:
            yield f"{name}: the portal shows the opposite"
    others = {person.contact_id for person in stage.people if not person.has_portal}
    if calls := [one for one in receiver.pushes if one.contact_id in others]:
        yield f"calls for the organisation without a portal: {calls}"


def intent_complaints(connection: Connection, stage: Stage) -> Iterator[str]:
    """Every event is delivered, but those blocked by design; nothing is claimed, pending, or unresolved."""
    receiver = stage.receiver
    by_id = {person.id: person for person in stage.people}
    blocked: set[UUID] = set()
    for event_id, mentor_id, version, status, token in connection.execute(
        "SELECT id, mentor_id, version, status, claim_token FROM portal_sync_events ORDER BY id"
    ):
        person = by_id[mentor_id]
        if status == "blocked" and not stage.is_reachable(person):
            blocked.add(mentor_id)
        elif status != "delivered" or token is not None:
            yield f"event {event_id} of {person.member_no} is {status}, claimed by {token}"
        if late := [one for one in receiver.pushes if one.order[0] == event_id and one.order[1] > version]:
            yield f"event {event_id} has version {version}, but was pushed as {late[-1].idempotency_key}"
    events = {row[0] for row in connection.execute("SELECT id FROM portal_sync_events")}
    if lost := {one.order[0] for one in receiver.pushes} - events:
        yield f"events were pushed and are lost: {sorted(lost)}"
    failures = "SELECT mentor_id FROM dynamics_sync_failures WHERE resolved_at IS NULL"
    unresolved = {mentor_id for (mentor_id,) in connection.execute(failures)}
    if unresolved != blocked:
        names = sorted(by_id[mentor_id].member_no for mentor_id in unresolved ^ blocked)
        yield f"unresolved failures and blocked events are not of the same mentors: {names}"
    for row in connection.execute(
        "SELECT id, status, claim_token FROM cert_notification_log"
        " WHERE status IN ('pending', 'failed') OR claim_token IS NOT NULL"
    ):
        yield f"reminder {row[0]} is {row[1]}, claimed by {row[2]}"


def state_complaints(connection: Connection, stage: Stage) -> Iterator[str]:
    """Each status, pause and wanted value is as the rules want it, and nobody is due any more."""
    for person in read_people(connection, stage.today).values():
        if not person.is_calm:
            yield f"{person.member_no} is not as the rules want: {person.decision}"
    due = connection.execute("SELECT count(*) FROM mentors WHERE review_on <= %s", (stage.today,)).fetchone()
    if due != (0,):
        yield f"{due} mentors are due after the recovery"


def reminder_complaints(connection: Connection, stage: Stage) -> Iterator[str]:
    """Each due reminder was received; none was that was never due; a second copy says so and has the same id."""
    addresses = {person.id: person.email for person in stage.people}
    cycles = _cycles(connection)
    received: dict[Reminder, list[Taken]] = defaultdict(list)
    for message in stage.postbox.taken:
        match = _MESSAGE_ID.fullmatch(message.message_id)
        cycle = cycles.get((int(match[1]), int(match[2]))) if match else None
        if cycle is None:
            yield f"a message with an unknown Message-ID: {message}"
            continue
        mentor_id, due = cycle
        if due not in stage.ever_due:
            yield f"a reminder that was never due: {message}, {due}"
        if addresses[mentor_id] != message.to:
            yield f"a reminder to the wrong address: {message}, {due}"
        received[due].append(message)
    for due, copies in received.items():
        for copy in copies[1:]:
            if copy.message_id != copies[0].message_id or not copy.says_repeat:
                yield f"a reminder came twice: {due}: {'; '.join(map(str, copies))}"
    for person in stage.people:
        for due in {*person.decision.reminders} - received.keys():
            yield f"a reminder was never received: {person.member_no}, {due}"


def _cycles(connection: Connection) -> dict[tuple[int, int], tuple[UUID, Reminder]]:
    """Whom and what each Message-ID is about: the log's row, and how often it was re-armed by then."""
    log = "SELECT id, mentor_id, threshold_days, cert_id, expires_on, history FROM cert_notification_log"
    return {
        (row_id, cycle): (mentor_id, Reminder(cert_id=cert_id, threshold_days=threshold, expires_on=day))
        for row_id, mentor_id, threshold, cert_id, expires_on, history in connection.execute(log)
        for cycle, day in enumerate([*(date.fromisoformat(each["expires_on"]) for each in history), expires_on])
    }


AT_THE_END = (fact_complaints, state_complaints, portal_complaints, intent_complaints, reminder_complaints)
