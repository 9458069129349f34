"""Random histories: hypothesis changes facts, starts and interrupts commands, lets the portal fail, and checks."""

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest import mock
from uuid import UUID

from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from psycopg.pq import TransactionStatus

from certjob import database
from certjob.errors import StoppedBySignalError
from certjob.jobs import resync as resyncing
from certjob.jobs import runs
from certjob.jobs.job import Job
from certjob.jobs.reconcile import reconcile
from certjob.jobs.report import Report, ResyncReport, RunReport
from certjob.jobs.resync import Resync, resync
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.stopping import StopFlag
from tests.conftest import fresh_database
from tests.support.facts import TODAY, Facts
from tests.support.nights import expire_leases, make_due, new_job, pushes, run_until_delivery
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, cut, error, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.programmes import Person, read_people

# Possible events.

_CERTIFICATE = (
    "id = (SELECT id FROM certificates WHERE mentor_id = %(mentor)s AND kind = %(kind)s ORDER BY issued_on LIMIT 1)"
)
_ORGANISATION = "id = (SELECT organisation_id FROM mentors WHERE id = %(mentor)s)"
_LAST = "%(today)s::date + %(ends_in_days)s"
_LIFT = (
    "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'anna' WHERE mentor_id = %(mentor)s AND lifted_at IS NULL"
)
STATEMENTS = {
    "issue a certificate": "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%(mentor)s,"
    f" %(kind)s, least(%(today)s::date + %(begins_in_days)s, {_LAST}), {_LAST}) ON CONFLICT DO NOTHING",
    "change the last day": f"UPDATE certificates SET expires_on = greatest(issued_on, {_LAST}) WHERE {_CERTIFICATE}",
    "revoke or restore a certificate": "UPDATE certificates"
    f" SET revoked_at = CASE WHEN revoked_at IS NULL THEN now() END WHERE {_CERTIFICATE}",
    "delete a certificate": f"DELETE FROM certificates WHERE {_CERTIFICATE}",
    "pause or lift the pause": f"WITH lifted AS ({_LIFT} AND actor = 'anna' RETURNING id)"
    " INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " SELECT %(mentor)s, 'illness', 'anna' WHERE NOT EXISTS (SELECT FROM lifted)",
    "lift certjob's pause": f"{_LIFT} AND actor = 'certjob'",
    "leave or return": "UPDATE mentors SET left_at = CASE WHEN left_at IS NULL THEN now() END WHERE id = %(mentor)s",
    "set a new contact": "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %(mentor)s",
    "set the first contact again": "UPDATE mentors SET dynamics_contact_id = id WHERE id = %(mentor)s",
    "remove the contact": "UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %(mentor)s",
    "move to the other organisation": "UPDATE mentors AS m SET organisation_id = o.id FROM organisations AS o"
    " WHERE o.id <> m.organisation_id AND m.id = %(mentor)s",
    "add or remove the portal": "UPDATE organisations SET portal = CASE WHEN portal IS NULL THEN 'dynamics' END"
    f" WHERE {_ORGANISATION}",
}
"""The changes of facts, as the app writes them."""

PUSHING = ("run", "run --organisation hlf", "deliver", "alerts --retry-all", "reconcile", "resync")
COMMANDS = (*PUSHING, "run without deliveries")

BEFORE_CALL, IN_CALL, AFTER_CALL = MOMENTS = ("before the call", "in the call", "after the call")

PORTAL_STATES: dict[str, Callable[[int], Behaviour]] = {
    "up": lambda _number: ok(),
    "down": lambda _number: error(503, "dynamics_unavailable"),
    "throttled": lambda _number: error(429, "throttled", retry_after="3600"),
    "throttled for a moment": lambda number: error(429, "throttled", retry_after="0") if number % 2 else ok(),
    "misconfigured": lambda _number: error(500, "misconfigured"),
    "losing all answers": lambda _number: cut(),
    "losing some connections": lambda number: (ok(), reset(), reset(applied=True))[number % 3],
}
"""The answer to a request by its number."""
portal_states = st.just("up") | st.sampled_from(tuple(PORTAL_STATES))

