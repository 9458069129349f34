"""The server of a bench: the embedded PostgreSQL with durable commits, and databases that are copies of templates."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from certjob import database
from certjob.database import Connection, embedded, migrations


class BenchServer:
    """A running server and its databases."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._kept: set[str] = set()

    def url(self, name: str) -> str:
        """The URL of one database."""
        return psycopg.conninfo.make_conninfo(self._url, dbname=name)

    def connect(self, name: str) -> Connection:
        """certjob's own kind of connection."""
        return database.connect(self.url(name))

    def kept(self, name: str, make: Callable[[Connection], object], *, template: str = "template0") -> str:
        """A database that is made when it is first asked for, and lasts as long as the server; returns its name."""
        if name not in self._kept:
            self._make(name, template)
            with self.connect(name) as connection:
                make(connection)
            self._kept.add(name)
        return name

    @contextmanager
    def copy(self, template: str = "template0", name: str = "bench_copy") -> Iterator[str]:
        """A copy of a database with certjob's schema, its pages in the system's cache, nothing left to be written."""
        self._make(name, template)
        try:
            with self.connect(name) as connection:
                connection.execute("CHECKPOINT")
            yield name
        finally:
            self._admin("DROP DATABASE {} WITH (FORCE)", name)

    def _make(self, name: str, template: str) -> None:
        self._admin("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)
        with self.connect(name) as connection:
            migrations.migrate(connection)

    def _admin(self, statement: str, *names: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as admin:
            admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every part of the bench is given: the server, and how much is asked for."""

    server: BenchServer
    folder: Path
    """Removed at the end."""
    rounds: int
    mentors: int
    """The largest population."""
    shares: Sequence[int]
    """Per cent of the mentors who are due."""
    pushes: int
    """Pushes beside Procrastinate, twice the mails."""
    say: Callable[[str], None]
    """Tells whoever waits what is going on."""


def advised_shared_buffers() -> str:
    """A quarter of the machine's memory, as PostgreSQL's manual advises for a server of its own; 4 GB at most.

    With the default, 128 MB, a million mentors do not fit: a night in the order of random ids then pays for a page that
    is written out and read again at nearly every step, and says little about what certjob costs.
    """
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return f"{min(max(memory_mb // 4, 128), 4_096)}MB"


@contextmanager
def bench_server(folder: Path) -> Iterator[BenchServer]:
    """A server in this folder, which the unprivileged user that root's PostgreSQL becomes must be able to enter."""
    # No checkpoint begins in the middle of one side and not of the other: each copy of a template makes one before.
    settings = {"max_wal_size": "8GB", "checkpoint_timeout": "1h", "shared_buffers": advised_shared_buffers()}
    with embedded.server(folder / "postgresql") as url, psycopg.connect(url, autocommit=True) as admin:
        for name, value in settings.items():
            admin.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    with embedded.server(folder / "postgresql") as url:  # started anew: shared_buffers asks for it
        yield BenchServer(url)
