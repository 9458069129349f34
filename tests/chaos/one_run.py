"""One seeded run: the plan is carried out, everything is put right, and what must be true is asked."""

import random
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos import invariants
from tests.chaos.cluster import Cluster
from tests.chaos.database_proxy import DatabaseProxy
from tests.chaos.faults import Action
from tests.chaos.plans import DELIVER, RUN, Command, Plan, TimePasses
from tests.chaos.stage import Stage
from tests.chaos.strikes import Strike
from tests.support.command_line import Child, Finished
from tests.support.facts import Facts
from tests.support.programmes import everything

MOST_RECOVERIES = 3
ENDS_WITHIN_SECONDS = 90.0

_HARMLESS = frozenset({Action.LATE, Action.CANCEL})
"""To the process itself nothing happens."""


@dataclass(kw_only=True)
class Outcome:
    """What came of a run."""

    plan: Plan
    complaints: list[str] = field(default_factory=list)
    trail: list[str] = field(default_factory=list)
    tried: list[tuple[str, bool]] = field(default_factory=list)
    """What was to go wrong in each command and in its mail sessions, and whether its place was reached."""
    nights: list[dict[str, int]] = field(default_factory=list)
    """How many statements, requests, mails and steps of mail sessions there were of each command."""
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"seed {self.plan.seed}: {len(self.complaints)} complaint(s), after {self.seconds:.1f} s"]
        lines += [f"  ! {complaint}" for complaint in self.complaints]
        lines += [f"    {line}" for line in self.trail]
        return "\n".join(lines)


def perform(plan: Plan, *, cluster: Cluster, folder: Path) -> Outcome:
    """Carry out a plan on a fresh database of this server; ``folder`` is the commands' working folder."""
    began = time.monotonic()
    with Stage.set_up(cluster=cluster, folder=folder, seed=plan.seed) as stage:
        run = _Run(plan, stage)
        try:
            run.play()
        except Exception as error:  # noqa: BLE001 - what a run cannot get over is a finding like others
            run.outcome.complaints.append(f"the run could not go on: {type(error).__name__}: {error}")
            cluster.start()  # it may have been stopped just then
        if run.outcome.complaints:
            run.leave_trail()
    run.outcome.seconds = time.monotonic() - began
    return run.outcome


