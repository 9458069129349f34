"""Random histories: hypothesis changes facts, starts and interrupts commands, lets the portal fail, and checks.

``CERTJOB_TEST_EXAMPLES=500`` runs 500 new histories instead of the five fixed ones.
"""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule
from psycopg.pq import TransactionStatus

from certjob import database
from certjob.errors import StoppedBySignalError
from certjob.jobs import runs
from certjob.jobs.deliveries import Delivery
from certjob.jobs.reconcile import reconcile
from certjob.jobs.report import RunReport
from certjob.jobs.resync import Resync, resync
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.stopping import StopFlag
from tests.conftest import fresh_database
from tests.support.facts import TODAY, Facts
from tests.support.nights import make_due, new_job, night, quick_policy, run_out
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, cut, error, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.programmes import Person, read_people

# Possible events.

_CERTIFICATE = (
    "id = (SELECT id FROM certificates WHERE mentor_id = %(mentor)s ORDER BY kind, issued_on OFFSET %(number)s LIMIT 1)"
)
_ORGANISATION = "id = (SELECT organisation_id FROM mentors WHERE id = %(mentor)s)"
_LAST = "%(today)s::date + %(ends_in_days)s"
_LIFT = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE mentor_id = %(mentor)s"
STATEMENTS = {
    "issue a certificate": "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%(mentor)s,"
    f" %(kind)s, least(%(today)s::date + %(begins_in_days)s, {_LAST}), {_LAST}) ON CONFLICT DO NOTHING",
    "change the last day": f"UPDATE certificates SET expires_on = greatest(issued_on, {_LAST}) WHERE {_CERTIFICATE}",
    "revoke or restore a certificate": "UPDATE certificates"
    f" SET revoked_at = CASE WHEN revoked_at IS NULL THEN now() END WHERE {_CERTIFICATE}",
    "delete a certificate": f"DELETE FROM certificates WHERE {_CERTIFICATE}",
    "pause or lift the pause": f"WITH lifted AS ({_LIFT} AND reason = %(reason)s AND lifted_at IS NULL RETURNING id)"
    " INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " SELECT %(mentor)s, %(reason)s, 'coordinator' WHERE NOT EXISTS (SELECT FROM lifted)",
    "lift certjob's pause": f"{_LIFT} AND actor = 'certjob' AND lifted_at IS NULL",
    "leave or return": "UPDATE mentors SET left_at = CASE WHEN left_at IS NULL THEN now() END WHERE id = %(mentor)s",
    "set a new contact": "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %(mentor)s",
    "set the first contact": "UPDATE mentors SET dynamics_contact_id = id WHERE id = %(mentor)s",
    "remove the contact": "UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %(mentor)s",
    "move to the other organisation": "UPDATE mentors AS m SET organisation_id = o.id FROM organisations AS o"
    " WHERE o.id <> m.organisation_id AND m.id = %(mentor)s",
    "add or remove the portal": "UPDATE organisations SET portal = CASE WHEN portal IS NULL THEN 'dynamics' END"
    f" WHERE {_ORGANISATION}",
    "make a kind optional or required": "UPDATE organisations SET optional_kinds ="
    " CASE WHEN %(kind)s = ANY (optional_kinds) THEN array_remove(optional_kinds, %(kind)s)"
    f" ELSE array_append(optional_kinds, %(kind)s) END WHERE {_ORGANISATION}",
}
"""The changes of facts, as the app writes them."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of one mentor's facts. A statement uses the details that it needs."""

    what: str
    kind: str = "likeperson"
    number: int = 0
    """The position of the certificate among those of the mentor."""
    begins_in_days: int = -700
    ends_in_days: int = 300
    reason: str = "illness"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command, such as ``certjob run --organisation hlf``."""

    name: str
    organisation: str | None = None
    deliver: bool = True


@dataclass(frozen=True, kw_only=True)
class Interruption:
    """Something that happens during a push of a command, while the command holds no lock."""

    moment: str
    change: Change
    second_command: Command | None
    """Another process runs it to its end."""
    process: str
    """What becomes of the first process. A frozen one wakes after its lease."""


RUN = Command(name="run")
REVIEW = Command(name="run", deliver=False)
RESYNC = Command(name="resync")
RECONCILE = Command(name="reconcile")
ONLY_DELIVERING = (Command(name="deliver"), Command(name="alerts --retry-all"))
PUSHING = (RUN, Command(name="run", organisation="hlf"), *ONLY_DELIVERING, RECONCILE, RESYNC)
BEFORE_CALL, CALL_NOT_APPLIED, CALL_APPLIED, AFTER_CALL = MOMENTS = (
    "before the call",
    "in the call, before it is applied",
    "in the call, after it was applied",
    "after the call",
)

PORTAL_STATES: dict[str, Callable[[int], Behaviour]] = {
    "up": lambda _number: ok(),
    "down": lambda _number: error(503, "dynamics_unavailable"),
    "throttled": lambda _number: error(429, "throttled", retry_after="3600"),
    "throttled for a moment": lambda number: error(429, "throttled", retry_after="0") if number % 2 else ok(),
    "misconfigured": lambda _number: error(500, "misconfigured"),
    "losing all answers": lambda _number: cut(),
    "losing some connections": lambda number: (ok(), reset(), reset(applied=True))[number % 3],
}

last_days = st.sampled_from((-16, -15, -2, -1, 0, 1, 5, 7, 8, 14, 29, 30, 59, 60, 61, 300))
"""Both sides of each reminder threshold."""


def changes(*statements: str) -> st.SearchStrategy[Change]:
    """Return changes by these statements."""
    return st.builds(
        Change,
        what=st.sampled_from(statements),
        kind=st.sampled_from(("likeperson", "first_aid")),
        number=st.integers(0, 2),
        begins_in_days=st.sampled_from((-700, -100, -30, 0, 1, 5)),
        ends_in_days=last_days,
        reason=st.sampled_from(("illness", "leave")),
    )


any_change = changes(*STATEMENTS)
change_for_the_portal = any_change | changes("leave or return", "pause or lift the pause", "set a new contact")
"""More often one that must be pushed."""
any_command = st.sampled_from((*PUSHING, REVIEW))
interruptions = st.builds(
    Interruption,
    moment=st.sampled_from(MOMENTS),
    change=change_for_the_portal,
    second_command=st.none() | any_command,
    process=st.sampled_from(("continues", "is stopped", "freezes")),
)

# Conditions that must never be true. Each statement returns the ids of violations.

OPEN_EVENTS = "SELECT mentor_id FROM portal_sync_events WHERE status IN ('pending', 'blocked')"
NEVER = {
    "an unresolved failure of a mentor without an open event": f"""
        SELECT mentor_id FROM dynamics_sync_failures WHERE resolved_at IS NULL AND mentor_id NOT IN ({OPEN_EVENTS})""",
    "a blocked event without an alert, except a show that waits for a review": """
        SELECT e.mentor_id FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id
        WHERE e.status = 'blocked' AND NOT (e.visible AND m.review_on <= current_date)
            AND e.id NOT IN (SELECT row_id FROM alerts WHERE last_failed_at IS NOT NULL)""",
    "a desired value without its event": """
        SELECT m.id FROM mentors AS m LEFT JOIN LATERAL (
            SELECT visible, status FROM portal_sync_events WHERE mentor_id = m.id ORDER BY id DESC LIMIT 1
        ) AS last ON true
        WHERE m.portal_visible IS DISTINCT FROM coalesce(last.visible, true) AND m.portal_visible IS NOT NULL
            OR last.status = 'withdrawn' AND m.portal_visible IS NOT NULL""",
    "a reviewed mentor with another desired value than the state requires": """
        SELECT m.id FROM mentors AS m JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
        WHERE m.review_on > '-infinity'
            AND m.portal_visible IS DISTINCT FROM (
                m.left_at IS NULL AND m.certified_until > '0001-01-01' AND NOT EXISTS (
                    SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL))
            AND NOT (m.portal_visible AND m.dynamics_contact_id IS NULL AND m.certified_until = '0001-01-01')""",
    "a certificate with another status than the last of its audit": """
        SELECT c.id FROM certificates AS c WHERE c.status <> coalesce((
            SELECT to_status FROM certificate_transitions AS t WHERE t.certificate_id = c.id ORDER BY t.id DESC LIMIT 1
        ), 'recorded')""",
    "a pause of someone else that certjob lifted": """
        SELECT mentor_id FROM mentor_pauses WHERE lifted_by = 'certjob' AND actor <> 'certjob'""",
    "a pause that certjob opened or lifted after the mentor had left": """
        SELECT m.id FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id
        WHERE p.actor = 'certjob' AND p.paused_at > m.left_at OR p.lifted_by = 'certjob' AND p.lifted_at > m.left_at""",
    "a claim of a process that has ended": "SELECT mentor_id FROM portal_sync_events WHERE claim_token IS NOT NULL",
}
VIOLATIONS = " UNION ALL ".join(f"SELECT '{what}', id::text FROM ({find}) AS f (id)" for what, find in NEVER.items())
UNSEEN_HIDES = """
    SELECT e.mentor_id FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id
    JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
    WHERE e.status IN ('pending', 'blocked') AND NOT e.visible
        AND NOT EXISTS (SELECT FROM alerts WHERE row_id = e.id)"""


class Process:
    """A process that runs one command, with a connection and a client.

    ``tests/chaos`` kills processes at any statement.
    """

    def __init__(
        self,
        programme: "ProgrammeMachine",
        *,
        concurrency: int | None = None,
        interruptions: dict[str, Callable[["Process"], None]] | None = None,
    ) -> None:
        """``interruptions`` are called once at their moments."""
        connections = programme.idle_connections
        self.connection = connections.pop() if connections else programme.connect()
        self.stop = StopFlag()
        self.interruptions = interruptions or {}
        self.contacts_in_flight: list[UUID] = []
        self.delivery = Delivery(
            make_portal=lambda: InterruptedClient(programme.portal, self),
            policy=quick_policy(),
            concurrency=concurrency or programme.concurrency,
            deadline_seconds=600,
        )

    def reach(self, moment: str) -> None:
        if interrupt := self.interruptions.pop(moment, None):
            interrupt(self)


class InterruptedClient(HLFDynamicsSyncService):
    """The real client, with the interruptions of its process."""

    def __init__(self, portal: PortalServer, process: Process) -> None:
        super().__init__(portal.url, portal.key, deadline_seconds=20)
        self.process = process

    async def update_portal_visibility(self, contact_id: UUID, **wanted: Any) -> None:
        process = self.process
        process.contacts_in_flight.append(contact_id)
        try:  # in a thread, because a second command needs another event loop
            await asyncio.to_thread(process.reach, BEFORE_CALL)
            await super().update_portal_visibility(contact_id, **wanted)
        finally:
            await asyncio.to_thread(process.reach, AFTER_CALL)
            process.contacts_in_flight.remove(contact_id)


class ProgrammeMachine(RuleBasedStateMachine):
    """Two organisations with up to nine mentors, a portal, and commands in overlapping processes."""

    mentors: Bundle[UUID] = Bundle("mentors")
    server: ClassVar[tuple[str, str]]
    """The URL of the database server and the name of the template."""
    seconds_asleep: ClassVar[float] = 0.0
    started: ClassVar[Counter[Command]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.resources = ExitStack()
        own_database = fresh_database(*self.server)
        self.url = next(own_database)
        self.resources.callback(next, own_database, None)  # drops it
        self.facts = Facts(self.connect())
        self.portal = self.resources.enter_context(PortalServer(self._answer))
        self.portal_state = "up"
        self.today = TODAY
        self.refused_contacts: set[UUID] = set()
        self.edited_contacts: set[UUID] = set()
        """Contacts that someone, or a frozen process, has changed on the portal."""
        self.callable_contacts: set[UUID] = set()
        """Contacts of organisations that had a portal at some time during the last command."""
        self.last_orders: dict[UUID, tuple[int, int]] = {}
        self.values: dict[tuple[int, int], bool] = {}
        self.requests_checked = self.commands_since_recovery = 0
        self.idle_connections: list[database.Connection] = []
        self.process: Process | None = None
        self.errors: list[BaseException] = []

    def connect(self) -> database.Connection:
        return self.resources.enter_context(database.connect(self.url))

    def teardown(self) -> None:
        """Check that everything recovers, unless an error was found before."""
        with self.resources:
            if sys.exc_info()[0] is None:
                self._recover()

    @initialize(target=mentors, days=st.lists(last_days, min_size=6, max_size=6), concurrency=st.sampled_from((1, 3)))
    def begin(self, days: list[int], concurrency: int) -> Any:
        """Five mentors of an organisation with a portal, one of an organisation without."""
        self.concurrency = concurrency
        self.organisations = (self.facts.organisation("hlf"), self.facts.organisation("other", portal=None))
        return multiple(*(self._add_mentor(number // 5, True, days[number]) for number in range(6)))

    @precondition(lambda self: len(self.facts.rows("SELECT FROM mentors")) < 9)
    @rule(target=mentors, organisation=st.integers(0, 1), has_contact=st.booleans(), days=st.none() | last_days)
    def mentor_joins(self, organisation: int, has_contact: bool, days: int | None) -> UUID:
        return self._add_mentor(organisation, has_contact, days)

    @rule(mentor=mentors)
    def contact_becomes_unknown_or_known(self, mentor: UUID) -> None:
        contact_id = self._people()[mentor].contact_id
        self.refused_contacts ^= {contact_id} if contact_id else set()

    @rule(mentor=mentors)
    def someone_edits_the_portal(self, mentor: UUID) -> None:
        contact_id = self._people()[mentor].contact_id
        if contact_id is not None:
            self.portal.visible[contact_id] = not self.portal.visible.get(contact_id, True)
            self.edited_contacts.add(contact_id)

    @rule(state=st.sampled_from(tuple(PORTAL_STATES)))
    def portal_changes_its_state(self, state: str) -> None:
        self.portal_state = state

    @rule(days=st.sampled_from((0, 1, 2, 7, 15, 31, 70)))
    def time_passes(self, days: int) -> None:
        """All retry times pass as well."""
        self.today += timedelta(days=days)
        make_due(self.facts)

    @rule(mentor=mentors, change=any_change, command=any_command)
    def command_runs(self, mentor: UUID, change: Change, command: Command) -> None:
        """A fact changes first."""
        self._change(mentor, change)
        self._start(command, mentor)

    @rule(
        mentor=mentors,
        change=change_for_the_portal,
        command=st.sampled_from(PUSHING),
        interruption=interruptions,
    )
    def command_is_interrupted(
        self, mentor: UUID, change: Change, command: Command, interruption: Interruption
    ) -> None:
        """A frozen process cannot settle the events that it lost.

        But its call in flight may still be applied on the portal, too late, as if someone had edited the contact.
        """
        freezes = interruption.process == "freezes" and interruption.moment != BEFORE_CALL  # the lease is checked there

        def interrupt(process: Process) -> None:
            self._change(mentor, interruption.change)
            self.callable_contacts |= self._reachable().keys()
            if interruption.process == "is stopped":
                process.stop.set()
            if freezes:
                self.edited_contacts |= set(process.contacts_in_flight)
                type(self).seconds_asleep += 1000
                run_out(self.facts)
            if interruption.second_command is not None:
                self._run(interruption.second_command, mentor, Process(self))

        self._change(mentor, change)
        if command in ONLY_DELIVERING:
            self._start(REVIEW, mentor)
        self._start(command, mentor, interruptions={interruption.moment: interrupt}, concurrency=1 if freezes else None)
        if freezes:
            self.portal.overlaps.clear()

    @precondition(lambda self: self.commands_since_recovery >= 5)
    @rule()
    def everything_recovers(self) -> None:
        self._recover()

    @invariant()
    def stored_state_is_consistent(self) -> None:
        assert self.facts.rows(VIOLATIONS) == []

    @invariant()
    def calls_are_in_order_and_for_own_contacts(self) -> None:
        assert self.portal.overlaps == []
        requests = self.portal.requests[self.requests_checked :]
        self.requests_checked += len(requests)
        for request in requests:
            if request.method == "GET":
                continue
            contact_id, order, visible = request.contact_id, request.order, request.visible
            assert contact_id in self.callable_contacts, "a call for an organisation without a portal"
            assert order >= self.last_orders.get(contact_id, (0, 0)), "an older value after a newer one"
            assert self.values.setdefault(order, bool(visible)) is visible, "one key, two values"
            self.last_orders[contact_id] = order

    def _people(self) -> dict[UUID, Person]:
        return read_people(self.facts.connection, self.today)

    def _reachable(self) -> dict[UUID, Person]:
        """Return the mentors who can be pushed, by contact."""
        return {each.contact_id: each for each in self._people().values() if each.contact_id and each.has_portal}

    def _add_mentor(self, organisation: int, has_contact: bool, ends_in_days: int | None) -> UUID:
        mentor = self.facts.mentor(self.organisations[organisation], contact_id=None)
        if has_contact:
            self._change(mentor, Change(what="set the first contact"))
        if ends_in_days is not None:
            self._change(mentor, Change(what="issue a certificate", ends_in_days=ends_in_days))
        return mentor

    def _change(self, mentor: UUID, change: Change) -> None:
        parameters = asdict(change) | {"mentor": mentor, "today": self.today}
        self.facts.connection.execute(STATEMENTS[change.what].encode(), parameters)

    def _start(self, command: Command, mentor: UUID, **options: Any) -> RunReport | None:
        """Run a command in a process with these options; return its report, or None if it was stopped."""
        self.commands_since_recovery += 1
        self.started[command] += 1
        self.process = Process(self, **options)
        self.callable_contacts = {*self._reachable()}
        result = self._run(command, mentor, self.process)
        if self.errors:
            raise self.errors[0]
        if not isinstance(result, Resync):
            return result
        if result.error is None and not options:
            for contact, person in self._reachable().items():
                assert person.id != mentor or self.portal.visible[contact] is person.decision.visible
        return result.report

    def _run(self, command: Command, mentor: UUID, process: Process) -> RunReport | Resync | None:
        try:
            result = self._call(command, mentor, process)
        except StoppedBySignalError:
            if not process.stop.is_set():
                raise
            return None
        finally:
            assert process.connection.info.transaction_status is TransactionStatus.IDLE
            assert not process.contacts_in_flight
            self.idle_connections.append(process.connection)
        report = result.report if isinstance(result, Resync) else result
        assert not report.crashed, report.stopped
        assert report.review is None or not (report.review.skipped or report.review.broken), report.review
        if any(stop.stage == "portal" and stop.code not in ("in_flight", "not_read") for stop in report.stopped):
            assert self.facts.rows(UNSEEN_HIDES) == [], report.stopped
        return result

    def _call(self, command: Command, mentor: UUID, process: Process) -> RunReport | Resync:
        connection, today, delivery, stop = process.connection, self.today, process.delivery, process.stop
        if command.name == "run":
            organisation, deliver = command.organisation, command.deliver
            return night(connection, today, ways_out=delivery, stop=stop, organisation=organisation, deliver=deliver)
        job = new_job(connection, today, ways_out=delivery, stop=stop)
        if command == RESYNC:
            return resync(job, mentor, lock_wait_seconds=30, flight_wait_seconds=0)
        if command == RECONCILE:
            return reconcile(job, accept_date=today)
        return runs.deliver(job) if command.name == "deliver" else runs.retry_all(job)

    def _answer(self, request: PortalRequest) -> Behaviour:
        """Return the portal's answer, after the interruptions of the call."""
        is_refused = request.contact_id in self.refused_contacts
        behave = error(404, "contact_not_found") if is_refused else PORTAL_STATES[self.portal_state](request.number)
        process = self.process
        assert process is not None
        if request.method == "GET":
            self.portal.visible |= dict.fromkeys(self._reachable().keys() - self.portal.visible.keys(), True)
            return behave

        def answer(exchange: Exchange) -> None:
            try:
                process.reach(CALL_NOT_APPLIED)
                if CALL_APPLIED in process.interruptions:
                    exchange.apply()
                    process.reach(CALL_APPLIED)
            except BaseException as error:  # noqa: BLE001 - raised by _start, in the thread of the test
                self.errors.append(error)
            behave(exchange)

        return answer

    def _recover(self) -> None:
        """Run with a working portal: only mentors without a contact keep an open push. A second run makes no call."""
        self.portal_state = "up"
        self.refused_contacts.clear()
        make_due(self.facts)
        anyone = next(iter(self._people()))

        report = self._start(RUN, anyone)

        assert report is not None
        assert [stop for stop in report.stopped if stop.stage == "portal"] == []
        assert report.to_document()["portal"]["pending"] == 0
        for mentor in self._reachable().values():
            if (mentor.id,) in self.facts.rows(OPEN_EVENTS):
                self._start(RESYNC, mentor.id)
        self._check_everyone()
        if self.edited_contacts:
            self._start(RECONCILE, anyone)
            self.edited_contacts.clear()
        self.commands_since_recovery = 0
        requests = len(self.portal.requests)
        self._start(RUN, anyone)
        assert len(self.portal.requests) == requests, "a call without a cause"
        self._check_everyone()

    def _check_everyone(self) -> None:
        for contact, person in self._reachable().items():
            if contact not in self.edited_contacts:
                assert self.portal.visible.get(contact, True) is person.decision.visible
        people = self._people().values()
        assert [person for person in people if not person.is_calm] == []
        without_contact = {(person.id,) for person in people if person.has_portal and person.contact_id is None}
        assert {*self.facts.rows(OPEN_EVENTS)} <= without_contact


few = settings(
    max_examples=5,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
"""The same histories each time. A step runs a command, which is slow for hypothesis' health checks."""


def test_portal_ends_with_the_right_contacts_after_any_history(
    server_url: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts change, commands overlap and are stopped, the portal fails: no push is lost. Every command has run."""
    number = os.environ.get("CERTJOB_TEST_EXAMPLES")
    profile = settings(few, max_examples=int(number), stateful_step_count=50, derandomize=False) if number else few
    monkeypatch.setattr(ProgrammeMachine, "server", (server_url, template), raising=False)
    monkeypatch.setattr(ProgrammeMachine, "seconds_asleep", 0.0)
    awake = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) + ProgrammeMachine.seconds_asleep)

    stateful.run_state_machine_as_test(ProgrammeMachine, settings=profile)

    assert ProgrammeMachine.started.keys() == {*PUSHING, REVIEW}
