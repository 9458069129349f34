"""A programme under test: its database with Supabase's roles, portal, mail server and commands, and a moving calendar.

The commands use the real clock. To let days pass, all days and times in the database and on the portal move back.
"""

import email
import email.policy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import psycopg
from psycopg.conninfo import make_conninfo

from certjob.database import Connection
from certjob.domain import holds
from certjob.mail import stage
from tests.database.supabase import acting
from tests.support import command_line
from tests.support.command_line import SECRET, Finished
from tests.support.docs import read
from tests.support.portal_answers import Behaviour, PortalRequest, cut, error, ok
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import Answer, ScriptedServer, ServerFault

PORTAL_STATES: Mapping[str, Behaviour] = {
    "confirms": ok(),
    "rejects all": error(422, "dynamics_rejected"),
    "is down": error(503, "dynamics_unavailable"),
    "loses answers": cut(),
    "is misconfigured": error(500, "misconfigured"),
}
MAIL_ANSWERS: Mapping[str, Mapping[str, Answer]] = {
    "accepts": {},
    "rejects": {"RCPT": b"550 5.1.1 no such user"},
    "defers": {"RCPT": b"450 4.2.0 later"},
    "loses the answer": {"END": ServerFault.CUT},
    "is down": {"GREETING": b"421 closing"},
}
REPEAT_LINE = "You may have received this reminder before"

APP_TABLES = b"""
CREATE TABLE public.clubs (id serial PRIMARY KEY, slug text UNIQUE);
CREATE TABLE public.profiles (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), club_id integer REFERENCES public.clubs, member_number text,
    name text DEFAULT 'Kari', email text, language text, crm_contact uuid DEFAULT gen_random_uuid(),
    deactivated_at timestamptz, is_mentor boolean NOT NULL DEFAULT true
);
CREATE TABLE public.certifications (
    profile_id uuid REFERENCES public.profiles ON DELETE CASCADE, course text DEFAULT 'likeperson',
    passed_on date DEFAULT '2024-01-01', valid_until date, withdrawn_at timestamptz,
    id uuid PRIMARY KEY DEFAULT gen_random_uuid()
);
INSERT INTO public.clubs (slug) VALUES ('hlf'), ('nhf');
"""
"""The tables of an app that does not know certjob; docs/examples/mirror.sql reads them."""


_ONE = (
    "id = (SELECT id FROM certjob.certificates WHERE mentor_id = %(mentor)s AND kind = %(kind)s"
    " ORDER BY issued_on DESC LIMIT 1)"
)
_LIFT = (
    "UPDATE certjob.mentor_pauses SET lifted_at = now(), lifted_by = %(user)s"
    " WHERE mentor_id = %(mentor)s AND lifted_at IS NULL"
)
COORDINATORS_FACTS: Mapping[str, str] = {
    "enter a certificate": "INSERT INTO certjob.certificates (mentor_id, kind, issued_on, expires_on)"
    " VALUES (%(mentor)s, %(kind)s, %(first)s, %(last)s)",
    "change the last day": f"UPDATE certjob.certificates SET expires_on = greatest(issued_on, %(last)s) WHERE {_ONE}",
    "revoke or restore": "UPDATE certjob.certificates"
    f" SET revoked_at = CASE WHEN revoked_at IS NULL THEN now() END WHERE {_ONE}",
    "leave or return": "UPDATE certjob.mentors SET left_at = CASE WHEN left_at IS NULL THEN now() END"
    " WHERE id = %(mentor)s",
    "set the contact": "UPDATE certjob.mentors SET dynamics_contact_id = %(contact)s WHERE id = %(mentor)s",
    "remove the contact": "UPDATE certjob.mentors SET dynamics_contact_id = NULL WHERE id = %(mentor)s",
    "change the address": "UPDATE certjob.mentors SET email = %(address)s WHERE id = %(mentor)s",
    "pause": "INSERT INTO certjob.mentor_pauses (mentor_id, reason, actor) VALUES (%(mentor)s, 'illness', %(user)s)",
    "lift the pause": f"{_LIFT} AND reason = 'illness'",
}
SERVERS_FACTS: Mapping[str, str] = {
    "delete a certificate": f"DELETE FROM certjob.certificates WHERE {_ONE}",
    "delete expired certificates": "DELETE FROM certjob.certificates WHERE expires_on < %(today)s",
    "move both days": f"UPDATE certjob.certificates SET issued_on = %(first)s, expires_on = %(last)s WHERE {_ONE}",
    "enter all certificates again": "WITH old AS (DELETE FROM certjob.certificates"
    " RETURNING mentor_id, kind, issued_on, expires_on, revoked_at)"
    " INSERT INTO certjob.certificates (mentor_id, kind, issued_on, expires_on, revoked_at) SELECT * FROM old",
    "give a certificate a new id": f"UPDATE certjob.certificates SET id = gen_random_uuid() WHERE {_ONE}",
    "lift certjob's pause": f"{_LIFT} AND reason <> 'illness'",
    "move to the other organisation": "UPDATE certjob.mentors AS m SET organisation_id = o.id"
    " FROM certjob.organisations AS o WHERE m.id = %(mentor)s AND o.id <> m.organisation_id",
    "delete the mentor": "DELETE FROM certjob.mentors WHERE id = %(mentor)s",
}
"""Facts that the app's server writes, and coordinators cannot."""
ENTER_MENTOR = (
    "INSERT INTO certjob.mentors (organisation_id, member_no, email, locale, dynamics_contact_id)"
    " SELECT id, %(person)s, %(address)s, 'en', %(contact)s FROM certjob.organisations WHERE slug = %(slug)s"
)
SET_CONTACTS = (
    "UPDATE certjob.mentors AS m SET dynamics_contact_id = n.contact"
    " FROM unnest(%(people)s::text[], %(contacts)s::uuid[]) AS n (person, contact) WHERE m.member_no = n.person"
)
_APP_NAMES: Mapping[str, str] = {
    "certjob.certificates": "public.certifications",
    "certjob.mentors": "public.profiles",
    "certjob.organisations": "public.clubs",
    "organisation_id": "club_id",
    "mentor_id": "profile_id",
    "member_no": "member_number",
    "locale": "language",
    "dynamics_contact_id": "crm_contact",
    "kind,": "course,",
    "kind =": "course =",
    "issued_on": "passed_on",
    "expires_on": "valid_until",
    "revoked_at": "withdrawn_at",
    "left_at": "deactivated_at",
}
"""The same in APP_TABLES. Pauses are always certjob's."""
LOADED: Mapping[str, tuple[str, ...]] = {
    "enter a certificate": ("kind", "issued_on", "expires_on"),
    "change the last day": ("kind", "issued_on", "expires_on"),
    "revoke or restore": ("kind", "issued_on", "expires_on", "revoked_on"),
    "leave or return": ("left_on",),
    "set the contact": ("dynamics_contact_id",),
    "change the address": ("email",),
}
"""The columns of a file with the same change."""


