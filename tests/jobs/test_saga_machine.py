"""The saga under everything at once: hypothesis changes facts, starts and breaks runs, and looks.

``CERTJOB_TEST_EXAMPLES=500`` plays so many new games instead of the few that are the same every time.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
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
from tests.support.nights import NoProgress, make_due, night, quick_policy, run_out
from tests.support.people import ordinarily
from tests.support.portal_answers import Behaviour, Exchange, PortalRequest, cut, error, ok, reset
from tests.support.portal_server import PortalServer
from tests.support.programmes import Person, read_people

PORTAL_MOODS: dict[str, Callable[[int], Behaviour]] = {
    "up": lambda _number: ok(),
    "down": lambda _number: error(503, "dynamics_unavailable"),
    "throttled": lambda _number: error(429, "throttled", retry_after="3600"),
    "throttled for a moment": lambda number: error(429, "throttled", retry_after="0") if number % 2 else ok(),
    "misconfigured": lambda _number: error(500, "misconfigured"),
    "cutting every answer": lambda _number: cut(),
    "resetting now and then": lambda number: (ok(), reset(), reset(applied=True))[number % 3],
}

OPEN_EVENTS = "SELECT mentor_id FROM portal_sync_events WHERE status IN ('pending', 'blocked')"
NEVER = {
    "an unresolved failure of a mentor for whom nothing is open": f"""
        SELECT mentor_id FROM dynamics_sync_failures WHERE resolved_at IS NULL AND mentor_id NOT IN ({OPEN_EVENTS})""",
    "a blocked event that nobody is told of, except a show that waits for a review": """
        SELECT e.mentor_id FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id
        WHERE e.status = 'blocked' AND NOT (e.visible AND m.review_on <= current_date)
            AND e.id NOT IN (SELECT row_id FROM alerts WHERE last_failed_at IS NOT NULL)""",
    "a wanted value without its event": """
        SELECT m.id FROM mentors AS m LEFT JOIN LATERAL (
            SELECT visible, status FROM portal_sync_events WHERE mentor_id = m.id ORDER BY id DESC LIMIT 1
        ) AS last ON true
        WHERE m.portal_visible IS DISTINCT FROM coalesce(last.visible, true) AND m.portal_visible IS NOT NULL
            OR last.status = 'withdrawn' AND m.portal_visible IS NOT NULL""",
    "a reviewed mentor whose wanted value is not what their state asks for": """
        SELECT m.id FROM mentors AS m JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
        WHERE m.review_on > '-infinity'
            AND m.portal_visible IS DISTINCT FROM (
                m.left_at IS NULL AND m.certified_until > '0001-01-01' AND NOT EXISTS (
                    SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL))
            AND NOT (m.portal_visible AND m.dynamics_contact_id IS NULL AND m.certified_until = '0001-01-01')""",
    "a certificate whose status is not the last of its audit": """
        SELECT c.id FROM certificates AS c WHERE c.status <> coalesce((
            SELECT to_status FROM certificate_transitions AS t WHERE t.certificate_id = c.id ORDER BY t.id DESC LIMIT 1
        ), 'recorded')""",
    "a pause of somebody else that certjob lifted": """
        SELECT mentor_id FROM mentor_pauses WHERE lifted_by = 'certjob' AND actor <> 'certjob'""",
    "a pause that certjob opened or lifted while the mentor was away": """
        SELECT m.id FROM mentor_pauses AS p JOIN mentors AS m ON m.id = p.mentor_id
        WHERE p.actor = 'certjob' AND p.paused_at > m.left_at OR p.lifted_by = 'certjob' AND p.lifted_at > m.left_at""",
}
"""What must not be, whatever happens: each statement finds the ids of those who would prove it."""
UNSEEN_HIDES = """
    SELECT e.mentor_id FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id
    JOIN organisations AS o ON o.id = m.organisation_id AND o.portal IS NOT NULL
    WHERE e.status IN ('pending', 'blocked') AND NOT e.visible
        AND NOT EXISTS (SELECT FROM alerts WHERE row_id = e.id)"""
WHAT_MUST_NOT_BE = " UNION ALL ".join(
    f"SELECT '{what}', id::text FROM ({find}) AS f (id)" for what, find in NEVER.items()
)

_CERTIFICATE = (
    "id = (SELECT id FROM certificates WHERE mentor_id = %(mentor)s ORDER BY kind, issued_on OFFSET %(n)s LIMIT 1)"
)
_LAST_DAY = "%(today)s::date + %(ends_in)s"
_LIFT = "UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'coordinator' WHERE mentor_id = %(mentor)s"
CHANGES = {
    "issue": "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES"
    f" (%(mentor)s, %(kind)s, least(%(today)s::date + %(begins_in)s, {_LAST_DAY}), {_LAST_DAY}) ON CONFLICT DO NOTHING",
    "extend, or correct": f"UPDATE certificates SET expires_on = greatest(issued_on, {_LAST_DAY}) WHERE {_CERTIFICATE}",
    "revoke, or take it back": "UPDATE certificates SET revoked_at = CASE WHEN revoked_at IS NULL THEN now() END"
    f" WHERE {_CERTIFICATE}",
    "delete": f"DELETE FROM certificates WHERE {_CERTIFICATE}",
    "pause, or lift it": f"WITH lifted AS ({_LIFT} AND reason = %(reason)s AND lifted_at IS NULL RETURNING id)"
    " INSERT INTO mentor_pauses (mentor_id, reason, actor)"
    " SELECT %(mentor)s, %(reason)s, 'coordinator' WHERE NOT EXISTS (SELECT FROM lifted)",
    "lift certjob's pause": f"{_LIFT} AND actor = 'certjob' AND lifted_at IS NULL",
    "leave, or come back": "UPDATE mentors SET left_at = CASE WHEN left_at IS NULL THEN now() END"
    " WHERE id = %(mentor)s",
    "another contact": "UPDATE mentors SET dynamics_contact_id = gen_random_uuid() WHERE id = %(mentor)s",
    "the first contact again": "UPDATE mentors SET dynamics_contact_id = id WHERE id = %(mentor)s",
    "no contact": "UPDATE mentors SET dynamics_contact_id = NULL WHERE id = %(mentor)s",
    "move to the other organisation": "UPDATE mentors AS m SET organisation_id = o.id FROM organisations AS o"
    " WHERE o.id <> m.organisation_id AND m.id = %(mentor)s",
    "a portal, or none": "UPDATE organisations SET portal = CASE WHEN portal IS NULL THEN 'dynamics' END"
    " WHERE id = (SELECT organisation_id FROM mentors WHERE id = %(mentor)s)",
    "an optional kind, or not": "UPDATE organisations SET optional_kinds = CASE WHEN %(kind)s = ANY (optional_kinds)"
    " THEN array_remove(optional_kinds, %(kind)s) ELSE array_append(optional_kinds, %(kind)s) END"
    " WHERE id = (SELECT organisation_id FROM mentors WHERE id = %(mentor)s)",
}
"""What people do, as the app writes it."""
Change = tuple[str, dict[str, Any]]

last_days = st.sampled_from((-16, -15, -2, -1, 0, 1, 5, 7, 8, 14, 29, 30, 59, 60, 61, 300))
"""On both sides of each threshold, and two for each."""
details = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(("likeperson", "first_aid")),
        "n": st.integers(0, 2),
        "begins_in": st.sampled_from((-700, -100, -30, 0, 1, 5)),
        "ends_in": last_days,
        "reason": st.sampled_from(("illness", "leave")),
    }
)
any_change: st.SearchStrategy[Change] = st.tuples(st.sampled_from(tuple(CHANGES)), details)
stirring_changes = any_change | st.tuples(
    st.sampled_from(("leave, or come back", "pause, or lift it", "another contact")), details
)
"""Mostly such as the portal must be told of."""
DELIVERING = ("run", "run of hlf", "deliver", "reconcile", "alerts --retry-all", "resync")
commands = st.sampled_from((*DELIVERING, "run without deliveries"))
moments = st.sampled_from(("before the call", "in the call, nothing done", "in the call, done", "after the call"))
"""When a run holds no lock and has nothing to decide, so that anything may happen beside it."""


class Process:
    """A process that runs certjob: a connection, the ways out, and moments of the network's when something happens.

    What happens when a process is killed, at any statement, is the subject of ``tests/chaos``.
    """

    def __init__(
        self,
        saga: "Saga",
        *,
        concurrency: int | None = None,
        planned: dict[str, Callable[["Process"], None]] | None = None,
    ) -> None:
        """``planned`` is what happens at a moment, once."""
        self.connection = saga.idle.pop() if saga.idle else saga.open.enter_context(database.connect(saga.url))
        self.stop = StopFlag()
        self.planned = planned or {}
        self.under_way: list[UUID] = []
        """Contacts of the calls that have begun and not ended."""
        self.portal = saga.portal
        concurrency = concurrency or saga.concurrency
        self.delivery = Delivery(
            make_portal=lambda: Client(self), policy=quick_policy(), concurrency=concurrency, deadline_seconds=600
        )

    def reach(self, moment: str) -> None:
        """Let happen what was planned for this moment."""
        if happening := self.planned.pop(moment, None):
            happening(self)


class Client(HLFDynamicsSyncService):
    """The real client of a process, which reaches its moments."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.portal.url, process.portal.key, deadline_seconds=20)
        self.process = process

    async def update_portal_visibility(self, contact_id: UUID, **wanted: Any) -> None:
        process = self.process
        process.under_way.append(contact_id)
        try:
            # Another process may come to life in it, with an event loop of its own: not in this one's thread.
            await asyncio.to_thread(process.reach, "before the call")
            await super().update_portal_visibility(contact_id, **wanted)
        finally:
            await asyncio.to_thread(process.reach, "after the call")
            process.under_way.remove(contact_id)


