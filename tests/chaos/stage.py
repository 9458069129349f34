"""Where a run plays: its database, the portal, the mail server, the facts as they were, and the processes."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID
from zoneinfo import ZoneInfo

from certjob.database import Connection
from certjob.domain.models import Reminder
from tests.chaos.cluster import Cluster
from tests.chaos.database_proxy import DatabaseProxy
from tests.chaos.faults import IN_THE_LOOP, SECURED, Manner
from tests.chaos.plans import Command
from tests.chaos.population import Change, Contact, Deed, MentorPlan, change, create
from tests.chaos.postbox import PASSWORD, USER, Postbox
from tests.chaos.receiver import Receiver
from tests.support.calm import Person, read_people
from tests.support.command_line import Child, started
from tests.support.facts import Facts
from tests.support.intents import let_unknown_outcomes_pass, make_due, run_out
from tests.support.smtp_server import CERTIFICATE
from tests.support.waiting import until

FACTS = """
    SELECT m.member_no, to_jsonb(m) - '{portal_visible,review_on}'::text[],
        (SELECT jsonb_agg(to_jsonb(c) - 'status' ORDER BY c.id) FROM certificates AS c WHERE c.mentor_id = m.id),
        (SELECT jsonb_agg(p ORDER BY p.id) FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.actor <> 'certjob')
    FROM mentors AS m ORDER BY m.member_no
"""
"""What people have written of each mentor."""
_PATIENCE_SECONDS = 1.5
"""So long certjob waits for a silent mail server, instead of a minute or ten."""


@dataclass(kw_only=True)
class Stage:
    """Everything around certjob in one run."""

    cluster: Cluster
    name: str
    """The database's."""
    folder: Path
    receiver: Receiver
    postbox: Postbox
    today: date
    trail: list[str] = field(default_factory=list)
    """What was done, in order."""
    people: list[Person] = field(default_factory=list)
    """As they were when facts were last written."""
    facts: list[tuple[Any, ...]] = field(default_factory=list)
    """These facts."""
    ever_due: set[Reminder] = field(default_factory=set)
    """Every reminder that was due at some time."""
    corrected: set[UUID] = field(default_factory=set)
    """Contacts that were noted in place of others: what they are to show is pushed, whatever it is."""
    _serial: int = 900

    @classmethod
    @contextmanager
    def set_up(cls, *, cluster: Cluster, folder: Path, seed: int) -> Iterator[Self]:
        """A fresh database and the two servers."""
        name = f"chaos_{seed}_{uuid.uuid4().hex[:8]}"
        with cluster.fresh_database(name), Receiver() as receiver, Postbox() as postbox:
            today = datetime.now(ZoneInfo("Europe/Oslo")).date()
            outside: dict[str, Any] = {"receiver": receiver, "postbox": postbox}
            yield cls(cluster=cluster, name=name, folder=folder, today=today, **outside)

    def session(self) -> Connection:
        """A short session of the harness's own; used with ``with``, which closes it."""
        return self.cluster.connect(self.name)

    def populate(self, population: Sequence[MentorPlan]) -> None:
        with self.session() as connection:
            create(Facts(connection), population, self.today)
        for plan in population:
            if plan.contact is Contact.RIGHT and plan.contact_id is not None:
                self.receiver.add(plan.contact_id)
        self._note_facts()

    def change(self, changes: Sequence[Change]) -> None:
        """Do what people do, and note what the facts are then."""
        for each in changes:
            with self.session() as connection:
                contact = change(Facts(connection), each, self.today)
            if each.deed is Deed.CORRECT_CONTACT:
                self.receiver.add(contact)
                self.corrected.add(contact)
            self.trail.append(f"{each.member_no}: {each.deed} ({each.days} days)")
            self._note_facts()

    def correct_contact(self, person: Person) -> None:
        """Beside the plan."""
        self._serial += 1
        self.change([Change(number=int(person.member_no[1:]), deed=Deed.CORRECT_CONTACT, serial=self._serial)])

    def is_reachable(self, person: Person) -> bool:
        """Whether the portal knows the contact that is noted."""
        return person.contact_id in self.receiver.known

    @contextmanager
    def started(self, command: Command, proxy: DatabaseProxy) -> Iterator[Child]:
        """The command as a process, as cron would start it; with the faults that are to strike inside it."""
        words = [*command.words, "-q"] if command.words[0] == "resync" else list(command.words)
        environment = self._environment(command, port=proxy.port)
        with started(*words, environment=environment, folder=self.folder, **self._inside(command)) as child:
            yield child

    @property
    def traffic(self) -> dict[str, int]:
        """How much there was so far."""
        requests, mails = len(self.receiver.pushes), len(self.postbox.taken)
        return {"requests": requests, "mails": mails, "steps": self.postbox.steps}

    def has_struck_itself(self) -> bool:
        """Whether a fault inside the process that was started last has come to its place; asked once."""
        is_struck = self._mark.exists()
        self._mark.unlink(missing_ok=True)
        return is_struck

    @property
    def _mark(self) -> Path:
        return self.folder / "struck"

    def _inside(self, command: Command) -> dict[str, Any]:
        fault = command.fault
        inside: dict[str, Any] = {}
        if fault is not None and fault.spot in IN_THE_LOOP:
            place = {"spot": fault.spot, "number": fault.number, "steps": fault.steps}
            inside["loop_fault"] = place | {"action": fault.action, "mark": str(self._mark)}
        if any(word is not None and word.manner is Manner.HANG for word in command.mail_script):
            inside["patience"] = _PATIENCE_SECONDS
        return inside

    def wait_until_idle(self) -> None:
        """Wait until nothing that was begun for a dead process goes on: no request, no session."""
        until(lambda: self.receiver.is_idle)
        self.cluster.wait_until_idle(self.name)

    def let_time_pass(self) -> None:
        """Every lease runs out, and everything is due again."""
        self.trail.append("time passes")
        with self.session() as connection:
            let_unknown_outcomes_pass(Facts(connection))
            for table in ("portal_sync_events", "cert_notification_log"):
                run_out(Facts(connection), table)
                make_due(Facts(connection), table)

    def _note_facts(self) -> None:
        with self.session() as connection:
            self.people = list(read_people(connection, self.today).values())
            self.facts = connection.execute(FACTS).fetchall()
        self.ever_due.update(*(person.decision.reminders for person in self.people))

    def _environment(self, command: Command, *, port: int) -> dict[str, str]:
        is_secured = any(word is not None and word.phase in SECURED for word in command.mail_script)
        login = {"CERTJOB_NOTIFY_USER": USER, "CERTJOB_NOTIFY_PASSWORD": PASSWORD, "SSL_CERT_FILE": str(CERTIFICATE)}
        return (login if is_secured else {}) | {
            "HOME": str(self.folder),
            "PATH": "/usr/bin:/bin",
            "CERTJOB_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{port}/{self.name}?sslmode=disable&gssencmode=disable",
            "CERTJOB_PORTAL_URL": self.receiver.url,
            "CERTJOB_PORTAL_KEY": self.receiver.key,
            "CERTJOB_PORTAL_CONCURRENCY": str(command.concurrency),
            "CERTJOB_PORTAL_ATTEMPTS": str(command.attempts),
            "CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{self.postbox.port}",
            "CERTJOB_MAIL_FROM": "certjob@example.org",
        }