REJECTIONS = (psycopg.errors.RaiseException, psycopg.errors.NoDataFound, psycopg.errors.ObjectInUse)
"""What certjob's functions raise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A reminder that the mail server took."""

    row_id: int
    """The row of ``cert_notification_log``."""
    says_repeat: bool


class MailServer(ScriptedServer):
    """A mail server in one of the states of MAIL_ANSWERS, which keeps the reminders that it took."""

    def __init__(self) -> None:
        super().__init__()
        self.letters: list[Letter] = []
        self.rejected: set[str] = set()
        """Addresses that no longer exist."""

    def answer(self, stage: str) -> Answer:
        if stage == "RCPT" and any(f"<{address}>" in self.commands[-1] for address in self.rejected):
            return MAIL_ANSWERS["rejects"]["RCPT"]
        return super().answer(stage)

    def end_message(self, body: bytes, *, to: str) -> Answer:
        message: Any = email.message_from_bytes(body, policy=email.policy.default)
        if found := re.match(r"<certjob-reminder-(\d+)-", str(message["Message-ID"]).strip()):
            text = message.get_body(("plain",)).get_content()
            self.letters.append(Letter(row_id=int(found[1]), says_repeat=REPEAT_LINE in text))
        return super().end_message(body, to=to)


class World:
    """The programme. Days are whole numbers, counted from the first day of the test."""

    def __init__(self, url: str, folder: Path, resources: ExitStack, *, has_mirror: bool) -> None:
        self.owner, self._api = (
            resources.enter_context(Connection.connect(url, autocommit=True, prepare_threshold=None)) for _ in range(2)
        )
        self.portal_state, self.rejected_contacts = "confirms", set[UUID]()
        self.portal = resources.enter_context(PortalServer(self._answer, key=SECRET))
        self.mail = resources.enter_context(MailServer())
        self.has_mirror, self.folder = has_mirror, folder
        self.first_date, self.day = command_line.today(), 0
        settings = {"DATABASE_URL": make_conninfo(url, options="-c role=certjob_worker -c search_path=pg_catalog")}
        settings |= {"PORTAL_URL": self.portal.url, "PORTAL_KEY": SECRET}
        settings |= {"NOTIFY_URL": f"smtp://127.0.0.1:{self.mail.port}", "MAIL_FROM": "post@hlf.example"}
        self._environment = {"HOME": str(folder)} | {f"CERTJOB_{name}": value for name, value in settings.items()}
        no_waits = replace(stage.CHANNEL_POLICY, backoff=lambda _attempt: 0.0)
        resources.enter_context(mock.patch.object(stage, "CHANNEL_POLICY", no_waits))

    def certjob(self, *arguments: str, given: str = "") -> Finished:
        """Run the command in this process."""
        return command_line.run_in_process(
            *arguments, environment=self._environment, folder=self.folder, given=given.encode()
        )

    def install_mirror(self) -> None:
        self.owner.execute(APP_TABLES)
        self.owner.execute(read("docs/examples/mirror.sql").encode())

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run a statement as the owner."""
        cursor = self.owner.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def write(self, statement: str, values: Mapping[str, object], *, role: str) -> bool:
        """Write a fact in a role, or in the tables of the app; return whether the database accepted it."""
        if self.has_mirror and "mentor_pauses" not in statement and "confirm_hidden" not in statement:
            role = "owner"
            for name, in_app in _APP_NAMES.items():
                statement = statement.replace(name, in_app)
        try:
            if role == "owner":
                self.owner.execute(statement.encode(), values)
            else:
                with acting(self._api, role, sub=values.get("user")) as connection:
                    connection.execute(statement.encode(), values)
        except (psycopg.IntegrityError, psycopg.errors.InsufficientPrivilege, *REJECTIONS):
            return False
        return True

    def load(self, columns: Iterable[str], lines: Iterable[Mapping[str, object]]) -> bool:
        """Load a file with these columns; return whether every line was loaded."""
        names = ("organisation", "member_no", *columns)
        text = [",".join(names), *(",".join(str(line[name]) for name in names) for line in lines)]
        (self.folder / "facts.csv").write_text("\n".join(text))
        return self.certjob("load", "facts.csv").returncode == 0

    def date_of(self, day: int) -> date:
        """Return the date of a day, as the database has it today."""
        return self.first_date + timedelta(days=day - self.day)

    def day_of(self, on: date | str) -> int:
        on = date.fromisoformat(on) if isinstance(on, str) else on
        return (on - self.first_date).days + self.day

    def let_days_pass(self, days: int) -> None:
        """Move all days and times back. With a negative number, a clock that was ahead is right again."""
        alerts = self._alerts(days=0)
        with self.owner.transaction():
            self.owner.execute("SET LOCAL session_replication_role = replica")  # no trigger
            for statement in self._moves(days):
                self.owner.execute(statement.encode())
            for table, column in (("cert_notification_log", "history"), ("job_runs", "counts")):
                for key, value in self.rows(f"SELECT id, {column} FROM {table} WHERE {column}::text ~ '\\d-\\d\\d-'"):
                    moved = json.dumps(_moved(value, days))
                    self.rows(f"UPDATE {table} SET {column} = %s::jsonb WHERE id = %s", moved, key)
            for key, alert_id in self._alerts(days=days).items():  # the id of an unknown contact has a day
                was = alerts.get(key, alert_id)
                self.rows("UPDATE acknowledgements SET alert_id = %s WHERE alert_id = %s", alert_id, was)
        if self.portal.until is not None:
            until = self.portal.until.items()
            self.portal.until = {contact: day and _moved(day, days) for contact, day in until}
        self.day += days

    def _alerts(self, *, days: int) -> dict[str, str]:
        """Return the id of each contact's alert of so many days ago."""
        alerts = "SELECT split_part(alert_id, ':', 3), alert_id FROM current_alerts(%s) WHERE kind = 'unknown_contacts'"
        return dict(self.rows(alerts, self.first_date - timedelta(days=days)))

    def _moves(self, days: int) -> Iterator[str]:
        columns = self.rows(
            "SELECT table_schema, table_name, array_agg(column_name::text), array_agg(data_type::text)"
            " FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)"
            " WHERE table_schema IN ('certjob', 'public') AND table_type = 'BASE TABLE'"
            " AND data_type IN ('date', 'timestamp with time zone') GROUP BY 1, 2"
        )
        for schema, table, names, types in columns:
            moves = (
                f"{name} = CASE WHEN {name} > '0001-01-01' THEN {name} - {days} ELSE {name} END"
                if kind == "date"
                else f"{name} = {name} - make_interval(hours => {24 * days})"
                for name, kind in zip(names, types, strict=True)
            )
            yield f"UPDATE {schema}.{table} SET {', '.join(moves)}"

    def _answer(self, request: PortalRequest) -> Behaviour:
        if request.contact_id in self.rejected_contacts:
            return error(404, "contact_not_found")
        if self.portal_state == "loses answers" and request.method == "GET":
            return error(503, "dynamics_unavailable")
        return PORTAL_STATES[self.portal_state]


def _moved(value: Any, days: int) -> Any:
    """Return a JSON value with all days and times moved back."""
    if isinstance(value, list):
        return [_moved(each, days) for each in value]
    if isinstance(value, dict):
        return {key: _moved(each, days) for key, each in value.items()}
    if not (isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d($|T)", value)):
        return value
    read: Callable[[str], Any] = datetime.fromisoformat if "T" in value else date.fromisoformat
    return (read(value) - timedelta(days=days)).isoformat()


@contextmanager
def lowered_limits() -> Iterator[None]:
    """Let the guards hold the third mentor, so that few are enough."""
    with mock.patch.multiple(holds, LEAST=2, CERTIFIED_PER_CHANGE=10**9, MOST_RETURNS=2):
        yield
