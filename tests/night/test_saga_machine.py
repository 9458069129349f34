"""The saga under everything at once: hypothesis changes facts, starts and breaks runs, and compares with a plain model.

``CERTJOB_TEST_EXAMPLES=500`` plays so many new games instead of the few that are the same every time.
"""

import asyncio
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import date, timedelta
from typing import Any, ClassVar
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql
from psycopg.pq import TransactionStatus

from certjob import database
from certjob.errors import StoppedBySignalError
from certjob.night import nightly
from certjob.night import reconcile as reconciling
from certjob.night.deliveries import Delivery
from certjob.night.report import RunReport
from certjob.night.resync import Resync, ResyncTimes, resync
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.stopping import StopFlag
from tests.support.facts import TODAY, Facts
from tests.support.intents import let_unknown_outcomes_pass, make_due, run_out
from tests.support.nights import NoProgress, night, quick_policy
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, cut, error, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.saga_model import Certificate, Mentor, Model, Organisation
from tests.support.waiting import until

EXAMPLES = "CERTJOB_TEST_EXAMPLES"

PORTAL_MOODS: dict[str, Callable[[int], Behaviour]] = {
    "up": lambda _number: ok(),
    "down": lambda _number: error(503, "dynamics_unavailable"),
    "throttled": lambda _number: error(429, "throttled", retry_after="3600"),
    "throttled for a moment": lambda number: error(429, "throttled", retry_after="0") if number % 2 else ok(),
    "misconfigured": lambda _number: error(500, "misconfigured"),
    "cutting every answer": lambda _number: cut(),
    "resetting now and then": lambda number: (ok(), reset(), reset(applied=True))[number % 3],
}

NEVER = {
    "two open events of one mentor": """
        SELECT mentor_id FROM portal_sync_events WHERE status IN ('pending', 'blocked')
        GROUP BY mentor_id HAVING count(*) > 1""",
    "two unresolved failures of one mentor": """
        SELECT mentor_id FROM dynamics_sync_failures WHERE resolved_at IS NULL
        GROUP BY mentor_id HAVING count(*) > 1""",
    "an unresolved failure of a mentor for whom nothing is open": """
        SELECT mentor_id FROM dynamics_sync_failures WHERE resolved_at IS NULL AND mentor_id NOT IN (
            SELECT mentor_id FROM portal_sync_events WHERE status IN ('pending', 'blocked'))""",
    "a blocked event that nobody is told of": """
        SELECT mentor_id FROM portal_sync_events WHERE status = 'blocked' AND id NOT IN (
            SELECT event_id FROM portal_alerts WHERE last_failed_at IS NOT NULL)""",
    "a wanted value without its event": """
        SELECT m.id FROM mentors AS m LEFT JOIN LATERAL (
            SELECT visible, status FROM portal_sync_events WHERE mentor_id = m.id ORDER BY id DESC LIMIT 1
        ) AS last ON true
        WHERE m.portal_visible IS DISTINCT FROM coalesce(last.visible, true) AND m.portal_visible IS NOT NULL
            OR last.status = 'withdrawn' AND m.portal_visible IS NOT NULL""",
    "a reviewed mentor whose wanted value is not what their state asks for": """
        SELECT m.id FROM mentors AS m JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
        WHERE m.review_on > '-infinity' AND m.portal_visible IS DISTINCT FROM (m.left_at IS NULL AND NOT EXISTS (
            SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL))""",
    "a certificate whose status is not the last of its audit": """
        SELECT c.id FROM certificates AS c WHERE c.status <> coalesce((
            SELECT to_status FROM certificate_transitions AS t WHERE t.certificate_id = c.id ORDER BY t.id DESC LIMIT 1
        ), 'recorded')""",
}
"""What must not be, whatever happens: each statement finds the ids of those who would prove it."""

WHAT_MUST_NOT_BE = " UNION ALL ".join(
    f"SELECT '{what}', id::text FROM ({find}) AS f (id)" for what, find in NEVER.items()
)

Change = tuple[Any, ...]
"""The name of a method of ``People`` and its arguments after the mentor."""