class Saga(RuleBasedStateMachine):
    """The programme, its people, its portal and its nights."""

    mentors: Bundle[UUID] = Bundle("mentors")
    server: ClassVar[tuple[str, str]]
    """Where each game has a database of its own, and the template's name."""
    seconds_asleep: ClassVar[float] = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.open = ExitStack()
        """What is closed at the end."""
        game = fresh_database(*self.server)
        self.url = next(game)
        self.open.callback(next, game, None)  # drops it, whatever was found
        self.facts = Facts(self.open.enter_context(database.connect(self.url)))
        self.portal = self.open.enter_context(PortalServer(self._answer))
        self.portal_mood = "up"
        self.today = TODAY
        self.refused: set[UUID] = set()
        self.edited: set[UUID] = set()
        """Contacts that somebody, or a frozen process, has changed on the portal."""
        self.callable_contacts: set[UUID] = set()
        """Whose organisation had a portal when this command started, or during it."""
        self.last_keys: dict[UUID, tuple[int, int]] = {}
        self.values: dict[tuple[int, int], bool] = {}
        self.requests_seen = self.commands_since_rest = 0
        self.idle: list[database.Connection] = []
        """Left by processes that came to their end: a new connection would cost more than a run."""
        self.process: Process | None = None
        self.errors: list[BaseException] = []

    def teardown(self) -> None:
        """Let it all come to rest, unless something was found already."""
        with self.open:
            if sys.exc_info()[0] is None:
                self._come_to_rest()

    # ── what happens ──

    @initialize(target=mentors, days=st.lists(last_days, min_size=6, max_size=6), concurrency=st.sampled_from((1, 3)))
    def begin(self, days: list[int], concurrency: int) -> Any:
        """Five mentors of an organisation with a portal, one of an organisation without."""
        self.concurrency = concurrency
        self.organisations = (self.facts.organisation("hlf"), self.facts.organisation("other", portal=None))
        return multiple(*(self._welcome(number // 5, contact=True, expires_in=days[number]) for number in range(6)))

    @precondition(lambda self: len(self.facts.rows("SELECT FROM mentors")) < 9)
    @rule(target=mentors, organisation=st.integers(0, 1), contact=st.booleans(), expires_in=st.none() | last_days)
    def a_mentor_joins(self, organisation: int, contact: bool, expires_in: int | None) -> UUID:
        return self._welcome(organisation, contact=contact, expires_in=expires_in)

    @rule(mentor=mentors, is_known=st.booleans())
    def the_portal_errs_about_a_contact(self, mentor: UUID, is_known: bool) -> None:
        """It does not know it (any more, or again), or somebody edited it there."""
        contact_id = self._mentors()[mentor].contact_id
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

    @rule(days=st.sampled_from((0, 1, 2, 7, 15, 31, 70)))
    def time_passes(self, days: int) -> None:
        """Until every retry time has come."""
        self.today += timedelta(days=days)
        make_due(self.facts)

    @rule(mentor=mentors, change=any_change, command=commands)
    def certjob(self, mentor: UUID, change: Change, command: str) -> None:
        """A fact changes, and somebody or cron starts a command."""
        self._change(mentor, change)
        self._start(command, mentor)

    @rule(
        mentor=mentors,
        changes=st.tuples(stirring_changes, stirring_changes),
        command=st.sampled_from(DELIVERING),
        moment=moments,
        second=st.none() | commands,
        fate=st.sampled_from(("goes on", "is stopped", "freezes")),
    )
    def something_happens_meanwhile(
        self, mentor: UUID, changes: tuple[Change, Change], command: str, moment: str, second: str | None, fate: str
    ) -> None:
        """Another fact changes in the middle of a run, and perhaps another run starts that sees it.

        The first process may be stopped by a signal, or frozen past its lease: it writes nothing more about what it
        lost. Only its call under way may still do something on the portal, too late: it is as if somebody edited it.
        """
        freezes = fate == "freezes" and moment != "before the call"  # after its last look at its lease

        def meanwhile(process: Process) -> None:
            self._change(mentor, changes[1])
            self.callable_contacts |= self._reachable().keys()
            if fate == "is stopped":
                process.stop.set()
            if freezes:
                self.edited |= set(process.under_way)
                type(self).seconds_asleep += 1000
                run_out(self.facts)
            if second is not None:
                self._run(second, mentor, Process(self))

        self._change(mentor, changes[0])
        if command in ("deliver", "alerts --retry-all"):  # they review nobody
            self._start("run without deliveries", mentor)
        self._start(command, mentor, planned={moment: meanwhile}, concurrency=1 if freezes else None)
        if freezes:
            self.portal.overlaps.clear()

    @precondition(lambda self: self.commands_since_rest >= 5)
    @rule()
    def all_comes_to_rest(self) -> None:
        self._come_to_rest()

    # ── what must hold after each step ──

    @invariant()
    def nothing_is_lost_or_contradicts_itself(self) -> None:
        assert self.facts.rows(WHAT_MUST_NOT_BE) == []
        claims = "SELECT claim_token FROM portal_sync_events WHERE claim_token IS NOT NULL"
        assert self._ids(claims) == set(), "claimed by a process that has ended"

    @invariant()
    def the_portal_was_called_in_order_and_only_for_its_own(self) -> None:
        assert self.portal.overlaps == []
        requests = self.portal.requests[self.requests_seen :]
        self.requests_seen += len(requests)
        for request in requests:
            if request.method == "GET":
                continue
            assert request.contact_id in self.callable_contacts, "a call for an organisation without a portal"
            assert request.order >= self.last_keys.get(request.contact_id, (0, 0)), "an older wish after a newer"
            assert self.values.setdefault(request.order, bool(request.visible)) is request.visible, (
                "one key, two values"
            )
            self.last_keys[request.contact_id] = request.order

    # ── how ──

    def _mentors(self) -> dict[UUID, Person]:
        return read_people(self.facts.connection, self.today)

    def _reachable(self) -> dict[UUID, Person]:
        """By contact, those whom the portal can be told of."""
        return {each.contact_id: each for each in self._mentors().values() if each.contact_id and each.has_portal}

    def _welcome(self, organisation: int, *, contact: bool, expires_in: int | None) -> UUID:
        """Add a mentor; the first contact id is the mentor's own id."""
        mentor = self.facts.mentor(self.organisations[organisation], contact_id=None)
        if contact:
            self._change(mentor, ("the first contact again", {}))
        if expires_in is not None:
            self._change(mentor, ("issue", {"kind": "likeperson", "begins_in": -700, "ends_in": expires_in}))
        return mentor

    def _change(self, mentor: UUID, change: Change) -> None:
        name, details = change
        self.facts.connection.execute(CHANGES[name].encode(), details | {"mentor": mentor, "today": self.today})

    def _start(self, command: str, mentor: UUID, **options: Any) -> RunReport | None:
        """Run a command in a process of its own, to which ``options`` go; its report, if it got so far."""
        self.commands_since_rest += 1
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

    def _run(self, command: str, mentor: UUID, process: Process) -> RunReport | Resync | None:
        try:
            result = self._command(command, mentor, process)
        except StoppedBySignalError:
            if not process.stop.is_set():
                raise
            return None
        finally:
            assert process.connection.info.transaction_status is TransactionStatus.IDLE
            assert not process.under_way
            self.idle.append(process.connection)
        report = result.report if isinstance(result, Resync) else result
        assert not report.crashed, report.stopped
        assert report.review is None or not (report.review.skipped or report.review.broken), report.review
        if any(stop.stage == "portal" and stop.code not in ("in_flight", "not_read") for stop in report.stopped):
            assert self._ids(UNSEEN_HIDES) == set(), report.stopped
        return result

    def _command(self, command: str, mentor: UUID, process: Process) -> RunReport | Resync:
        connection, today = process.connection, self.today
        ways_out: dict[str, Any] = {"delivery": process.delivery, "stop": process.stop}
        if command.startswith("run"):
            organisation = "hlf" if command == "run of hlf" else None
            options: dict[str, Any] = {"deliver": command != "run without deliveries", "organisation": organisation}
            return night(connection, today, ways_out=process.delivery, stop=process.stop, **options)
        if command == "resync":
            return resync(connection, mentor, today=today, lock_wait_seconds=30, flight_wait_seconds=0, **ways_out)
        ways_out |= {"today": today, "progress": NoProgress()}
        if command == "reconcile":
            return reconcile(connection, accept_date=self.today, **ways_out)
        start = runs.retry_all if command == "alerts --retry-all" else runs.deliver
        return start(connection, **ways_out)

    def _answer(self, request: PortalRequest) -> Behaviour:
        """What the portal does with a request, after what happens during it."""
        is_refused = request.contact_id in self.refused
        behave = error(404, "contact_not_found") if is_refused else PORTAL_MOODS[self.portal_mood](request.number)
        process = self.process
        assert process is not None

        if request.method == "GET":
            self.portal.visible |= dict.fromkeys(self._reachable().keys() - self.portal.visible.keys(), True)
            return behave

        def answer(exchange: Exchange) -> None:
            try:
                process.reach("in the call, nothing done")
                if "in the call, done" in process.planned:
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
        make_due(self.facts)
        anybody = next(iter(self._mentors()))

        report = self._start("run", anybody)

        assert report is not None
        assert [stop for stop in report.stopped if stop.stage == "portal"] == []
        assert report.to_document()["portal"]["pending"] == 0
        for mentor in self._reachable().values():
            if mentor.id in self._ids(OPEN_EVENTS):
                self._start("resync", mentor.id)
        self._look_at_everybody()
        if self.edited:
            self._start("reconcile", anybody)
            self.edited.clear()
        self.commands_since_rest = 0
        requests = len(self.portal.requests)
        self._start("run", anybody)
        assert len(self.portal.requests) == requests, "a call without a cause"
        self._look_at_everybody()

    def _look_at_everybody(self) -> None:
        for contact, person in self._reachable().items():
            if contact not in self.edited:
                assert self.portal.visible.get(contact, True) is person.decision.visible
        mentors = self._mentors().values()
        assert [mentor for mentor in mentors if not mentor.is_calm] == []
        assert self._ids(OPEN_EVENTS) <= {m.id for m in mentors if m.has_portal and m.contact_id is None}

    def _ids(self, statement: str) -> set[object]:
        return {each for (each,) in self.facts.rows(statement)}


few = settings(ordinarily, max_examples=5, stateful_step_count=30, suppress_health_check=[HealthCheck.too_slow])
"""The same games every time. A step is a run on a real database, which the health checks take for a slow strategy."""


def test_whatever_happens_the_portal_comes_to_show_what_it_should(
    server_url: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts change, runs overlap and die, the portal fails: nothing is lost, and it ends as the rules say."""
    number = os.environ.get("CERTJOB_TEST_EXAMPLES")
    profile = settings(few, max_examples=int(number), stateful_step_count=50, derandomize=False) if number else few
    monkeypatch.setattr(Saga, "server", (server_url, template), raising=False)
    monkeypatch.setattr(Saga, "seconds_asleep", 0.0)
    awake = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: awake(clock) + Saga.seconds_asleep)

    stateful.run_state_machine_as_test(Saga, settings=profile)
