"""What others do while a process is in the middle of something: a resync of the mentor in hand, a whole other run."""

from contextlib import ExitStack
from uuid import UUID

import psycopg

from certjob.database import Connection
from tests.chaos.database_proxy import DatabaseProxy
from tests.chaos.faults import Action, Fault, Spot
from tests.chaos.plans import PORTAL_SETTLE, Command, beginning_of
from tests.chaos.population import Deed
from tests.chaos.stage import Stage
from tests.chaos.strikes import Strike
from tests.support.command_line import Child
from tests.support.saga_model import Mentor
from tests.support.waiting import until

_POLL = " ".join(beginning_of("find_open_version").split())
"""What a resync asks in each of its rounds."""
_WELL_WITHIN_A_CALL_SECONDS = 20
"""A call that is held for longer comes to its deadline, and is given up by certjob."""
_A_SILENT_MAIL_SERVER_SECONDS = 150
"""A server that says nothing is waited for, for 60 s, by a run that goes by, too."""
_RUN_OUT = "UPDATE {} SET next_attempt_at = now() - interval '1 second' WHERE id = %s AND claim_token IS NOT NULL"


class Others:
    """The processes beside the one that the fault is about; a context manager that ends with them."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self.running: list[tuple[Command, Child]] = []
        self._stage = stage
        self._stack = stack

    def start(self, command: Command) -> tuple[Child, DatabaseProxy]:
        """Start one, undisturbed; it is waited for at the end."""
        stage = self._stage
        strike = Strike(None, cluster=stage.cluster, database=stage.name, meanwhile=self.interfere)
        proxy = self._stack.enter_context(DatabaseProxy(stage.cluster, strike))
        child = self._stack.enter_context(stage.started(command, proxy))
        self.running.append((command, child))
        return child, proxy

    def interfere(self, fault: Fault, about: str) -> None:
        """Called in the thread of whoever is struck, which goes on when this is done."""
        if fault.action is Action.OUTLAST and fault.text == PORTAL_SETTLE:
            self._outlast_push()
        elif fault.action is Action.OUTLAST:
            self._outlast_mail()
        elif fault.spot is Spot.REQUEST:
            self._overtake_request(UUID(about))
        else:
            self._overtake_mail(about)

    def _overtake_request(self, contact_id: UUID) -> None:
        """The mentor's facts change so that the opposite is wanted, and a resync raises the event's version."""
        stage = self._stage
        person = next((each for each in stage.people if each.contact_id == contact_id), None)
        if person is None:
            return
        before = self._open_version(person.id)
        self._want_the_opposite(person)
        calls = len(stage.receiver.received)
        child, proxy = self.start(Command(words=("resync", person.member_no)))

        def has_run_into_it() -> bool:
            """It has raised the version and found twice that it must wait (or it makes a call after all)."""
            rounds = sum(statement.startswith(_POLL) for statement in list(proxy.statements))
            return (rounds > 1 and self._open_version(person.id) != before) or len(stage.receiver.received) > calls

        until(lambda: child.process.poll() is not None or has_run_into_it(), seconds=_WELL_WITHIN_A_CALL_SECONDS)

    def _overtake_mail(self, message_id: str) -> None:
        """The certificate's last day changes, and a resync arms the reminder for the new one."""
        stage = self._stage
        whose = "SELECT member_no FROM mentors AS m JOIN cert_notification_log AS l ON mentor_id = m.id WHERE l.id = %s"
        with stage.session() as connection:
            ((member_no,),) = connection.execute(whose, (_row_of(message_id),)).fetchall()
        stage.change_one(member_no, Deed.EXTEND_A_LITTLE)
        child, _ = self.start(Command(words=("resync", member_no)))
        until(lambda: child.process.poll() is not None, seconds=60)

    def _outlast_push(self) -> None:
        """The lease of what was pushed last runs out, and a resync with the opposite value is in its call just now."""
        stage = self._stage
        last = stage.receiver.received[-1] if stage.receiver.received else None
        person = next((each for each in stage.people if last and each.contact_id == last.contact_id), None)
        if last is None or person is None:  # about an event without a contact, for which no call was made
            return
        with stage.session() as connection:
            if not _run_out(connection, "portal_sync_events", last.event_id):
                return
        self._want_the_opposite(person)
        stage.receiver.linger()
        calls = len(stage.receiver.received)
        child, _ = self.start(Command(words=("resync", person.member_no)))
        until(lambda: child.process.poll() is not None or len(stage.receiver.received) > calls, seconds=60)

    def _outlast_mail(self) -> None:
        """The lease of what was mailed last runs out, and a whole run goes by before it is settled."""
        stage = self._stage
        if stage.postbox.taken:
            with stage.session() as connection:
                _run_out(connection, "cert_notification_log", _row_of(stage.postbox.taken[-1].message_id))
        child, _ = self.start(Command())
        until(lambda: child.process.poll() is not None, seconds=_A_SILENT_MAIL_SERVER_SECONDS)

    def _want_the_opposite(self, person: Mentor) -> None:
        """Change the facts so that the mentor is to be hidden instead of shown, or shown instead of hidden."""
        if person.is_active(self._stage.today):
            self._stage.change_one(person.member_no, Deed.PAUSE)
        else:
            self._stage.change_one(person.member_no, Deed.RETURN, Deed.LIFT, Deed.RENEW)

    def _open_version(self, mentor_id: UUID) -> int | None:
        version = "SELECT version FROM portal_sync_events WHERE mentor_id = %s AND status IN ('pending', 'blocked')"
        with self._stage.session() as connection:
            row = connection.execute(version, (mentor_id,)).fetchone()
        return row[0] if row else None


def _run_out(connection: Connection, table: str, row_id: int) -> bool:
    """Let one lease run out; False if the settle holds the row already (it is one of several rows)."""
    try:
        connection.execute("SET lock_timeout = '1s'")
        connection.execute(_RUN_OUT.format(table).encode(), (row_id,))
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def _row_of(message_id: str) -> int:
    return int(message_id.split("-")[2])