which = st.integers(0, 2)
kinds = st.sampled_from(("likeperson", "first_aid"))
last_days = st.sampled_from((-16, -15, -2, -1, 0, 1, 5, 7, 8, 14, 29, 30, 59, 60, 61, 300))
"""On both sides of each threshold, and two for each."""
any_change: st.SearchStrategy[Change] = st.one_of(
    st.tuples(st.just("issue"), kinds, st.sampled_from((-700, -100, -30, 0, 1, 5)), last_days),
    st.tuples(st.just("extend"), which, last_days),
    st.tuples(st.just("revoke"), which),
    st.tuples(st.just("delete"), which),
    st.tuples(st.just("turn_pause"), st.sampled_from(("illness", "leave"))),
    st.tuples(st.just("turn_membership")),
    st.tuples(st.just("lift_own_pause")),
    st.tuples(st.just("correct_contact"), st.sampled_from(("new", "earlier", "none"))),
    st.tuples(st.just("move")),
    st.tuples(st.just("turn_portal")),
    st.tuples(st.just("turn_optional"), kinds),
)
stirring_changes: st.SearchStrategy[Change] = st.one_of(
    st.sampled_from([("turn_membership",), ("turn_pause", "illness"), ("correct_contact", "new")]), any_change
)
"""Mostly such as the portal must be told of."""

DELIVERING = ("run", "run of hlf", "deliver", "reconcile", "alerts --retry-all", "resync")
commands = st.sampled_from((*DELIVERING, "run without deliveries"))
moments = st.sampled_from(("before the call", "in the call, nothing done", "in the call, done", "after the call"))
"""When a run holds no lock and has nothing to decide, so that anything may happen beside it."""


class ProcessEnded(BaseException):
    """This process was killed a moment ago: nothing it still tries has any effect."""