class _Run:
    def __init__(self, plan: Plan, stage: Stage) -> None:
        self.outcome = Outcome(plan=plan)
        self._plan = plan
        self._stage = stage
        self._events_seen: set[int] = set()
        self._has_reported = False
        """Whether a run of this day has said what needs attention."""

    def play(self) -> None:
        self._stage.populate(self._plan.population)
        for step in self._plan.steps:
            match step:
                case Command():
                    self._command(step)
                case TimePasses():
                    self._stage.let_time_pass()
                case changes:
                    self._stage.change(changes)
        self._recover()
        self._edit_the_portal()
        self._judge()

    def _command(self, command: Command) -> int:
        """Run one command, with what goes wrong in it; return its exit code."""
        stage, fault = self._stage, command.fault
        stage.trail.append(str(command))
        before = stage.traffic
        with ExitStack() as stack:
            strike = Strike(fault, cluster=stage.cluster)
            stage.receiver.begin(command.script, strike)
            stage.postbox.begin(command.mail_script, strike)
            proxy = stack.enter_context(DatabaseProxy(stage.cluster, strike))
            child = stack.enter_context(stage.started(command, proxy))
            strike.arm(child)
            its_twin = self._start_twin(command, stack) if command.twin is not None else None
            ended = [self._finish(command, child, strike)]
            code = ended[0][0].returncode
            if command.twin is not None and its_twin is not None:
                is_hit, action = strike.struck.is_set(), fault.action if fault is not None else None
                codes = {0, 1, 3} if is_hit and action is Action.RESTART else {0, 3}
                ended.append((its_twin.finish(timeout_seconds=ENDS_WITHIN_SECONDS), command.twin[0], codes))
            for result, name, codes in sorted(ended, key=lambda each: not each[0].stderr):  # one says it for both
                self._judge_result(result, name, codes)
        if strike.error is not None:
            raise strike.error
        hit = list(stage.postbox.hit)
        stage.receiver.begin((), None)
        stage.postbox.begin((), None)
        stage.wait_until_idle()
        sent = {what: number - before[what] for what, number in stage.traffic.items()}
        self.outcome.nights.append({"statements": len(proxy.statements)} | sent)
        self.outcome.tried.append((command.label, fault is None or strike.struck.is_set()))
        for trouble in filter(None, command.mail_script):
            self.outcome.tried.append((str(trouble), trouble in hit))
            if trouble in hit:
                hit.remove(trouble)
        self._look(ended_by_itself=code in {0, 3} and not its_twin and not strike.struck.is_set(), of=command)
        return code

    def _start_twin(self, command: Command, stack: ExitStack) -> Child:
        """A second process, undisturbed."""
        assert command.twin is not None
        twin = Command(words=command.twin, concurrency=command.concurrency, attempts=command.attempts)
        unstruck = Strike(None, cluster=self._stage.cluster)
        proxy = stack.enter_context(DatabaseProxy(self._stage.cluster, unstruck))
        return stack.enter_context(self._stage.started(twin, proxy))

    def _finish(self, command: Command, child: Child, strike: Strike) -> tuple[Finished, str, set[int]]:
        """How it ended, its name, and the codes with which it may end."""
        result = child.finish(timeout_seconds=ENDS_WITHIN_SECONDS)
        strike.finish()
        if self._stage.has_struck_itself():
            strike.struck_itself()
        codes = {0, 3}
        if command.fault is not None and strike.struck.is_set() and command.fault.action not in _HARMLESS:
            codes = {-9} if strike.has_killed else {0, 1, 3}
        struck = f", {'struck' if strike.struck.is_set() else 'not struck'}" if command.fault else ""
        self._stage.trail.append(f"  ended with {result.returncode}{struck}: {result.stderr.strip()}")
        return result, command.words[0], codes

    def _judge_result(self, result: Finished, name: str, codes: set[int]) -> None:
        has_reported = self._has_reported
        self._complain(invariants.result_complaints(result, command=name, expected=codes, has_reported=has_reported))
        self._has_reported = has_reported or (name == "run" and result.returncode in {0, 3})

    def _look(self, *, ended_by_itself: bool, of: Command) -> None:
        with self._stage.session() as connection:
            self._complain(invariants.look_complaints(connection, events_seen=self._events_seen))
            if ended_by_itself and of.words in {("run",), ("deliver",)}:
                self._complain(invariants.unseen_complaints(connection))

    def _recover(self) -> None:
        """All is healthy and every lease has run out: certjob runs until it is content."""
        stage = self._stage
        stage.trail.append("everything is healthy again")
        if self._plan.corrects_contacts:
            for person in stage.people:
                if person.has_portal and not stage.is_reachable(person):
                    stage.correct_contact(person)
        if self._plan.deliver_first:
            stage.let_time_pass()
            self._command(Command(words=DELIVER, concurrency=2))
        for _ in range(MOST_RECOVERIES):
            stage.let_time_pass()
            is_good = self._command(Command(concurrency=2)) == (3 if self._is_blocked_by_design() else 0)
            if is_good and not self._is_somebody_due():  # a reminder that was cancelled is looked at once more
                return
        self.outcome.complaints.append(f"not content after {MOST_RECOVERIES} healthy runs")

    def _edit_the_portal(self) -> None:
        """Hands show and hide at random, and nothing in the database knows: a reconcile beside a run puts it right.

        Nobody is hidden who was never certified: certjob would not show them again.
        """
        stage, dice = self._stage, random.Random(self._plan.seed)
        for person in stage.people:
            wanted = person.decision.visible
            can_be_corrected = not person.decision.without_certificate
            is_shown = person.has_portal and person.contact_id and stage.is_reachable(person)
            if is_shown and person.contact_id and can_be_corrected and dice.random() < 0.5:
                stage.trail.append(f"by hand: {person.member_no} is {'hidden' if wanted else 'shown'}")
                stage.receiver.visible[person.contact_id] = not wanted
        self._command(Command(words=("reconcile",), twin=RUN, concurrency=2))

    def _is_somebody_due(self) -> bool:
        with self._stage.session() as connection:
            statement = "SELECT FROM mentors WHERE review_on <= %s LIMIT 1"
            return bool(connection.execute(statement, (self._stage.today,)).fetchall())

    def _is_blocked_by_design(self) -> bool:
        """Whether something cannot be pushed for want of a contact; nobody corrected it."""
        unreachable = [each.id for each in self._stage.people if each.has_portal and not self._stage.is_reachable(each)]
        blocked = "SELECT FROM portal_sync_events WHERE status = 'blocked' AND mentor_id = ANY (%s)"
        with self._stage.session() as connection:
            return bool(connection.execute(blocked, (unreachable,)).fetchall())

    def _judge(self) -> None:
        stage = self._stage
        self.outcome.complaints += stage.receiver.complaints
        self.outcome.complaints += [
            f"two calls at once: {first.idempotency_key} and {second.idempotency_key} ({first.contact_id})"
            for first, second in stage.receiver.overlaps
        ]
        with stage.session() as connection:
            for judge in invariants.AT_THE_END:
                self._complain(judge(connection, stage))

    def _complain(self, complaints: Iterable[str]) -> None:
        self.outcome.complaints.extend(complaints)

    def leave_trail(self) -> None:
        """Everything that helps to understand what happened."""
        stage = self._stage
        trail = self.outcome.trail
        trail += [*map(str, self._plan.population), *stage.trail]
        trail += ["the portal received:", *(f"  {one}" for one in stage.receiver.trail)]
        trail += ["the mail server took:", *(f"  {one}" for one in stage.postbox.taken)]
        with stage.session() as connection:
            for table, rows in everything(Facts(connection)).items():
                trail += [f"{table}:", *(f"  {row[0]}" for row in rows)]
