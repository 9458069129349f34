"""One seeded run: carry out the plan, recover, and check the invariants."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from certjob.database import Connection
from certjob.domain.models import Reminder
from tests.chaos import invariants
from tests.chaos.database_proxy import DatabaseProxy, Trigger
from tests.chaos.faults import ENCRYPTED, Action, Fault, MailFault, Spot
from tests.chaos.plans import DELIVER, RUN, Command, Plan
from tests.chaos.population import Change, Deed, create
from tests.chaos.servers import PASSWORD, USER, ChaosMailServer, ChaosPortal
from tests.support.command_line import Child, Finished, started, today
from tests.support.facts import Facts
from tests.support.nights import make_due, run_out
from tests.support.own_server import OWN_NAME, Cluster
from tests.support.programmes import Person, read_people
from tests.support.smtp_server import CERTIFICATE
from tests.support.waiting import until

MOST_RECOVERIES = 3
ENDS_WITHIN_SECONDS = 90.0
_MAIL_TIMEOUT_SECONDS = 1.5
"""For a silent mail server, instead of a minute or ten."""
_FOREIGN_SESSIONS = b"""
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> %s
"""


def carry_out(plan: Plan, *, cluster: Cluster, folder: Path) -> "ChaosRun":
    """Carry out a plan on a fresh database; ``folder`` is the working folder of the commands."""
    name = f"chaos_{plan.seed}_{uuid4().hex[:8]}"
    with cluster.fresh_database(name), ChaosPortal() as portal, ChaosMailServer() as mail_server:
        run = ChaosRun(plan=plan, cluster=cluster, database=name, folder=folder, portal=portal, mail_server=mail_server)
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
    folder: Path
    portal: ChaosPortal
    mail_server: ChaosMailServer
    today: date = field(default_factory=today)
    complaints: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)  # of each command
    missed: list[Fault | MailFault] = field(default_factory=list)  # faults whose place the run did not reach
    places: list[Counter[Spot]] = field(default_factory=list)  # the events of each command
    people: list[Person] = field(default_factory=list)
    facts: list[tuple[Any, ...]] = field(default_factory=list)
    ever_due: set[Reminder] = field(default_factory=set)
    corrected: set[UUID] = field(default_factory=set)  # new contacts, which always need a push
    events: dict[int, tuple[int, str]] = field(default_factory=dict)
    has_reported: bool = False

    def __str__(self) -> str:
        return "\n".join([f"seed {self.plan.seed}: {self.plan}", *self.output, *self.complaints])

    def carry_out(self) -> None:
        with self._session() as connection:
            create(Facts(connection), self.plan.population, self.today)
        self._add_contacts({each.contact_id for each in self.plan.population if each.contact == "right"})
        for step in self.plan.steps:
            if isinstance(step, Command):
                self._command(step)
            elif isinstance(step, str):
                self._let_time_pass()
            else:
                for each in step:
                    self._change(each)
        self._recover()
        with self._session() as connection:
            for judge in invariants.AT_THE_END:
                self.complaints += judge(connection, self)

    def on_the_portal(self) -> dict[UUID, Person]:
        """Return the mentors of the organisation with a portal, by contact."""
        return {each.contact_id: each for each in self.people if each.contact_id and each.has_portal}

    def _session(self) -> Connection:
        return self.cluster.connect(self.database)

    def _change(self, change: Change) -> None:
        with self._session() as connection:
            contact = change.apply(Facts(connection), self.today)
        contacts = {contact} if change.deed is Deed.CORRECT_CONTACT else set[UUID]()
        self.corrected |= contacts
        self._add_contacts(contacts)

    def _add_contacts(self, contacts: set[UUID]) -> None:
        """Add visible contacts to the portal, and note the facts after a change."""
        self.portal.known |= contacts
        self.portal.visible |= dict.fromkeys(contacts, True)
        with self._session() as connection:
            self.people = list(read_people(connection, self.today).values())
            self.facts = connection.execute(invariants.FACTS).fetchall()
        self.ever_due.update(*(person.decision.reminders for person in self.people))

    def _let_time_pass(self) -> None:
        with self._session() as connection:
            for table in ("portal_sync_events", "cert_notification_log"):
                make_due(Facts(connection), table)
                run_out(Facts(connection), table)

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
        mark = self.folder / "mark"
        if mark.exists():
            mark.unlink()
            trigger.is_done = True
        for each, result in sorted(ended, key=lambda each: not each[1].stderr):  # one reports for both
            self._judge(each, result, trigger)
        self.places.append(trigger.seen)
        self.missed += [command.fault] if command.fault is not None and not trigger.is_done else []
        self.missed += [fault for fault in self.mail_server.script if fault is not None]
        self.portal.begin()
        self.mail_server.begin()
        until(self._is_idle)
        code = ended[0][1].returncode
        with self._session() as connection:
            self.complaints += invariants.event_complaints(connection, events=self.events)
            is_alone = len(ended) == 1 and not trigger.is_done
            if is_alone and code in {0, 3} and command.words in {RUN, DELIVER}:
                self.complaints += invariants.unseen_complaints(connection)
        return code

    @contextmanager
    def _process(self, command: Command, trigger: Trigger) -> Iterator[Child]:
        """Start the command as cron does, with its faults in the event loop."""
        words = [*command.words, "-q"] if command.words[0] == "resync" else list(command.words)
        fault, altered = command.fault, dict[str, Any](attempts=command.attempts, at_once=command.concurrency)
        if fault is not None and fault.spot is Spot.TURN:
            mark = str(self.folder / "mark")
            altered["loop_fault"] = {"number": fault.number, "action": fault.action, "mark": mark}
        mail_faults = [fault for fault in command.mail_script if fault]
        if any(fault.manner == "silent" for fault in mail_faults):
            altered["mail_timeout"] = _MAIL_TIMEOUT_SECONDS
        environment = {
            "HOME": str(self.folder),
            "PATH": "/usr/bin:/bin",
            "CERTJOB_PORTAL_URL": self.portal.url,
            "CERTJOB_PORTAL_KEY": self.portal.key,
            "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{self.mail_server.port}",
            "CERTJOB_MAIL_FROM": "certjob@example.org",
        }
        if any(fault.phase in ENCRYPTED for fault in mail_faults):
            environment |= {"CERTJOB_NOTIFY_USER": USER, "CERTJOB_NOTIFY_PASSWORD": PASSWORD}
            environment["SSL_CERT_FILE"] = str(CERTIFICATE)
        with DatabaseProxy(self.cluster.url(self.database), trigger) as proxy:
            environment["CERTJOB_DATABASE_URL"] = proxy.url
            with started(*words, environment=environment, folder=self.folder, **altered) as child:
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
        with suppress(psycopg.OperationalError), self._session() as connection:
            return self.portal.is_idle and not connection.execute(_FOREIGN_SESSIONS, (OWN_NAME,)).fetchall()
        return False

    def _judge(self, command: Command, result: Finished, trigger: Trigger) -> None:
        name, code = command.words[0], result.returncode
        self.output.append(f"{command}: {code} {result.stderr}")
        known = {"is_victim": command.fault is not None, "has_reported": self.has_reported}
        self.complaints += invariants.result_complaints(result, command=name, trigger=trigger, **known)
        self.has_reported = self.has_reported or (name == "run" and code in {0, 3})

    def _recover(self) -> None:
        """Correct the contacts, and run certjob with healthy servers until it is content."""
        for serial, person in enumerate(self.people, 900):
            if person.has_portal and person.contact_id not in self.portal.known:
                self._change(Change(number=int(person.member_no[1:]), deed=Deed.CORRECT_CONTACT, serial=serial))
        for _ in range(MOST_RECOVERIES):
            self._let_time_pass()
            code = self._command(Command(concurrency=2))
            with self._session() as connection:
                due = connection.execute("SELECT FROM mentors WHERE review_on <= %s", (self.today,)).fetchall()
            if code == 0 and not due:  # a cancelled reminder needs one more review
                return
        self.complaints.append(f"not content after {MOST_RECOVERIES} healthy runs")
