"""The demo: a few nights in a row on a throw-away database, each with something that a person would want to see."""

import atexit
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

from certjob import database
from certjob.cli.demo.people import ILL, Row, load_people, make_people
from certjob.cli.demo.portal import DemoPortal
from certjob.cli.demo.scenes import SCENES, ZONE, Demonstration
from certjob.cli.terminal.output import Output
from certjob.database import embedded, migrations
from certjob.domain.addresses import parse_sender
from certjob.errors import CertjobError, StoppedBySignalError
from certjob.mail.channels.maildir import MaildirChannel
from certjob.night.deliveries import Delivery
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.portal.push import CALL_DEADLINE_SECONDS
from certjob.stopping import StopFlag


def show(output: Output, *, stop: StopFlag) -> int:
    """Show the demo and return 0; nothing is left behind, however it ends.

    Raises ConfigurationError without the ``embedded`` extra, StoppedBySignalError after a signal.
    """
    began_at = time.monotonic()
    first_night = datetime.now(ZONE).date() - timedelta(days=2)  # so that the night of the outage is today's
    rows = make_people(first_night)
    contacts = {UUID(row["dynamics_contact_id"]) for row in rows if row["dynamics_contact_id"]}
    try:
        with (
            _throw_away_database() as (folder, url),
            database.connect(url) as connection,
            DemoPortal(contacts) as portal,
        ):
            portal_client = partial(
                HLFDynamicsSyncService, portal.url, "demo-key", deadline_seconds=CALL_DEADLINE_SECONDS
            )
            channel = MaildirChannel(folder / "maildir", sender=parse_sender("HLF <likeperson@hlf.example.org>"))
            demo = Demonstration(
                output=output,
                stop=stop,
                url=url,
                connection=connection,
                portal=portal,
                portal_client=portal_client,
                delivery=Delivery(make_target=portal_client, channel=channel, zone=ZONE),
                maildir=folder / "maildir",
                first_night=first_night,
            )
            for scene in (partial(load, rows=rows, folder=folder), *SCENES, what_next):
                scene(demo)
    except CertjobError as error:
        if stop.is_set():
            message = f"stopped by {stop.signal_name}; the throw-away database and all that belongs to it are gone"
            raise StoppedBySignalError(message) from error
        raise
    output.result(f"That took {time.monotonic() - began_at:.0f} s; database, mails and portal are gone again.")
    return 0


@contextmanager
def _throw_away_database() -> Iterator[tuple[Path, str]]:
    """Yield a temporary folder and the URL of a database in it; both go at the end."""
    with tempfile.TemporaryDirectory(prefix="certjob-demo-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # for root, PostgreSQL runs as another user
        # Ctrl-C while PostgreSQL starts leaves work to the wheel's own handler at exit, which makes the folder anew
        # for its lock; what is registered before that handler runs after it.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with embedded.server(folder / "postgresql") as url:
            yield folder, url


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


def what_next(demo: Demonstration) -> None:
    """Name the commands for a first database of one's own."""
    demo.heading("What to try next, in an empty folder")
    if shutil.which("certjob") is None:
        demo.output.result(f'  export PATH="{Path(sys.executable).parent}:$PATH"')
    for line in first_steps(datetime.now(ZONE).date()):
        demo.output.result(f"  {line}")
    demo.say(
        "`embedded` keeps a database of its own on this machine; a PostgreSQL URL works as well. For a portal: "
        "`--portal dynamics`, CERTJOB_PORTAL_URL and CERTJOB_PORTAL_KEY. Every command explains itself with --help."
    )


def first_steps(today: date) -> list[str]:
    """Return lines for a shell that take a newcomer from nothing to a night with one reminder."""
    return [
        'export CERTJOB_DATABASE_URL=embedded CERTJOB_NOTIFY_URL="maildir:$PWD/mails"',
        "certjob db migrate",
        "certjob organisation set example --name 'Our organisation' --contact-email post@example.org",
        "echo organisation,member_no,full_name,email,kind,issued_on,expires_on > mentors.csv",
        f"echo example,1001,Kari,kari@example.org,likeperson,{today},{today + timedelta(days=30)} >> mentors.csv",
        "certjob load mentors.csv",
        "certjob run --dry-run",
        "certjob run",
        "certjob alerts",
        "certjob resync 1001",
    ]
