"""One seeded run: the plan is carried out, everything is put right, and what must be true is asked."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg

from certjob.database import Connection
from certjob.domain.models import Reminder
from tests.chaos import invariants
from tests.chaos.faults import IN_THE_LOOP, SECURED, Action, Manner, Spot
from tests.chaos.outside import PASSWORD, USER, Postbox, Receiver
from tests.chaos.plans import DELIVER, RUN, TIME_PASSES, Command, Plan
from tests.chaos.population import Change, Deed, create
from tests.chaos.strikes import DatabaseProxy, Strike
from tests.support.calm import Person, read_people
from tests.support.command_line import Child, Finished, started, today
from tests.support.facts import Facts
from tests.support.intents import make_due, run_out
from tests.support.own_server import OWN_NAME, Cluster
from tests.support.programmes import everything
from tests.support.smtp_server import CERTIFICATE
from tests.support.waiting import until

MOST_RECOVERIES = 3
ENDS_WITHIN_SECONDS = 90.0
_PATIENCE_SECONDS = 1.5
"""So long certjob waits for a silent mail server, instead of a minute or ten."""
_FOREIGN_SESSIONS = b"""
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> %s
"""


def perform(plan: Plan, *, cluster: Cluster, folder: Path) -> "Play":
    """Carry out a plan on a fresh database of this server; ``folder`` is the commands' working folder."""
    name = f"chaos_{plan.seed}_{uuid4().hex[:8]}"
    with cluster.fresh_database(name), Receiver() as receiver, Postbox() as postbox:
        play = Play(plan, cluster=cluster, database=name, folder=folder, receiver=receiver, postbox=postbox)
        try:
            play.all_of_it()
        except Exception as error:  # noqa: BLE001 - what a run cannot get over is a finding like others
            play.complaints.append(f"the run could not go on: {type(error).__name__}: {error}")
            cluster.start()  # it may have been stopped just then
        if play.complaints:
            play.leave_trail()
    return play