class People:
    """Whoever changes facts: each change goes into the database, as the app writes it, and into the model."""

    def __init__(self, facts: Facts, model: Model) -> None:
        self.facts = facts
        self.model = model
        self.contacts: dict[UUID, list[UUID]] = defaultdict(list)

    def found(self, slug: str, *, portal: bool) -> None:
        organisation_id = self.facts.organisation(slug, portal="dynamics" if portal else None)
        thresholds = (60, 30, 14, 7, 1, -1)
        self.model.organisations.append(Organisation(id=organisation_id, has_portal=portal, thresholds=thresholds))

    def welcome(self, organisation: int, *, contact: bool = True, expires_in: int | None = None) -> Mentor:
        contact_id = uuid4() if contact else None
        home = self.model.organisations[organisation]
        mentor = Mentor(id=self.facts.mentor(home.id, contact_id=contact_id), organisation=home, contact_id=contact_id)
        if contact_id is not None:
            self.contacts[mentor.id].append(contact_id)
        self.model.mentors.append(mentor)
        if expires_in is not None:
            self.issue(mentor, "likeperson", -700, expires_in)
        return mentor

    def change(self, mentor: Mentor, change: Change) -> None:
        name, *arguments = change
        getattr(self, name)(mentor, *arguments)

    def issue(self, mentor: Mentor, kind: str, begins_in: int, expires_in: int) -> None:
        issued_on, expires_on = self._day(min(begins_in, expires_in)), self._day(expires_in)
        if any((row.kind, row.issued_on) == (kind, issued_on) for row in mentor.certificates.values()):
            return
        certificate_id = self.facts.certificate(mentor.id, expires_on, kind=kind, issued_on=issued_on)
        mentor.certificates[certificate_id] = Certificate(kind=kind, issued_on=issued_on, expires_on=expires_on)

    def extend(self, mentor: Mentor, number: int, expires_in: int) -> None:
        """Another last day for a certificate, in place; a shorter one is a typo."""
        for certificate_id, row in self._certificate(mentor, number):
            row.expires_on = max(self._day(expires_in), row.issued_on)
            self._set("certificates", "expires_on", certificate_id, row.expires_on)

    def revoke(self, mentor: Mentor, number: int) -> None:
        """Revoke, or take it back."""
        for certificate_id, row in self._certificate(mentor, number):
            row.revoked = not row.revoked
            self._set("certificates", "revoked_at", certificate_id, self._now(row.revoked))

    def delete(self, mentor: Mentor, number: int) -> None:
        for certificate_id, _ in self._certificate(mentor, number):
            del mentor.certificates[certificate_id]
            self.facts.connection.execute("DELETE FROM certificates WHERE id = %s", (certificate_id,))

    def turn_pause(self, mentor: Mentor, reason: str) -> None:
        """Pause for that reason, or lift that pause."""
        mentor.pauses ^= {reason}
        if reason in mentor.pauses:
            self.facts.pause(mentor.id, reason=reason)
        else:
            self._lift(mentor, reason)

    def lift_own_pause(self, mentor: Mentor) -> None:
        """Somebody lifts certjob's pause, which is not theirs to lift."""
        mentor.paused_when_left = False
        self._lift(mentor, "certification_expired")

    def turn_membership(self, mentor: Mentor) -> None:
        """Leave, or come back."""
        mentor.left = not mentor.left
        self._set("mentors", "left_at", mentor.id, self._now(mentor.left))
        mentor.paused_when_left = mentor.id in paused_by_certjob(self.facts)

    def correct_contact(self, mentor: Mentor, to: str) -> None:
        known = self.contacts[mentor.id]
        if to == "new":
            known.append(uuid4())
        mentor.contact_id = None if to == "none" or not known else known[0 if to == "earlier" else -1]
        self._set("mentors", "dynamics_contact_id", mentor.id, mentor.contact_id)

    def move(self, mentor: Mentor) -> None:
        """To the other organisation."""
        first, second = self.model.organisations
        mentor.organisation = second if mentor.organisation is first else first
        self._set("mentors", "organisation_id", mentor.id, mentor.organisation.id)

    def turn_portal(self, mentor: Mentor) -> None:
        """The mentor's organisation gets a portal, or loses it."""
        home = mentor.organisation
        home.has_portal = not home.has_portal
        self._set("organisations", "portal", home.id, "dynamics" if home.has_portal else None)

    def turn_optional(self, mentor: Mentor, kind: str) -> None:
        mentor.organisation.optional_kinds ^= {kind}
        self._set("organisations", "optional_kinds", mentor.organisation.id, list(mentor.organisation.optional_kinds))

    def _day(self, days: int) -> date:
        return self.model.today + timedelta(days=days)

    @staticmethod
    def _now(is_set: bool) -> str | None:
        return "now" if is_set else None

    @staticmethod
    def _certificate(mentor: Mentor, number: int) -> list[tuple[UUID, Certificate]]:
        return list(mentor.certificates.items())[number : number + 1]

    def _lift(self, mentor: Mentor, reason: str) -> None:
        lift = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE lifted_at IS NULL"
        self.facts.connection.execute(f"{lift} AND mentor_id = %s AND reason = %s".encode(), (mentor.id, reason))

    def _set(self, table: str, column: str, row: UUID, value: object) -> None:
        self.facts.connection.execute(f"UPDATE {table} SET {column} = %s WHERE id = %s".encode(), (value, row))


def paused_by_certjob(facts: Facts) -> set[object]:
    """The mentors whose pause of certjob's own is open."""
    rows = facts.rows("SELECT mentor_id FROM mentor_pauses WHERE actor = 'certjob' AND lifted_at IS NULL")
    return {mentor_id for (mentor_id,) in rows}


