"""The demo: a few nights in a row on a throw-away database, each with something that a person would want to see."""

import atexit
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import SecretStr

from certjob import database
from certjob.cli.demo.people import ILL, Row, load_people, make_people
from certjob.cli.demo.portal import DemoPortal
from certjob.cli.demo.scenes import SCENES, Demonstration, DemoSettings
from certjob.cli.terminal.output import Output
from certjob.database import embedded, migrations
from certjob.errors import CertjobError, StoppedBySignalError
from certjob.stopping import StopFlag

_ZONE = ZoneInfo("Europe/Oslo")


def show(*, stop: StopFlag) -> int:
    """Show the demo and return 0; nothing is left behind, however it ends.

    Raises ConfigurationError without the ``embedded`` extra, StoppedBySignalError after a signal.
    """
    began_at = time.monotonic()
    first_night = datetime.now(_ZONE).date() - timedelta(days=2)  # so that the night of the outage is today's
    rows = make_people(first_night)
    contacts = {UUID(row["dynamics_contact_id"]) for row in rows if row["dynamics_contact_id"]}
    output = Output(quiet=False)
    output.interactive = True  # off a terminal the commands print their figures, too
    try:
        with (
            _throw_away_database(stop) as (folder, url),
            database.connect(url) as connection,
            DemoPortal(contacts) as portal,
        ):
            settings = DemoSettings.model_construct(  # not from the environment
                day=first_night,
                database_url=SecretStr(url),
                portal_url=portal.url,
                portal_key=SecretStr("demo-key"),
                notify_url=SecretStr(f"maildir:{folder}/maildir"),
                mail_from="HLF <likeperson@hlf.example.org>",
            )
            demo = Demonstration(
                output=output,
                stop=stop,
                settings=settings,
                connection=connection,
                portal=portal,
                maildir=folder / "maildir",
            )
            for scene in (partial(load, rows=rows, folder=folder), *SCENES):
                scene(demo)
    except (CertjobError, KeyboardInterrupt) as error:
        if stop.is_set():
            message = f"stopped by {stop.signal_name}; the throw-away database and all that belongs to it are gone"
            raise StoppedBySignalError(message) from error
        raise
    output.text(
        f"That took {time.monotonic() - began_at:.0f} s; database, mails and portal are gone again. "
        "To try the commands on a database of your own, see Five minutes in README.md."
    )
    return 0


@contextmanager
def _throw_away_database(stop: StopFlag) -> Iterator[tuple[Path, str]]:
    """Yield a temporary folder and the URL of a database in it; both go at the end."""
    with tempfile.TemporaryDirectory(prefix="certjob-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # for root, PostgreSQL runs as another user
        # A signal while PostgreSQL starts leaves work to the wheel's own handler at exit, which makes the folder anew
        # for its lock; what is registered before that handler runs after it.
        atexit.register(_remove, folder)
        with ExitStack() as stack:
            with stop.interruptible():
                url = stack.enter_context(embedded.server(folder / "postgresql"))
            yield folder, url


def _remove(folder: Path) -> None:
    """Delete a folder, for 30 seconds: a process that initdb started outlives it, and may still write there."""
    for _ in range(300):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def load(demo: Demonstration, *, rows: list[Row], folder: Path) -> None:
    """Lay the schema and load the people; a coordinator has paused one of them."""
    demo.heading("A throw-away PostgreSQL, two organisations, a portal")
    applied = migrations.migrate(demo.connection)
    loaded = load_people(demo.connection, rows, folder=folder)
    demo.connection.execute(
        "INSERT INTO mentor_pauses (mentor_id, reason, actor)"
        " SELECT id, 'illness', 'coordinator' FROM mentors WHERE member_no = %s",
        (ILL,),
    )
    demo.say(
        f"PostgreSQL started, {len(applied)} migrations applied, {loaded.mentors_added} made-up mentors with "
        f"{loaded.certificates_added} certificates loaded from a CSV file."
    )
    demo.say(
        "HLF shows its mentors on a portal; a local stand-in of the Edge Function plays it, over real HTTP. Nordlys "
        "has no portal and is never called for. Mails go into a Maildir folder."
    )
