"""One seeded run: carry out the plan, recover, and check the invariants."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from uuid import uuid4

from certjob.database import Connection
from certjob.domain.models import Reminder
from tests.chaos import invariants
from tests.chaos.database_proxy import DatabaseProxy, Trigger
from tests.chaos.faults import Action, Fault, MailFault, Spot
from tests.chaos.plans import Command, Plan
from tests.chaos.population import create
from tests.chaos.servers import ChaosMailServer, ChaosPortal
from tests.support.command_line import Child, Finished, started, today
from tests.support.facts import Facts
from tests.support.nights import expire_leases, make_due
from tests.support.own_server import Cluster
from tests.support.programmes import Person, read_people
from tests.support.waiting import until

ENDS_WITHIN_SECONDS = 90.0
_SHORT_MAIL_TIMES = {"mail_lease": 900.0, "message": 3.0}
"""For a silent mail server, instead of a minute or ten."""
_SESSIONS = b"SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'certjob'"


def carry_out(plan: Plan, cluster: Cluster) -> "ChaosRun":
    """Carry out a plan on a fresh database."""
    name = f"chaos_{plan.seed}_{uuid4().hex[:8]}"
    with cluster.fresh_database(name), ChaosPortal() as portal, ChaosMailServer() as mail_server:
        run = ChaosRun(plan=plan, cluster=cluster, database=name, portal=portal, mail_server=mail_server)
        try:
            run.carry_out()
        except Exception as error:  # noqa: BLE001 - an error of the run is a finding
            run.complaints.append(f"the run could not go on: {type(error).__name__}: {error}")
            cluster.start()  # it may be down
    return run


@dataclass(kw_only=True)
class ChaosRun:
    """A plan, its servers, and the findings."""

    plan: Plan
    cluster: Cluster
    database: str
    portal: ChaosPortal
    mail_server: ChaosMailServer
    today: date = field(default_factory=today)
    complaints: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)  # of each command
    missed: list[Fault | MailFault] = field(default_factory=list)  # faults at places that the run did not reach
    places: list[Counter[Spot]] = field(default_factory=list)  # the events of each command
    people: list[Person] = field(default_factory=list)
    ever_due: set[Reminder] = field(default_factory=set)

    def __str__(self) -> str:
        return "\n".join([f"seed {self.plan.seed}: {self.plan}", *self.output, *self.complaints])

    def carry_out(self) -> None:
        with self._session() as connection:
            create(Facts(connection), self.plan.population, self.today)
        self._note_due_reminders()
        self.portal.visible |= {each.contact_id: True for each in self.people if each.contact_id}
        for step in self.plan.steps:
            if isinstance(step, Command):
                self._command(step)
            elif isinstance(step, str):
                self._let_time_pass()
            else:
                for change in step:
                    with self._session() as connection:
                        change.apply(Facts(connection), self.today)
                    self._note_due_reminders()
        self._recover()
        with self._session() as connection:
            for judge in invariants.AT_THE_END:
                self.complaints += judge(connection, self)

    def _session(self) -> Connection:
        return self.cluster.connect(self.database)

    def _note_due_reminders(self) -> None:
        with self._session() as connection:
            self.people = list(read_people(connection, self.today).values())
        self.ever_due.update(*(person.decision.reminders for person in self.people))

    def _let_time_pass(self) -> None:
        with self._session() as connection:
            for table in ("portal_sync_events", "cert_notification_log"):
                make_due(Facts(connection), table)
                expire_leases(Facts(connection), table)
            connection.execute("UPDATE guard_counts SET at = at - interval '1 day'")

    def _command(self, command: Command) -> int:
        """Run one command with its fault; return its exit code."""
        trigger = Trigger(command.fault, self._act_beside)
        self.portal.begin(command.script, trigger)
        self.mail_server.begin(command.mail_script, trigger)
        with ExitStack() as stack:
            children = [(command, stack.enter_context(self._process(command, trigger)))]
            if command.twin is not None:
                twin = Command(words=command.twin, concurrency=command.concurrency, attempts=command.attempts)
                children.append((twin, stack.enter_context(self._process(twin, Trigger()))))
            ended = [(each, child.finish(timeout_seconds=ENDS_WITHIN_SECONDS)) for each, child in children]
            until(lambda: trigger.is_done or not trigger.has_begun, seconds=60)  # a restart outlasts the command
        for each, result in ended:
            self._judge(each, result, trigger)
        self.places.append(trigger.seen)
        self.missed += [command.fault] if command.fault is not None and not trigger.is_done else []
        self.missed += self.mail_server.script
        self.portal.begin()
        self.mail_server.begin()
        until(self._is_idle)
        return ended[0][1].returncode

    @contextmanager
    def _process(self, command: Command, trigger: Trigger) -> Iterator[Child]:
        """Start the command as cron does."""
        words = [*command.words, "-q"] if command.words[0] == "resync" else list(command.words)
        altered: dict[str, Any] = {"attempts": command.attempts, "at_once": command.concurrency}
        if any(fault.manner == "silent" for fault in command.mail_script):
            altered |= _SHORT_MAIL_TIMES
        environment = self.portal.settings | {
            "HOME": str(self.cluster.folder),
            "PATH": "/usr/bin:/bin",
            "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{self.mail_server.port}",
            "CERTJOB_MAIL_FROM": "certjob@example.org",
        }
        with DatabaseProxy(self.cluster.url(self.database), trigger) as proxy:
            environment["CERTJOB_DATABASE_URL"] = proxy.url
            with started(*words, environment=environment, folder=self.cluster.folder, **altered) as child:
                trigger.victim.set_result(child)
                yield child

    def _act_beside(self, action: Action) -> None:
        if action is Action.RESTART:
            self.cluster.restart()
        elif action is Action.OVERTAKE:
            self._let_time_pass()
            with self._process(Command(), Trigger()) as other:
                self._judge(Command(), other.finish(timeout_seconds=ENDS_WITHIN_SECONDS), Trigger())

    def _is_idle(self) -> bool:
        """Whether no request and no session of a dead process goes on."""
        with self._session() as connection:
            return self.portal.is_idle and not connection.execute(_SESSIONS).fetchall()

    def _judge(self, command: Command, result: Finished, trigger: Trigger) -> None:
        self.output.append(f"{command}: {result.returncode} {result.stderr}")
        self.complaints += invariants.result_complaints(command, result, trigger)

    def _recover(self) -> None:
        """Run certjob with healthy servers until it succeeds. A person permits the held changes."""
        permitted = Command(words=("run", "--allow", "hlf=1000", "--allow", "lag=1000"), concurrency=2)
        for _ in range(3):
            self._let_time_pass()
            code = self._command(permitted)
            with self._session() as connection:
                due = connection.execute("SELECT FROM mentors WHERE review_on <= %s", (self.today,)).fetchall()
            if code == 0 and not due:  # a cancelled reminder needs one more review
                return
        self.complaints.append("not content after three healthy runs")