class Process:
    """A process that runs certjob: a connection, the ways out, and one moment at which something happens.

    The moment is one of the network's, or the number of a step: each statement is two, so that a process may end
    inside a transaction, too.
    """

    def __init__(
        self,
        connection: database.Connection,
        portal: PortalServer,
        *,
        concurrency: int,
        moment: str | int | None = None,
    ) -> None:
        self.connection = connection
        self.stop = StopFlag()
        self.moment = moment
        self.steps = 0
        self.happening: Callable[[], object] = lambda: None
        self.is_ended = False
        self.under_way: dict[str, UUID] = {}
        """Calls that have begun and not ended: key and contact."""
        self._portal = portal
        self._lock = threading.Lock()
        self.connection.cursor_factory = self._watched_cursor()
        self.delivery = Delivery(
            make_target=self._make_target,
            policy=quick_policy(),
            concurrency=concurrency,
            deadline_seconds=600,
        )

    def kill(self, *, by: database.Connection) -> None:
        """End it as kill -9 does: its session is gone, and it begins no call any more."""
        with self._lock:
            self.is_ended = True
        by.execute("SELECT pg_terminate_backend(%s, 10000)", (self.connection.info.backend_pid,))

    def reach(self, moment: str = "") -> None:
        """Let happen what was planned for this moment, or for this step."""
        with self._lock:
            self.steps += 1
            if self.moment not in (moment, self.steps):
                return
            self.moment = None
        self.happening()

    def live(self, moment: str = "") -> None:
        """Reach a moment inside the process, which may be its last."""
        self.reach(moment)
        if self.is_ended:
            raise ProcessEnded

    async def update_portal_visibility(self, contact_id: UUID, *, visible: bool, idempotency_key: str) -> None:
        """Call with the real client; none begins in a process that was killed."""
        with self._calling(contact_id, idempotency_key):
            # Another process may come to life in it, with an event loop of its own: not in this one's thread.
            await asyncio.to_thread(self.live, "before the call")
            try:
                await self.client.update_portal_visibility(contact_id, visible=visible, idempotency_key=idempotency_key)
            finally:
                await asyncio.to_thread(self.live, "after the call")

    @asynccontextmanager
    async def _make_target(self) -> AsyncIterator["Process"]:
        async with HLFDynamicsSyncService(self._portal.url, self._portal.key, deadline_seconds=20) as self.client:
            yield self

    @contextmanager
    def _calling(self, contact_id: UUID, idempotency_key: str) -> Iterator[None]:
        with self._lock:
            if self.is_ended:
                raise ProcessEnded
            self.under_way[idempotency_key] = contact_id
        try:
            yield
        finally:
            with self._lock:
                del self.under_way[idempotency_key]

    def _watched_cursor(self) -> type[psycopg.Cursor[Any]]:
        process = self

        class WatchedCursor(psycopg.Cursor[Any]):
            def execute(self, query: Any, *arguments: Any, **options: Any) -> "WatchedCursor":
                process.live()
                super().execute(query, *arguments, **options)
                process.live()
                return self

        return WatchedCursor


