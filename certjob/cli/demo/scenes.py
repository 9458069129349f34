"""The demo's scenes: each tells what happens, and calls the commands as a person or cron does.

Time passes by the date that each command is called on. All figures are read from the database, the Maildir and the
portal's stand-in, after the fact.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import date, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from certjob import database
from certjob.cli.commands import alerts, health, reconcile, runs
from certjob.cli.demo.people import HLF, ILL, KIND, RETURNING, VALIDITY, WITHOUT_ADDRESS
from certjob.cli.demo.portal import COLD_START_SECONDS, DemoPortal
from certjob.cli.pages.night import show_resync
from certjob.cli.session import Call, Session
from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output
from certjob.database import Connection
from certjob.facts.lookup import find_mentor
from certjob.jobs.resync import describe
from certjob.reports.alerts import read_alerts
from certjob.settings import Settings
from certjob.stopping import StopFlag

_LATER: Final = (
    "UPDATE portal_sync_events SET next_attempt_at = next_attempt_at - interval '15 minutes' WHERE status = 'pending'"
)
"""Waits are kept by the database's clock, which the demo cannot set: it prints this statement and runs it."""

_ACTIVE: Final = (
    "SELECT dynamics_contact_id FROM mentors AS m WHERE dynamics_contact_id IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL)"
)


