"""The world of the documents' examples: it is 8 o'clock on 10 March 2026 in Oslo, for the database, too."""

import shlex
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from freezegun import freeze_time

from certjob import database
from tests.support.command_line import run_in_process, without_escapes
from tests.support.facts import TODAY, Facts

MORNING = datetime(2026, 3, 10, 8, 0, tzinfo=ZoneInfo("Europe/Oslo"))
NIGHT = datetime(2026, 3, 10, 3, 10, tzinfo=ZoneInfo("Europe/Oslo"))
YESTERDAY = TODAY - timedelta(days=1)


class View(NamedTuple):
    """Where and when a command is typed."""

    settings: Mapping[str, str] = {}
    """Beyond the world's own."""
    columns: int | None = None
    """None: no terminal."""
    at: datetime = MORNING
    machine_at: datetime | None = None
    """What a machine shows whose clock is wrong."""


cron, terminal = View, partial(View, columns=100)

_ASK_ANOTHER_CLOCK = b"""
    -- A session finds our now() before the system's own. Logins that other tests make on this server are none that
    -- belong here; `check` would warn of them.
    CREATE SCHEMA clock;
    DO $$ BEGIN
        EXECUTE format('ALTER DATABASE %I SET search_path = public, clock, pg_catalog', current_database());
        EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database());
    END $$
"""
_LET_THE_VIEW_ASK_IT = b"""
    DO $$ DECLARE text text; BEGIN
        SELECT replace(pg_get_viewdef(oid), 'pg_catalog.now()', 'clock.now()') INTO text
            FROM pg_class WHERE relname = 'attention';
        IF FOUND THEN EXECUTE 'CREATE OR REPLACE VIEW attention WITH (security_invoker = true) AS ' || text; END IF;
    END $$
"""
_COLUMNS_THAT_ASK_THE_REAL_ONE = """
    SELECT table_name, column_name FROM information_schema.columns
    WHERE table_schema = 'public' AND column_default = 'pg_catalog.now()'
"""


class World:
    """A database, a folder, a mailbox; and the facts of a programme, once a scene has written them.

    Between the commands it is night in the database.
    """

    def __init__(self, url: str, *, empty_url: Callable[[], str], environment: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        self._empty_url = empty_url
        self._environment = environment
        self._move_to(url)

    def _move_to(self, url: str) -> None:
        self.url = url
        with database.connect(url) as connection:
            connection.execute(_ASK_ANOTHER_CLOCK)
        self.connection = database.connect(url)
        self.execute = self.connection.execute
        self.facts = Facts(self.connection)
        self._set_the_servers_clock(NIGHT)
        self.execute(_LET_THE_VIEW_ASK_IT)

    def forget_the_schema(self) -> None:
        """Move to a database without any table."""
        self.connection.close()
        self._move_to(self._empty_url())

    def types(self, command: str, view: View) -> str:
        """What a command prints, everywhere, at that time: by this machine's clock and by the database's."""
        settings = {"CERTJOB_DATABASE_URL": self.url, "CERTJOB_NOTIFY_URL": f"maildir:{self.folder / 'mail'}"}
        environment = dict(self._environment) | settings | dict(view.settings)
        self._set_the_servers_clock(view.at)
        with freeze_time(view.machine_at or view.at, tick=True):
            finished = run_in_process(
                *shlex.split(command)[1:], environment=environment, folder=self.folder, columns=view.columns
            )
        self._set_the_servers_clock(NIGHT)
        # Of a screen that is drawn again and again, what stands there at the end.
        return without_escapes(finished.stdout.rpartition("\x1b[H")[2]) + finished.stderr

    def _set_the_servers_clock(self, at: datetime) -> None:
        """Let it be that time in this database, for statements and for defaults, and go on from there."""
        ((really_at,),) = self.facts.rows("SELECT pg_catalog.clock_timestamp()")
        for name in ("now", "clock_timestamp"):
            self.execute(
                f"CREATE OR REPLACE FUNCTION clock.{name}() RETURNS timestamptz LANGUAGE sql STABLE"
                f" RETURN pg_catalog.{name}() - (timestamptz '{really_at}' - timestamptz '{at}')".encode()
            )
        for table, column in self.facts.rows(_COLUMNS_THAT_ASK_THE_REAL_ONE):
            self.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT now()".encode())

    def night(self, options: str = "", **settings: str) -> None:
        """The night of this morning, at 03:10."""
        self.types(f"certjob run {options}", cron(settings, at=NIGHT))

    def organisation(self, slug: str = "hlf", *, portal: str | None = "dynamics") -> UUID:
        """One whose coordinator Ola gets the daily mail."""
        organisation = self.facts.organisation(slug, portal=portal)
        self.facts.insert("coordinators", organisation_id=organisation, full_name="Ola Engvik", email="ola@hlf.example")
        return organisation

    def expired_mentors(self, number: int) -> None:
        organisation = self.facts.organisation()
        for _ in range(number):
            self.facts.certified_mentor(organisation, YESTERDAY)

    def kari(self) -> None:
        """A mentor whose certificate ended yesterday."""
        mentor = self.facts.mentor(self.facts.organisation(), member_no="M1042")
        self.facts.certificate(mentor, YESTERDAY, issued_on=date(2024, 3, 10))