class Saga(RuleBasedStateMachine):
    """The programme, its people, its portal and its nights."""

    mentors: Bundle[Mentor] = Bundle("mentors")

    database_url: ClassVar[str] = "set by the test"
    seconds_asleep: ClassVar[float] = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.app = database.connect(self.database_url)
        self._empty_database()
        self.facts = Facts(self.app)
        self.model = Model(today=TODAY)
        self.people = People(self.facts, self.model)
        self.portal = PortalServer(self._answer).__enter__()
        self.portal_mood = "up"
        self.refused: set[UUID] = set()
        self.edited: set[UUID] = set()
        """Contacts that somebody, or a frozen process, has changed on the portal."""
        self.callable_contacts: set[UUID] = set()
        """Whose organisation had a portal when this command started, or during it."""
        self.last_keys: dict[UUID, tuple[int, int]] = {}
        self.values: dict[str, bool] = {}
        self.requests_seen = 0
        self.orphaned: set[object] = set()
        """Claims of processes that were killed."""
        self.concurrency = 1
        self.commands_since_rest = 0
        self.idle: list[database.Connection] = []
        """Left by processes that came to their end: a new connection would cost more than a run."""
        self.process: Process | None = None
        self.errors: list[BaseException] = []

    def teardown(self) -> None:
        """Let it all come to rest, unless something was found already."""
        try:
            if sys.exc_info()[0] is None:
                self._come_to_rest()
        finally:
            self.portal.__exit__(None, None, None)
            for connection in (self.app, *self.idle):
                connection.close()

    # ── what happens ──

    @initialize(target=mentors, days=st.lists(last_days, min_size=6, max_size=6), concurrency=st.sampled_from((1, 3)))
    def begin(self, days: list[int], concurrency: int) -> Any:
        """Five mentors of an organisation with a portal, one of an organisation without."""
        self.concurrency = concurrency
        self.people.found("hlf", portal=True)
        self.people.found("other", portal=False)
        return multiple(*(self.people.welcome(number // 5, expires_in=days[number]) for number in range(6)))

    @precondition(lambda self: len(self.model.mentors) < 9)
    @rule(target=mentors, organisation=st.integers(0, 1), contact=st.booleans(), expires_in=st.none() | last_days)
    def a_mentor_joins(self, organisation: int, contact: bool, expires_in: int | None) -> Mentor:
        return self.people.welcome(organisation, contact=contact, expires_in=expires_in)

    @rule(mentor=mentors, is_known=st.booleans())
    def the_portal_errs_about_a_contact(self, mentor: Mentor, is_known: bool) -> None:
        """It does not know it (any more, or again), or somebody edited it there."""
        contact_id = mentor.contact_id
        if contact_id is None:
            return
        if is_known:
            self.portal.visible[contact_id] = not self.portal.visible.get(contact_id, True)
            self.edited.add(contact_id)
        else:
            self.refused ^= {contact_id}

    @rule(mood=st.sampled_from(tuple(PORTAL_MOODS)))
    def the_portal_changes_its_mood(self, mood: str) -> None:
        self.portal_mood = mood

    @rule(how=st.sampled_from(("retries", "leases", 1, 2, 7, 15, 31, 70)))
    def time_passes(self, how: int | str) -> None:
        """Until retry times or leases are over, or so many days."""
        if isinstance(how, int):
            self.model.today += timedelta(days=how)
            self._hours_pass()
        else:
            (run_out if how == "leases" else make_due)(self.facts)

    @rule(mentor=mentors, change=any_change, command=commands)
    def certjob(self, mentor: Mentor, change: Change, command: str) -> None:
        """A fact changes, and somebody or cron starts a command."""
        self.people.change(mentor, change)
        self._start(command, mentor)

    @rule(
        mentor=mentors, change=stirring_changes, command=commands, at=st.integers(1, 90) | moments, gently=st.booleans()
    )
    def a_process_is_ended(self, mentor: Mentor, change: Change, command: str, at: str | int, gently: bool) -> None:
        """By a signal that it can obey, or as by kill -9."""

        def end(process: Process) -> None:
            process.stop.set() if gently else process.kill(by=self.app)

        self._stir(mentor, change, command)
        self._start(command, mentor, moment=at, happening=end)

    @rule(
        mentor=mentors,
        changes=st.tuples(stirring_changes, stirring_changes),
        command=st.sampled_from(DELIVERING),
        moment=moments,
        second=st.none() | commands,
        freezes=st.booleans(),
    )
    def something_happens_meanwhile(
        self,
        mentor: Mentor,
        changes: tuple[Change, Change],
        command: str,
        moment: str,
        second: str | None,
        freezes: bool,
    ) -> None:
        """Another fact changes in the middle of a run, and perhaps another run starts that sees it.

        The first process may be frozen past its lease: it writes nothing more about what it lost. Only its call under
        way may still do something on the portal, too late: it is as if somebody edited it.
        """
        before, during = changes
        freezes = freezes and moment != "before the call"  # after its last look at its lease

        def meanwhile(process: Process) -> None:
            self.people.change(mentor, during)
            self._look_at_contacts()
            if freezes:
                self.edited |= set(process.under_way.values())
                type(self).seconds_asleep += 1000
                run_out(self.facts)
            if second is not None:
                self._look_at_contacts()
                self._run(second, mentor, self._new_process())

        self._stir(mentor, before, command)
        self._start(command, mentor, moment=moment, happening=meanwhile, concurrency=1 if freezes else None)
        if freezes:
            self.portal.overlaps.clear()

    @precondition(lambda self: self.commands_since_rest >= 5)
    @rule()
    def all_comes_to_rest(self) -> None:
        self._come_to_rest()

    # ── what must hold after each step ──

    @invariant()
    def nothing_is_lost_or_contradicts_itself(self) -> None:
        assert self.app.execute(WHAT_MUST_NOT_BE.encode()).fetchall() == []
        assert self._claims() <= self.orphaned, "claimed by a process that was not killed"

    @invariant()
    def the_portal_was_called_in_order_and_only_for_its_own(self) -> None:
        assert self.portal.overlaps == []
        requests = self.portal.requests[self.requests_seen :]
        self.requests_seen += len(requests)
        for request in requests:
            if request.method == "GET":
                continue
            assert request.contact_id is not None
            assert request.visible is not None
            key = request.idempotency_key or ""
            event_id, version = map(int, key.split("-"))
            assert (event_id, version) >= self.last_keys.get(request.contact_id, (0, 0)), "an older wish after a newer"
            assert self.values.setdefault(key, request.visible) is request.visible, "one key, two values"
            assert request.contact_id in self.callable_contacts, "a call for an organisation without a portal"
            self.last_keys[request.contact_id] = (event_id, version)

    # ── how ──

    def _stir(self, mentor: Mentor, change: Change, command: str) -> None:
        """Change a fact, so that the command has something to do."""
        self.people.change(mentor, change)
        if command in ("deliver", "alerts --retry-all"):  # they review nobody
            self._start("run without deliveries", mentor)

    def _look_at_contacts(self) -> None:
        """Note who may be called for by a command that starts now."""
        self.callable_contacts |= self.model.portal_values().keys()

    def _empty_database(self) -> None:
        """Begin anew; without the triggers, which would refuse, and ten times faster than TRUNCATE."""
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'certjob_migrations'"
        with self.app.transaction():
            self.app.execute("SET LOCAL session_replication_role = replica")
            for (table,) in self.app.execute(tables).fetchall():
                self.app.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))

    def _start(
        self,
        command: str,
        mentor: Mentor,
        *,
        moment: str | int | None = None,
        happening: Callable[[Process], None] = lambda _process: None,
        concurrency: int | None = None,
    ) -> RunReport | None:
        """Run a command in a process of its own, with something happening at a moment; its report, if it got so far."""
        self.commands_since_rest += 1
        process = self._new_process(moment, concurrency=concurrency)
        process.happening = lambda: happening(process)
        self.process = process
        self.callable_contacts.clear()
        self._look_at_contacts()
        report = self._run(command, mentor, process)
        if self.errors:
            raise self.errors[0]
        return report

    def _run(self, command: str, mentor: Mentor, process: Process) -> RunReport | None:
        is_alone = process.moment is None and process is self.process
        try:
            result = self._command(command, mentor, process)
        except (ProcessEnded, psycopg.Error):
            if not process.is_ended:
                raise
            return None
        except StoppedBySignalError:
            if not process.stop.is_set():
                raise
            return None
        finally:
            until(lambda: not process.under_way, seconds=60)
            if process.is_ended:
                process.connection.close()
                self.orphaned |= self._claims()
            else:
                assert process.connection.info.transaction_status is TransactionStatus.IDLE
                self.idle.append(process.connection)
        report = result.report if isinstance(result, Resync) else result
        assert not report.crashed, report.stopped
        assert report.review is None or not (report.review.skipped or report.review.broken), report.review
        if any(stop.stage == "portal" and stop.code not in ("in_flight", "not_read") for stop in report.stopped):
            assert self._unseen_hides() == [], report.stopped
        if isinstance(result, Resync) and result.error is None and mentor.on_portal and is_alone:
            assert mentor.contact_id is not None
            assert self.portal.visible[mentor.contact_id] is mentor.is_active(self.model.today)
        return report

    def _command(self, command: str, mentor: Mentor, process: Process) -> RunReport | Resync:
        today, connection = self.model.today, process.connection
        ways_out: dict[str, Any] = {"delivery": process.delivery, "stop": process.stop}
        if command.startswith("run"):
            return night(
                connection,
                today,
                ways_out=process.delivery,
                stop=process.stop,
                deliver=command != "run without deliveries",
                organisation="hlf" if command == "run of hlf" else None,
            )
        if command == "resync":
            times = ResyncTimes(lock=30, flight=0)
            return resync(connection, mentor.id, today=today, times=times, **ways_out)
        if command == "reconcile":
            return reconciling.reconcile(
                connection,
                options=reconciling.ReconcileOptions(ignore_database_clock=True, today=today),
                make_reader=lambda: HLFDynamicsSyncService(self.portal.url, self.portal.key, deadline_seconds=20),
                progress=NoProgress(),
                **ways_out,
            )
        start = nightly.retry_all if command == "alerts --retry-all" else nightly.deliver
        return start(connection, today=today, progress=NoProgress(), **ways_out)

    def _new_process(self, moment: str | int | None = None, *, concurrency: int | None = None) -> Process:
        connection = self.idle.pop() if self.idle else database.connect(self.database_url)
        concurrency = concurrency or self.concurrency
        return Process(connection, self.portal, concurrency=concurrency, moment=moment)

    def _answer(self, request: PortalRequest) -> Behaviour:
        """What the portal does with a request, after what happens during it."""
        is_refused = request.contact_id in self.refused
        behave = error(404, "contact_not_found") if is_refused else PORTAL_MOODS[self.portal_mood](request.number)
        process = self.process
        assert process is not None

        if request.method == "GET":
            for contact_id in self.model.portal_values():
                self.portal.visible.setdefault(contact_id, True)
            return behave

        def answer(exchange: Exchange) -> None:
            try:
                process.reach("in the call, nothing done")
                if process.moment == "in the call, done":
                    exchange.apply()
                    process.reach("in the call, done")
            except BaseException as error:  # noqa: BLE001 - raised again where the rule is
                self.errors.append(error)
            behave(exchange)

        return answer

    def _come_to_rest(self) -> None:
        """With everything healthy one night is enough, and whatever needs a person is seen and then done."""
        self.portal_mood = "up"
        self.refused.clear()
        self._hours_pass()
        anybody = self.model.mentors[0]

        report = self._start("run", anybody)

        assert report is not None
        assert [stop for stop in report.stopped if stop.stage == "portal"] == []
        assert report.portal_pending == 0
        blocked = self._open_events()
        for mentor in self.model.mentors:
            if mentor.id in blocked and mentor.contact_id is not None:
                self._start("resync", mentor)
        self._compare_with_model()
        if self.edited:
            self._start("reconcile", anybody)
            self.edited.clear()
        self.commands_since_rest = 0
        requests = len(self.portal.requests)
        self._start("run", anybody)
        assert len(self.portal.requests) == requests, "a call without a cause"
        self._compare_with_model()

    def _compare_with_model(self) -> None:
        today, mentors = self.model.today, self.model.mentors
        wanted = self.model.portal_values()
        wrong = {contact_id for contact_id in wanted if self.portal.visible.get(contact_id, True) != wanted[contact_id]}
        assert wrong <= self.edited
        assert set(self.facts.rows("SELECT id, status FROM certificates")) == {
            (certificate_id, mentor.status(certificate, today))
            for mentor in mentors
            for certificate_id, certificate in mentor.certificates.items()
        }
        assert paused_by_certjob(self.facts) == {m.id for m in mentors if m.is_paused_by_certjob(today)}
        others = "SELECT mentor_id, reason FROM mentor_pauses WHERE actor <> 'certjob' AND lifted_at IS NULL"
        assert set(self.facts.rows(others)) == {(m.id, reason) for m in mentors for reason in m.pauses}
        without_contact = {m.id for m in mentors if m.organisation.has_portal and m.contact_id is None}
        assert self._open_events() <= without_contact

    def _hours_pass(self) -> None:
        """Every lease runs out, every retry time comes, and no call can land any more."""
        let_unknown_outcomes_pass(self.facts)
        run_out(self.facts)
        make_due(self.facts)

    def _open_events(self) -> set[object]:
        rows = self.facts.rows("SELECT mentor_id FROM portal_sync_events WHERE status IN ('pending', 'blocked')")
        return {mentor_id for (mentor_id,) in rows}

    def _unseen_hides(self) -> list[tuple[object, ...]]:
        return self.facts.rows(
            "SELECT e.mentor_id FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id"
            " JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL"
            " WHERE e.status IN ('pending', 'blocked') AND NOT e.visible"
            " AND e.id NOT IN (SELECT event_id FROM portal_alerts)"
        )

    def _claims(self) -> set[object]:
        claims = "SELECT claim_token FROM portal_sync_events WHERE claim_token IS NOT NULL"
        return {token for (token,) in self.facts.rows(claims)}


few = settings(
    max_examples=5,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
"""The same games every time. A step is a run on a real database, which the health checks take for a slow strategy."""


def test_whatever_happens_the_portal_comes_to_show_what_it_should(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts change, runs overlap and die, the portal fails: nothing is lost, and it ends as the model says."""
    number = os.environ.get(EXAMPLES)
    profile = settings(few, max_examples=int(number), stateful_step_count=50, derandomize=False) if number else few
    monkeypatch.setattr(Saga, "database_url", database_url)
    monkeypatch.setattr(Saga, "seconds_asleep", 0.0)
    awake = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) + Saga.seconds_asleep)

    run_state_machine_as_test(Saga, settings=profile)