class DemoSettings(Settings):
    """The settings of one day."""

    day: date

    @property
    def today(self) -> date:
        """That day, whatever the clock says."""
        return self.day


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoCall(Call):
    """A command called on the demo's database, on the day of its settings."""

    settings: DemoSettings
    connection: Connection
    output: Output

    @contextmanager
    def session(self, **_how: bool) -> Iterator[Session]:
        """Lend the command what is open already."""
        yield Session(
            settings=self.settings,
            connection=self.connection,
            output=self.output,
            stop=self.stop,
            run_id=uuid4(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """What the scenes share."""

    output: Output
    stop: StopFlag
    settings: DemoSettings
    """Those of the first night: a throw-away database, the portal's stand-in over real HTTP, a real Maildir."""
    connection: Connection
    portal: DemoPortal
    maildir: Path

    def night(self, number: int) -> date:
        """Return the date of a night; the first one is number 1."""
        return self.settings.day + timedelta(days=number - 1)

    def heading(self, text: str) -> None:
        """Begin a scene."""
        self.stop.check()
        self.output.show_lines([PageLine(text=""), PageLine(text=f"== {text}", style="bold")])

    def say(self, text: str) -> None:
        """Tell what happens; wrapped at words on a terminal, else one line."""
        self.output.text(text)

    def fetch(self, statement: str) -> tuple[Any, ...]:
        """Return one row."""
        return self.connection.execute(statement.encode()).fetchone() or ()

    def do(self, command: Callable[..., int], *arguments: str, on: date, **options: bool) -> None:
        """Call a command on a day; print what is typed for it, and its exit code."""
        name = f"certjob {command.__name__}"
        self.say(" ".join([f"$ {name}", *arguments, *(f"--{option.replace('_', '-')}" for option in options)]))
        call = DemoCall(
            command=name,
            stop=self.stop,
            settings=self.settings.model_copy(update={"day": on}),
            connection=self.connection,
            output=self.output,
        )
        self.say(f"exit code: {command(call, *arguments, **options)}")

    def run_night(self, number: int, *, throttled_push: int = 0) -> None:
        """Run one night on a portal that fell asleep since the last one."""
        self.portal.fall_asleep(throttled_push=throttled_push)
        self.do(runs.run, on=self.night(number))
        self.compare_portal()

    def compare_portal(self) -> None:
        """Say whether the portal shows exactly those who are active."""
        shown, active = self.portal.visible, {contact_id for (contact_id,) in self.connection.execute(_ACTIVE)}
        if shown == active:
            self.say(f"portal and database agree: {len(shown)} shown, all others hidden")
        else:
            self.say(
                f"portal and database disagree: {len(shown - active)} shown although paused, {len(active - shown)} "
                "hidden although active"
            )

    def mails(self) -> list[EmailMessage]:
        """Return what is in the Maildir: reminders, since there are no coordinators."""
        return [message_from_bytes(path.read_bytes(), policy=default) for path in self.maildir.glob("new/*")]


def take_over(demo: Demonstration) -> None:
    """Night 1: certjob meets everybody for the first time."""
    demo.heading(f"Night 1, {demo.night(1)}: certjob meets everybody")
    demo.run_night(1)
    demo.say(
        "Whoever expired long ago is paused and hidden, but gets no mail about it; of several reminders that were "
        "missed only the most urgent one goes out."
    )


def plan_and_night(demo: Demonstration) -> None:
    """Night 2: first what would happen, then the same for real, on a portal that starts slowly and throttles."""
    demo.heading(f"Night 2, {demo.night(2)}: first the plan")
    demo.do(runs.run, on=demo.night(2), dry_run=True)
    demo.heading(f"Night 2, {demo.night(2)}: then for real")
    demo.run_night(2, throttled_push=3)
    demo.say(
        f"The portal: its function had to start first ({COLD_START_SECONDS:g} s) and asked {demo.portal.answers[429]} "
        f"push to wait (429, Retry-After); certjob waited, and {demo.portal.answers[200]} pushes are confirmed."
    )
    demo.do(alerts.alerts, on=demo.night(2))
    demo.connection.execute("UPDATE mentors SET email = 'a@example.org' WHERE member_no = %s", (WITHOUT_ADDRESS,))
    demo.say(f"A coordinator enters an address for {WITHOUT_ADDRESS}; that alone makes the reminder due again.")


def outage(demo: Demonstration) -> None:
    """Night 3: the portal is down, and nobody who should be hidden is forgotten."""
    demo.heading(f"Night 3, {demo.night(3)}: the portal is down")
    demo.portal.is_down = True
    demo.run_night(3)
    demo.say(
        f"The portal answered 502 to {demo.portal.answers[502]} calls before certjob left it alone. The pauses hold "
        "and the mails went out all the same; only the portal does not know yet."
    )
    demo.say("What coordinators see, here and on the app's dashboard:")
    demo.do(alerts.alerts, on=demo.night(3))


def recovery(demo: Demonstration) -> None:
    """Still night 3: the portal is back; one mentor at once by hand, the others by the job between the nights."""
    demo.heading(f"Later that day, {demo.night(3)}: the portal is back")
    demo.portal.is_down = False
    urgent = read_alerts(demo.connection, today=demo.night(3)).pushes[0].member_no
    demo.say("One of them cannot wait:")
    demo.do(runs.resync, urgent, on=demo.night(3))
    demo.say("A quarter of an hour passes. The demo does not wait, it moves the retry times in its database:")
    demo.say(_LATER)
    demo.connection.execute(_LATER)
    demo.say("Then cron runs the background job:")
    demo.do(runs.deliver, on=demo.night(3))
    demo.compare_portal()
    demo.do(alerts.alerts, on=demo.night(3))
    recorded, resolved = demo.fetch("SELECT count(*), count(resolved_at) FROM dynamics_sync_failures")
    demo.say(f"failures on record: {recorded}, resolved: {resolved}")


def renewal(demo: Demonstration) -> None:
    """Night 4: a renewal brings a mentor back, and lifts nothing that certjob did not open."""
    demo.heading(f"Night 4, {demo.night(4)}: two renewals")
    mentors = [find_mentor(demo.connection, name, organisation=HLF) for name in (RETURNING, ILL)]
    before = [describe(demo.connection, mentor_id) for mentor_id in mentors]
    for mentor_id in mentors:
        demo.connection.execute(
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%s, %s, %s, %s)",
            (mentor_id, KIND, demo.night(4), demo.night(4) + VALIDITY),
        )
    demo.say(f"{RETURNING} and {ILL} took the course again; a coordinator has paused {ILL} for illness.")
    demo.run_night(4)
    for mentor_id, state in zip(mentors, before, strict=True):
        show_resync(demo.output, state, describe(demo.connection, mentor_id))
    demo.say("certjob lifts its own pauses only: the first is back, the second stays paused and hidden.")


def two_at_once(demo: Demonstration) -> None:
    """Night 5: cron and a person start the night at the same moment."""
    demo.heading(f"Night 5, {demo.night(5)}: two runs at the same moment")
    output = Output(quiet=True)  # a terminal has room for one progress
    output.interactive = True

    def run(_number: int) -> None:
        with database.connect(demo.settings.database_url.get_secret_value()) as connection:
            replace(demo, output=output, connection=connection).do(runs.run, on=demo.night(5))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
    demo.compare_portal()


def hand_edit(demo: Demonstration) -> None:
    """After night 5: somebody edits the portal by hand, and nothing in the database knows."""
    demo.heading(f"After night 5, {demo.night(5)}: somebody edits the portal by hand")
    (hidden,) = demo.fetch("SELECT dynamics_contact_id FROM mentors WHERE portal_visible IS FALSE")
    demo.portal.visible.pop()
    demo.portal.visible.add(hidden)
    demo.compare_portal()
    demo.say("No run would notice: everything was confirmed. This reads what the portal shows:")
    demo.do(reconcile.reconcile, on=demo.night(5))
    demo.compare_portal()


def wrong_clock(demo: Demonstration) -> None:
    """The guard holds back what a clock that is a year ahead would do."""
    wrong = demo.night(5) + timedelta(days=365)
    demo.heading(f"What if the clock were a year ahead? The plan for {wrong}")
    demo.do(runs.run, on=wrong, dry_run=True)


def one_message(demo: Demonstration) -> None:
    """One reminder as the mentor reads it."""
    demo.heading("One reminder out of the Maildir, as the mentor reads it")
    mail = next(mail for mail in demo.mails() if "går ut om 7\N{NO-BREAK SPACE}dager" in mail["Subject"])
    body = mail.get_body(("plain",))
    text = body.get_content() if body else ""
    lines = [*(f"{name}: {mail[name]}" for name in ("From", "To", "Subject")), "", *text.splitlines()]
    demo.output.show_lines(PageLine(bullet="| ", text=line) for line in lines)


def summary(demo: Demonstration) -> None:
    """The whole story in figures of three sources: nothing went out twice."""
    demo.heading("What the database remembers")
    demo.do(health.status, on=demo.night(5))
    (marked,) = demo.fetch("SELECT count(*) FROM cert_notification_log WHERE status = 'sent'")
    mails, confirmed = demo.mails(), demo.portal.confirmed
    demo.say(
        f"reminders marked as sent: {marked}, messages in the Maildir: {len(mails)}, different ones among them: "
        f"{len({mail['Message-ID'] for mail in mails})}; pushes confirmed: {confirmed.total()}, different ones "
        f"among them: {len(confirmed)}"
    )


SCENES: Final = (
    take_over,
    plan_and_night,
    outage,
    recovery,
    renewal,
    two_at_once,
    hand_edit,
    wrong_clock,
    one_message,
    summary,
)
"""In the order of the story."""