last_days = st.sampled_from((-16, -15, -2, -1, 0, 1, 5, 7, 8, 14, 29, 30, 59, 60, 61, 300))
"""Both sides of each reminder threshold."""
days_passed = st.sampled_from((0, 0, 1, 7, 31, 70))


def changes(*statements: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return one of the statements and its parameters."""
    return st.fixed_dictionaries(
        {
            "what": st.sampled_from(statements),
            "kind": st.sampled_from(("likeperson", "first_aid")),
            "begins_in_days": st.sampled_from((-700, -100, -30, 0, 1, 5)),
            "ends_in_days": last_days,
        }
    )


any_change = changes(*STATEMENTS)
change_with_a_push = changes("leave or return", "pause or lift the pause", "set a new contact")

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
"""Open hides without an alert."""


@dataclass(kw_only=True)
class Process:
    """A process that runs one command."""

    connection: database.Connection
    concurrency: int = 3
    interruptions: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Each is called once, at its moment of a push."""
    stop: StopFlag = field(default_factory=StopFlag)
    contacts_in_flight: list[UUID] = field(default_factory=list)

    def reach(self, moment: str) -> None:
        if interrupt := self.interruptions.pop(moment, None):
            interrupt()


class InterruptedClient(HLFDynamicsSyncService):
    """The real client, with the interruptions of its process."""

    def __init__(self, portal: PortalServer, process: Process) -> None:
        super().__init__(portal.url, portal.key, deadline_seconds=20)
        self.process = process

    async def update_portal_visibility(self, contact_id: UUID, **wanted: Any) -> bool:
        process = self.process
        process.contacts_in_flight.append(contact_id)
        try:  # in a thread, because a second command needs another event loop
            await asyncio.to_thread(process.reach, BEFORE_CALL)
            return await super().update_portal_visibility(contact_id, **wanted)
        finally:
            await asyncio.to_thread(process.reach, AFTER_CALL)
            process.contacts_in_flight.remove(contact_id)


class ProgrammeMachine(RuleBasedStateMachine):
    """Two organisations with some mentors, a portal, and commands in overlapping processes."""

    mentors: Bundle[UUID] = Bundle("mentors")

    def __init__(self, server_url: str, template: str, commands_started: set[str]) -> None:
        super().__init__()
        self.commands_started = commands_started
        self.resources = ExitStack()
        url = self.resources.enter_context(contextmanager(fresh_database)(server_url, template))
        own, self.first, self.second = (self.resources.enter_context(database.connect(url)) for _ in range(3))
        self.facts = Facts(own)
        self.portal = self.resources.enter_context(PortalServer(self._answer))
        self.portal_state = "up"
        self.today = TODAY
        self.seconds_asleep = 0.0
        awake = time.clock_gettime
        clock = mock.patch.object(time, "clock_gettime", lambda clock: awake(clock) + self.seconds_asleep)
        self.resources.enter_context(clock)
        self.rejected_contacts: set[UUID] = set()
        self.edited_contacts: set[UUID] = set()
        """Contacts that someone, or a frozen process, has changed on the portal."""
        self.callable_contacts: set[UUID] = set()
        """Contacts of organisations that had a portal at some time during the last command."""
        self.last_orders: dict[UUID, tuple[int, int]] = {}
        self.values: dict[tuple[int, int], bool] = {}
        self.process = Process(connection=self.first)

    def teardown(self) -> None:
        """Check that everything recovers, unless an error was found before."""
        with self.resources:
            if sys.exc_info()[0] is None:
                self._recover()

    @initialize(target=mentors, days=st.lists(last_days, min_size=5, max_size=5))
    def begin(self, days: list[int]) -> Any:
        """Five mentors and a new one of an organisation with a portal, and one of an organisation without."""
        hlf, other = self.facts.organisation("hlf"), self.facts.organisation("other", portal=None)
        certified = [self.facts.certified_mentor(hlf, TODAY + timedelta(days=each)) for each in days]
        new = self.facts.mentor(hlf, contact_id=None)
        return multiple(*certified, new, self.facts.certified_mentor(other, TODAY))

    @rule(mentor=mentors)
    def contact_becomes_unknown_or_known(self, mentor: UUID) -> None:
        contact_id = self._people()[mentor].contact_id
        self.rejected_contacts ^= {contact_id} if contact_id else set()

    @rule(mentor=mentors)
    def someone_edits_the_portal(self, mentor: UUID) -> None:
        contact_id = self._people()[mentor].contact_id
        if contact_id is not None:
            self.portal.visible[contact_id] = not self.portal.visible.get(contact_id, True)
            self.edited_contacts.add(contact_id)

    @rule(days=days_passed, portal=portal_states, mentor=mentors, change=any_change, command=st.sampled_from(COMMANDS))
    def command_runs(self, days: int, portal: str, mentor: UUID, change: dict[str, Any], command: str) -> None:
        """Time passes and a fact changes first."""
        self._prepare(days, portal, mentor, change)
        result = self._start(command, mentor)
        if isinstance(result, Resync) and result.error is None:
            for contact, person in self._reachable().items():
                assert person.id != mentor or self.portal.visible[contact] is person.decision.visible

    @rule(
        days=days_passed,
        portal=portal_states,
        mentor=mentors,
        change=change_with_a_push,
        command=st.sampled_from(PUSHING),
        moment=st.sampled_from(MOMENTS),
        change_meanwhile=any_change | change_with_a_push,
        command_meanwhile=st.sampled_from((None, *COMMANDS)),
        process=st.sampled_from(("continues", "is stopped", "freezes")),
    )
    def command_is_interrupted(
        self,
        days: int,
        portal: str,
        mentor: UUID,
        change: dict[str, Any],
        command: str,
        moment: str,
        change_meanwhile: dict[str, Any],
        command_meanwhile: str | None,
        process: str,
    ) -> None:
        """During a push a fact of its mentor changes, a second command runs, and the process is stopped or freezes.

        A frozen process wakes after its lease and cannot settle its event. But its call may still be applied on the
        portal, too late, as if someone had edited the contact.
        """
        freezes = process == "freezes" and moment != BEFORE_CALL  # the lease is checked there

        def interrupt() -> None:
            in_flight = [self._reachable()[each].id for each in self.process.contacts_in_flight]
            self._change(in_flight[0], change_meanwhile)
            self.callable_contacts |= self._reachable().keys()
            if process == "is stopped":
                self.process.stop.set()
            if freezes:
                self.edited_contacts |= set(self.process.contacts_in_flight)
                self.seconds_asleep += 1000
                expire_leases(self.facts)
            if command_meanwhile is not None:
                self._run(command_meanwhile, in_flight[0], Process(connection=self.second))

        self._prepare(days, portal, mentor, change)
        if command in ("deliver", "alerts --retry-all"):  # they push only what a review has queued
            self._start("run without deliveries", mentor)
        self._start(command, mentor, concurrency=1 if freezes else 3, interruptions={moment: interrupt})
        if freezes:
            self.portal.overlaps.clear()

    @invariant()
    def stored_state_is_consistent(self) -> None:
        assert self.facts.rows(VIOLATIONS) == []

    @invariant()
    def no_call_overlaps_another_for_the_same_contact(self) -> None:
        assert self.portal.overlaps == []

    def _people(self) -> dict[UUID, Person]:
        return read_people(self.facts.connection, self.today)

    def _reachable(self) -> dict[UUID, Person]:
        """Return the mentors who can be pushed, by contact."""
        return {each.contact_id: each for each in self._people().values() if each.contact_id and each.has_portal}

    def _prepare(self, days: int, portal_state: str, mentor: UUID, change: dict[str, Any]) -> None:
        """Let days and all retry times pass, and change a fact."""
        self.today += timedelta(days=days)
        make_due(self.facts)
        self.portal_state = portal_state
        self._change(mentor, change)

    def _change(self, mentor: UUID, change: dict[str, Any]) -> None:
        parameters = change | {"mentor": mentor, "today": self.today}
        self.facts.connection.execute(STATEMENTS[change["what"]].encode(), parameters)

    def _start(self, command: str, mentor: UUID, **options: Any) -> Report | Resync | None:
        """Run a command in a process with these options; return its result, or None if it was stopped."""
        self.commands_started.add(command)
        self.process = Process(connection=self.first, **options)
        self.callable_contacts = {*self._reachable()}
        self.portal.requests.clear()
        result = self._run(command, mentor, self.process)
        self._check_calls()
        return result

    def _run(self, command: str, mentor: UUID, process: Process) -> Report | Resync | None:
        try:
            result = self._call(command, mentor, process)
        except StoppedBySignalError:
            if not process.stop.is_set():
                raise
            return None
        finally:
            assert process.connection.info.transaction_status is TransactionStatus.IDLE
            assert not process.contacts_in_flight
        report = result.report if isinstance(result, Resync) else result
        assert not report.crashed, report.stopped
        if isinstance(report, RunReport | ResyncReport):
            assert (report.review.skipped, report.review.broken) == ([], {})
        if any(stop.stage == "portal" and stop.code not in ("in_flight", "not_read") for stop in report.stopped):
            assert self.facts.rows(UNSEEN_HIDES) == [], report.stopped
        return result

    def _call(self, command: str, mentor: UUID, process: Process) -> Report | Resync:
        ways_out = {"make_portal": lambda: InterruptedClient(self.portal, process)}
        job = new_job(process.connection, self.today, ways_out=ways_out, stop=process.stop)
        never_wait = mock.patch.object(resyncing, "FLIGHT_WAIT_SECONDS", 0.0)
        with pushes(concurrency=process.concurrency), never_wait:
            return self._start_job(command, mentor, job)

    def _start_job(self, command: str, mentor: UUID, job: Job) -> Report | Resync:
        match command:
            case "run":
                return runs.run(job, accept_date=self.today)
            case "run --organisation hlf":
                return runs.run(job, accept_date=self.today, organisation="hlf")
            case "run without deliveries":
                return run_until_delivery(job)
            case "reconcile":
                return reconcile(job, accept_date=self.today)
            case "resync":
                return resync(job, mentor)
        return runs.deliver(job) if command == "deliver" else runs.retry_all(job)

    def _answer(self, request: PortalRequest) -> Behaviour:
        """Return the portal's answer, after the interruptions of the call."""
        is_rejected = request.contact_id in self.rejected_contacts
        behave = error(404, "contact_not_found") if is_rejected else PORTAL_STATES[self.portal_state](request.number)
        if request.method == "GET":
            self.portal.visible |= dict.fromkeys(self._reachable().keys() - self.portal.visible.keys(), True)
            return behave

        def answer(exchange: Exchange) -> None:
            self.process.reach(IN_CALL)
            behave(exchange)

        return answer

    def _check_calls(self) -> None:
        """Check the calls of the last command."""
        for request in self.portal.requests:
            if request.method == "GET":
                continue
            contact_id, order, visible = request.contact_id, request.order, request.visible
            assert contact_id in self.callable_contacts, "a call for an organisation without a portal"
            assert order >= self.last_orders.get(contact_id, (0, 0)), "an older value after a newer one"
            assert self.values.setdefault(order, bool(visible)) is visible, "one key, two values"
            self.last_orders[contact_id] = order

    def _recover(self) -> None:
        """Run with a working portal: only mentors without a contact keep an open push. A second run makes no call."""
        self.portal_state = "up"
        self.rejected_contacts.clear()
        make_due(self.facts)
        anyone = next(iter(self._people()))

        report = self._start("run", anyone)

        assert isinstance(report, RunReport)
        assert [stop for stop in report.stopped if stop.stage == "portal"] == []
        assert report.to_document()["portal"]["pending"] == 0
        for mentor in self._reachable().values():
            if (mentor.id,) in self.facts.rows(OPEN_EVENTS):
                self._start("resync", mentor.id)
        self._check_everyone()
        self._start("reconcile", anyone)
        self.edited_contacts.clear()
        self._start("run", anyone)
        assert self.portal.requests == [], "a call without a cause"
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


def test_portal_ends_with_the_right_contacts_after_any_history(server_url: str, template: str) -> None:
    """Facts change, commands overlap and are stopped, the portal fails: no push is lost. Every command has run."""
    commands: set[str] = set()

    def new_machine() -> ProgrammeMachine:
        return ProgrammeMachine(server_url, template, commands)

    stateful.run_state_machine_as_test(new_machine, settings=few)  # type: ignore[arg-type]

    assert commands == {*COMMANDS}