class Play:
    """A run, everything around certjob in it, and what came of it."""

    def __init__(
        self, plan: Plan, *, cluster: Cluster, database: str, folder: Path, receiver: Receiver, postbox: Postbox
    ) -> None:
        self.plan = plan
        self.receiver, self.postbox = receiver, postbox
        self.today = today()
        self.complaints: list[str] = []
        self.trail = [*map(str, plan.population)]
        """What was done, in order; after a complaint everything else that helps to understand it."""
        self.tried: list[tuple[str, bool]] = []
        """What was to go wrong in each command and in its mail sessions, and whether its place was reached."""
        self.nights: list[Counter[Spot]] = []
        """The places that each command came to."""
        self.people: list[Person] = []
        """As they were when facts were last written."""
        self.facts: list[tuple[Any, ...]] = []
        """These facts."""
        self.ever_due: set[Reminder] = set()
        """Every reminder that was due at some time."""
        self.corrected: set[UUID] = set()
        """Contacts that were noted in place of others: what they are to show is pushed, whatever it is."""
        self._cluster, self._database, self._folder = cluster, database, folder
        self._mark = folder / "struck"
        """Made by a process that strikes itself."""
        self._events: dict[int, tuple[int, str]] = {}
        self._has_reported = False
        """Whether a run of this day has said what needs attention."""

    def __str__(self) -> str:
        complaints, trail = (f"  ! {said}" for said in self.complaints), (f"    {said}" for said in self.trail)
        return "\n".join([f"seed {self.plan.seed}: {len(self.complaints)} complaint(s)", *complaints, *trail])

    def all_of_it(self) -> None:
        with self._session() as connection:
            create(Facts(connection), self.plan.population, self.today)
        self._make_known(*(each.contact_id for each in self.plan.population if each.contact == "right"))
        self._note_facts()
        for step in self.plan.steps:
            if isinstance(step, Command):
                self._command(step)
            elif step == TIME_PASSES:
                self._let_time_pass()
            else:
                for each in step:
                    self._change(each)
        self._recover()
        self._edit_the_portal()
        with self._session() as connection:
            for judge in invariants.AT_THE_END:
                self.complaints += judge(connection, self)

    def reachable(self) -> dict[UUID, Person]:
        """Whom the portal knows, of those who are to be on it, by their contacts."""
        known = self.receiver.known
        return {each.contact_id: each for each in self.people if each.contact_id in known and each.has_portal}

    def _unreachable(self) -> list[Person]:
        return [each for each in self.people if each.has_portal and each.contact_id not in self.receiver.known]

    def _session(self) -> Connection:
        """A short session of the harness's own; used with ``with``, which closes it."""
        return self._cluster.connect(self._database)

    def _make_known(self, *contacts: UUID) -> None:
        """Contacts that exist are shown until something else is asked for."""
        self.receiver.known.update(contacts)
        self.receiver.visible |= dict.fromkeys(contacts, True)

    def _change(self, change: Change) -> None:
        """Do what people do, and note what the facts are then."""
        self.trail.append(str(change))
        with self._session() as connection:
            contact = change.do(Facts(connection), self.today)
        if change.deed is Deed.CORRECT_CONTACT:
            self._make_known(contact)
            self.corrected.add(contact)
        self._note_facts()

    def _note_facts(self) -> None:
        with self._session() as connection:
            self.people = list(read_people(connection, self.today).values())
            self.facts = connection.execute(invariants.FACTS).fetchall()
        self.ever_due.update(*(person.decision.reminders for person in self.people))

    def _let_time_pass(self) -> None:
        """Every lease runs out, and everything is due again."""
        self.trail.append("time passes")
        with self._session() as connection:
            for table in ("portal_sync_events", "cert_notification_log"):
                run_out(Facts(connection), table)
                make_due(Facts(connection), table)

    def _command(self, command: Command) -> int:
        """Run one command, with what goes wrong in it; return its exit code."""
        self.trail.append(str(command))
        strike = Strike(command.fault, self._meanwhile)
        self.receiver.begin(command.script, strike)
        self.postbox.begin(command.mail_script, strike)
        with ExitStack() as stack:
            children = [(command, stack.enter_context(self._process(command, strike)))]
            if command.twin is not None:  # a second process, undisturbed
                twin = Command(words=command.twin, concurrency=command.concurrency, attempts=command.attempts)
                children.append((twin, stack.enter_context(self._process(twin, Strike()))))
            ended = [(each, child.finish(timeout_seconds=ENDS_WITHIN_SECONDS)) for each, child in children]
            strike.finish()
        if self._mark.exists():
            self._mark.unlink()
            strike.struck_itself()
        for each, result in sorted(ended, key=lambda each: not each[1].stderr):  # one says it for both
            self._judge(each, result, strike)
        self.nights.append(strike.seen)
        self.tried.append((command.label, command.fault is None or strike.is_struck))
        reached = len(command.mail_script) - len(self.postbox.script)
        self.tried += [(str(each), number < reached) for number, each in enumerate(command.mail_script) if each]
        self.receiver.begin()
        self.postbox.begin()
        until(self._is_idle)
        code = ended[0][1].returncode
        is_whole = code in {0, 3} and len(ended) == 1 and not strike.is_struck and command.words in {RUN, DELIVER}
        self._look(is_whole=is_whole)
        return code

    @contextmanager
    def _process(self, command: Command, strike: Strike) -> Iterator[Child]:
        """The command as a process, as cron would start it; with the faults that are to strike inside it."""
        words = [*command.words, "-q"] if command.words[0] == "resync" else list(command.words)
        fault, inside = command.fault, dict[str, Any]()
        if fault is not None and fault.spot in IN_THE_LOOP:
            place = {"spot": fault.spot, "number": fault.number, "steps": fault.steps}
            inside["loop_fault"] = place | {"action": fault.action, "mark": str(self._mark)}
        troubles = [trouble for trouble in command.mail_script if trouble]
        if any(trouble.manner is Manner.HANG for trouble in troubles):
            inside["patience"] = _PATIENCE_SECONDS
        inside |= {"attempts": command.attempts, "at_once": command.concurrency}
        environment = {
            "HOME": str(self._folder),
            "PATH": "/usr/bin:/bin",
            "CERTJOB_PORTAL_URL": self.receiver.url,
            "CERTJOB_PORTAL_KEY": self.receiver.key,
            "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{self.postbox.port}",
            "CERTJOB_MAIL_FROM": "certjob@example.org",
        }
        if any(trouble.phase in SECURED for trouble in troubles):
            environment |= {"CERTJOB_NOTIFY_USER": USER, "CERTJOB_NOTIFY_PASSWORD": PASSWORD}
            environment["SSL_CERT_FILE"] = str(CERTIFICATE)
        with DatabaseProxy(self._cluster.url(self._database), strike) as proxy:
            environment["CERTJOB_DATABASE_URL"] = proxy.url
            with started(*words, environment=environment, folder=self._folder, **inside) as child:
                strike.victim.set_result(child)
                yield child

    def _meanwhile(self, action: Action) -> None:
        """What happens beside a process that is struck."""
        if action is Action.RESTART:
            self._cluster.restart()
        elif action is Action.OVERTAKE:
            self._let_time_pass()
            with self._process(Command(), Strike()) as other:
                self._judge(Command(), other.finish(timeout_seconds=ENDS_WITHIN_SECONDS), Strike())
            self._look(is_whole=False)

    def _is_idle(self) -> bool:
        """Whether nothing that was begun for a dead process goes on: no request, no session, no transaction."""
        with suppress(psycopg.OperationalError), self._session() as connection:
            return self.receiver.is_idle and not connection.execute(_FOREIGN_SESSIONS, (OWN_NAME,)).fetchall()
        return False

    def _judge(self, command: Command, result: Finished, strike: Strike) -> None:
        name, code = command.words[0], result.returncode
        self.trail.append(f"  {name} ended with {code}, struck: {strike.is_struck}: {result.stderr.strip()}")
        is_victim = command.fault is not None
        self.complaints += invariants.result_complaints(
            result, command=name, strike=strike, is_victim=is_victim, has_reported=self._has_reported
        )
        self._has_reported = self._has_reported or (name == "run" and code in {0, 3})

    def _look(self, *, is_whole: bool) -> None:
        with self._session() as connection:
            self.complaints += invariants.look_complaints(connection, events=self._events)
            if is_whole:
                self.complaints += invariants.unseen_complaints(connection)

    def _recover(self) -> None:
        """All is healthy and every lease has run out: certjob runs until it is content."""
        self.trail.append("everything is healthy again")
        if self.plan.corrects_contacts:
            for serial, person in enumerate(self._unreachable(), 900):
                self._change(Change(number=int(person.member_no[1:]), deed=Deed.CORRECT_CONTACT, serial=serial))
        if self.plan.deliver_first:
            self._let_time_pass()
            self._command(Command(words=DELIVER, concurrency=2))
        for _ in range(MOST_RECOVERIES):
            self._let_time_pass()
            code = self._command(Command(concurrency=2))
            with self._session() as connection:
                due = connection.execute("SELECT FROM mentors WHERE review_on <= %s", (self.today,)).fetchall()
                blocked = "SELECT FROM portal_sync_events WHERE status = 'blocked' AND mentor_id = ANY (%s)"
                is_blocked = connection.execute(blocked, ([each.id for each in self._unreachable()],)).fetchall()
            # By design, for want of a contact; and a reminder that was cancelled is looked at once more.
            if code == (3 if is_blocked else 0) and not due:
                return
        self.complaints.append(f"not content after {MOST_RECOVERIES} healthy runs")

    def _edit_the_portal(self) -> None:
        """Hands show and hide at random, and nothing in the database knows: a reconcile beside a run puts it right.

        Nobody is hidden who was never certified: certjob would not show them again.
        """
        dice = random.Random(self.plan.seed)
        for contact, person in self.reachable().items():
            if not person.decision.without_certificate and dice.random() < 0.5:
                self.receiver.visible[contact] = not person.decision.visible
                self.trail.append(f"by hand: {person.member_no} is no longer visible: {person.decision.visible}")
        self._command(Command(words=("reconcile",), twin=RUN, concurrency=2))

    def leave_trail(self) -> None:
        """Everything that helps to understand what happened."""
        self.trail += ["the portal received:", *(f"  {one}" for one in self.receiver.trail)]
        self.trail += ["the mail server took:", *(f"  {one}" for one in self.postbox.taken)]
        with self._session() as connection:
            for table, rows in everything(Facts(connection)).items():
                self.trail += [f"{table}:", *(f"  {row[0]}" for row in rows)]
