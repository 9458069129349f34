"""The demo: a few nights in a row on a throw-away database, each with something that a person would want to see.

Time passes by the date that each night is run for. All figures are read from the database, the Maildir and the portal's
stand-in, after the fact.
"""

import atexit
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path

from rich.panel import Panel
from rich.text import Text

from certjob import database
from certjob.cli.demo import figures as demo_figures
from certjob.cli.demo import people as demo_people
from certjob.cli.demo.nights import NIGHTS, ZONE, Demonstration
from certjob.cli.demo.portal import DemoPortal
from certjob.cli.terminal import output as console
from certjob.cli.terminal.output import Output
from certjob.database import embedded, migrations
from certjob.errors import CertjobError, StoppedBySignalError
from certjob.stopping import StopFlag


def show(output: Output, *, stop: StopFlag) -> int:
    """Show the demo and return 0; nothing is left behind, however it ends.

    Raises ConfigurationError without the ``embedded`` extra, StoppedBySignalError after a signal.
    """
    began_at = time.monotonic()
    try:
        with ExitStack() as stack:
            demo = _prepare(output, stop, stack)
            for scene in (*NIGHTS, wrong_clock, one_message, summary, what_next):
                scene(demo)
    except CertjobError as error:
        if stop.is_set():
            message = f"stopped by {stop.signal_name}; the throw-away database and all that belongs to it are gone"
            raise StoppedBySignalError(message) from error
        raise
    output.result(f"That took {time.monotonic() - began_at:.0f} s; database, mails and portal are gone again.")
    return 0


def _prepare(output: Output, stop: StopFlag, stack: ExitStack) -> Demonstration:
    """Start the database, lay the schema, load the people, start the portal's stand-in."""
    began_at = time.monotonic()
    folder, url = stack.enter_context(_throw_away_database())
    connection = stack.enter_context(database.connect(url))
    first_night = datetime.now(ZONE).date() - timedelta(days=2)  # so that the night of the outage is today's
    people = demo_people.make_people(first_night)
    demo = Demonstration(
        output=output,
        stop=stop,
        url=url,
        connection=connection,
        portal=stack.enter_context(DemoPortal(people.contacts)),
        maildir=folder / "maildir",
        people=people,
        first_night=first_night,
    )
    demo.heading("A throw-away PostgreSQL, two organisations, a portal")
    applied = migrations.migrate(connection)
    loaded = demo_people.load_people(connection, people, folder=folder)
    demo_people.add_mentor_without_certificate(connection)
    demo_people.pause_for_illness(connection, people.ill)
    demo.say(
        f"PostgreSQL started, {len(applied)} migrations applied, {loaded.mentors_added} made-up mentors with "
        f"{loaded.certificates_added} certificates loaded from a CSV file, in {time.monotonic() - began_at:.1f} s."
    )
    demo.say(
        "HLF shows its mentors on a portal; a local stand-in of the Edge Function plays it, over real HTTP. Nordlys "
        "has no portal and is never called for. Mails go into a Maildir folder."
    )
    return demo


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


def wrong_clock(demo: Demonstration) -> None:
    """Show that the guard holds back what a clock that is a year ahead would do."""
    wrong = demo.night(5) + timedelta(days=365)
    demo.heading(f"What if the clock were a year ahead? The plan for {wrong}")
    for line in demo.plan(wrong).held:
        demo.say(f"held back: {line}")


def one_message(demo: Demonstration) -> None:
    """Show one reminder as the mentor reads it."""
    demo.heading("One reminder out of the Maildir, as the mentor reads it")
    message = demo_figures.find_week_reminder(demo.connection, demo.maildir)
    body = message.get_body(("plain",)) if message else None
    if message is None or body is None:
        demo.say("There is none.")
        return
    headers = [f"{name}: {message[name]}" for name in ("From", "To", "Subject")]
    text = "\n".join([*headers, "", body.get_content().strip()])
    if demo.output.on_terminal:
        demo.output.out.print(Panel(Text(text), width=min(demo.output.out.width, 80)))
        return
    for line in text.splitlines():
        demo.say(f"| {line}".rstrip())


def summary(demo: Demonstration) -> None:
    """Show the whole story in figures."""
    demo.heading("What the database remembers")
    headings = ("Night", "Command", "Outcome", "Reviewed", "Paused", "Back", "Mails", "Pushes")
    words = [f" {heading.lower()}" for heading in headings[3:]]
    if demo.output.on_terminal:
        words = [""] * len(words)  # the table's head has them
    rows = []
    for run in demo_figures.read_runs(demo.connection):
        figures = (run.reviewed, run.paused, run.resumed, run.sent, run.delivered)
        said = [f"{figure}{word}" for figure, word in zip(figures, words, strict=True)]
        rows.append((run.as_of, run.command, run.outcome, *said))
    console.show_rows(demo.output, headings, rows)
    mails = demo_figures.count_mails(demo.connection, demo.maildir)
    demo.say(
        f"reminders marked as sent: {mails.marked}, messages in the Maildir: {mails.files}, different ones among them: "
        f"{mails.message_ids}"
    )
    demo.count_alerts(5)
    demo.compare_portal()


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
