"""The demo's scenes: each tells what happens, does it as the commands do, and prints what they print.

Time passes by the date that each night is run for. All figures are read from the database, the Maildir and the portal's
stand-in, after the fact.
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from rich.text import Text

from certjob import database
from certjob.cli.demo.people import HLF, ILL, KIND, RETURNING, VALIDITY, WITHOUT_ADDRESS
from certjob.cli.demo.portal import COLD_START_SECONDS, DemoPortal
from certjob.cli.pages import alerts as alerts_page
from certjob.cli.pages import night as night_pages
from certjob.cli.terminal.lines import PageLine
from certjob.cli.terminal.output import Output, TerminalProgress, show_rows
from certjob.cli.terminal.plain import print_attention
from certjob.database import Connection
from certjob.errors import EXIT_CODES
from certjob.facts import lookup
from certjob.night import nightly, reconcile, resync
from certjob.night.deliveries import Delivery
from certjob.night.nightly import NightOptions
from certjob.night.report import RunReport
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.stopping import StopFlag
from certjob.views.alerts import read_alerts

ZONE: Final = ZoneInfo("Europe/Oslo")

_LATER: Final = (
    "UPDATE portal_sync_events SET next_attempt_at = next_attempt_at - interval '15 minutes' WHERE status = 'pending'"
)
"""Waits are kept by the database's clock, which the demo cannot set: it prints this statement and runs it."""

_ACTIVE: Final = (
    "SELECT dynamics_contact_id FROM mentors AS m WHERE dynamics_contact_id IS NOT NULL"
    " AND NOT EXISTS (SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL)"
)
_RUNS: Final = (
    "SELECT as_of, command, outcome, coalesce(counts #>> '{mentors,reviewed}', '0'),"
    " coalesce(counts #>> '{mentors,paused}', '0'), coalesce(counts #>> '{mentors,resumed}', '0'),"
    " coalesce(counts #>> '{reminders,sent}', '0'), coalesce(counts #>> '{portal,delivered}', '0')"
    " FROM job_runs ORDER BY finished_at"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """What the scenes share."""

    output: Output
    stop: StopFlag
    url: str
    """The throw-away database."""
    connection: Connection
    portal: DemoPortal
    delivery: Delivery
    """Real HTTP to the stand-in, a real Maildir."""
    portal_client: Callable[[], HLFDynamicsSyncService]
    maildir: Path
    first_night: date

    def night(self, number: int) -> date:
        """Return the date of a night; the first one is number 1."""
        return self.first_night + timedelta(days=number - 1)

    def heading(self, text: str) -> None:
        """Begin a scene."""
        self.stop.check()
        self.output.text("")
        if self.output.on_terminal:
            self.output.out.rule(Text(text, style="bold"), align="left")
        else:
            self.output.result(f"== {text}")

    def say(self, text: str) -> None:
        """Tell what happens; wrapped at words on a terminal, else one line."""
        self.output.text(text)

    def fetch(self, statement: str) -> tuple[Any, ...]:
        """Return one row."""
        return self.connection.execute(statement.encode()).fetchone() or ()

    def plan(self, today: date) -> RunReport:
        """Plan a night."""
        return self._work(nightly.run, options=NightOptions(today=today, dry_run=True))

    def run_night(self, number: int, *, throttled_push: int = 0) -> None:
        """Run one night on a portal that fell asleep since the last one."""
        self.portal.fall_asleep(throttled_push=throttled_push)
        self.do("certjob run", nightly.run, options=NightOptions(today=self.night(number)))

    def do(self, command: str, work: Callable[..., RunReport], **details: Any) -> None:
        """Do the work of a command, and print what the command prints and its exit code."""
        report = self._work(work, **details)
        night_pages.show_totals(self.output, report)
        sys.stdout.flush()
        for reason in report.reasons:
            print_attention(command, reason)
        self.say(f"exit code: {EXIT_CODES[report.outcome]}")

    def _work(self, work: Callable[..., RunReport], **details: Any) -> RunReport:
        with self.output.progress() as progress:
            return work(self.connection, delivery=self.delivery, stop=self.stop, progress=progress, **details)

    def show_alerts(self, number: int) -> None:
        """Print what `certjob alerts` prints."""
        alerts = read_alerts(self.connection, today=self.night(number))
        alerts_page.show_alerts(self.output, alerts, now=datetime.now(ZONE))
        self.say(f"open alerts: {len(alerts)}")

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

    def count_what_went_out(self) -> None:
        """Say that nothing went out twice, in figures of three sources."""
        (marked,) = self.fetch("SELECT count(*) FROM cert_notification_log WHERE status = 'sent'")
        mails, confirmed = self.mails(), self.portal.confirmed
        self.say(
            f"reminders marked as sent: {marked}, messages in the Maildir: {len(mails)}, different ones among them: "
            f"{len({mail['Message-ID'] for mail in mails})}; pushes confirmed: {confirmed.total()}, different ones "
            f"among them: {len(confirmed)}"
        )


def take_over(demo: Demonstration) -> None:
    """Night 1: certjob meets everybody for the first time."""
    demo.heading(f"Night 1, {demo.night(1)}: certjob meets everybody")
    demo.run_night(1)
    demo.compare_portal()
    demo.say(
        "Whoever expired long ago is paused and hidden, but gets no mail about it; of several reminders that were "
        "missed only the most urgent one goes out."
    )


def plan_and_night(demo: Demonstration) -> None:
    """Night 2: first what would happen, then the same for real, on a portal that starts slowly and throttles."""
    demo.heading(f"Night 2, {demo.night(2)}: first the plan, `certjob run --dry-run`")
    names = partial(lookup.name_mentors, demo.connection)
    night_pages.show_plan(demo.output, demo.plan(demo.night(2)), find_names=names)
    demo.heading(f"Night 2, {demo.night(2)}: then for real, `certjob run`")
    demo.run_night(2, throttled_push=3)
    demo.say(
        f"The portal: its function had to start first ({COLD_START_SECONDS:g} s) and asked {demo.portal.answers[429]} "
        f"push to wait (429, Retry-After); certjob waited, and {demo.portal.answers[200]} pushes are confirmed."
    )
    demo.compare_portal()
    demo.show_alerts(2)
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
    demo.compare_portal()
    demo.say("What coordinators see, here (`certjob alerts`) and on the app's dashboard:")
    demo.show_alerts(3)


def recovery(demo: Demonstration) -> None:
    """Still night 3: the portal is back; one mentor at once by hand, the others by the job between the nights."""
    demo.heading(f"Later that day, {demo.night(3)}: the portal is back")
    demo.portal.is_down = False
    urgent = read_alerts(demo.connection, today=demo.night(3)).pushes[0]
    demo.say(f"One of them cannot wait, `certjob resync {urgent.member_no}`:")
    resynced = resync.resync(
        demo.connection, urgent.mentor_id, today=demo.night(3), delivery=demo.delivery, stop=demo.stop
    )
    night_pages.show_resync(demo.output, resynced.before, resynced.after)
    demo.say("A quarter of an hour passes. The demo does not wait, it moves the retry times in its database:")
    demo.say(_LATER)
    demo.connection.execute(_LATER)
    demo.say("Then cron starts `certjob deliver`:")
    demo.do("certjob deliver", nightly.deliver, today=demo.night(3))
    demo.show_alerts(3)
    recorded, resolved = demo.fetch("SELECT count(*), count(resolved_at) FROM dynamics_sync_failures")
    demo.say(f"failures on record: {recorded}, resolved: {resolved}")
    demo.compare_portal()


def renewal(demo: Demonstration) -> None:
    """Night 4: a renewal brings a mentor back, and lifts nothing that certjob did not open."""
    demo.heading(f"Night 4, {demo.night(4)}: two renewals")
    mentors = [lookup.find_mentor(demo.connection, name, organisation=HLF) for name in (RETURNING, ILL)]
    before = [resync.describe(demo.connection, mentor_id) for mentor_id in mentors]
    for mentor_id in mentors:
        demo.connection.execute(
            "INSERT INTO certificates (mentor_id, kind, issued_on, expires_on) VALUES (%s, %s, %s, %s)",
            (mentor_id, KIND, demo.night(4), demo.night(4) + VALIDITY),
        )
    demo.say(f"{RETURNING} and {ILL} took the course again; a coordinator has paused {ILL} for illness.")
    demo.run_night(4)
    for mentor_id, state in zip(mentors, before, strict=True):
        night_pages.show_resync(demo.output, state, resync.describe(demo.connection, mentor_id))
    demo.say("certjob lifts its own pauses only: the first is back, the second stays paused and hidden.")
    demo.compare_portal()


def two_at_once(demo: Demonstration) -> None:
    """Night 5: cron and a person start the night at the same moment."""
    demo.heading(f"Night 5, {demo.night(5)}: two runs at the same moment")

    def run(progress: TerminalProgress) -> RunReport:
        options = NightOptions(today=demo.night(5))
        with database.connect(demo.url) as connection:
            return nightly.run(connection, options=options, delivery=demo.delivery, stop=demo.stop, progress=progress)

    with demo.output.progress() as progress, ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(run, (progress, progress)))
    for report in reports:
        night_pages.show_totals(demo.output, report)
    demo.count_what_went_out()
    demo.compare_portal()


def hand_edit(demo: Demonstration) -> None:
    """After night 5: somebody edits the portal by hand, and nothing in the database knows."""
    demo.heading(f"After night 5, {demo.night(5)}: somebody edits the portal by hand")
    (hidden,) = demo.fetch("SELECT dynamics_contact_id FROM mentors WHERE portal_visible IS FALSE")
    demo.portal.visible.pop()
    demo.portal.visible.add(hidden)
    demo.compare_portal()
    demo.say("No run would notice: everything was confirmed. `certjob reconcile` reads what the portal shows:")
    demo.do("certjob reconcile", reconcile.reconcile, today=demo.night(5), make_reader=demo.portal_client)
    demo.compare_portal()


def wrong_clock(demo: Demonstration) -> None:
    """The guard holds back what a clock that is a year ahead would do."""
    wrong = demo.night(5) + timedelta(days=365)
    demo.heading(f"What if the clock were a year ahead? The plan for {wrong}")
    for line in demo.plan(wrong).held:
        demo.say(f"held back: {line}")


def one_message(demo: Demonstration) -> None:
    """One reminder as the mentor reads it."""
    demo.heading("One reminder out of the Maildir, as the mentor reads it")
    mail = next(mail for mail in demo.mails() if "går ut om 7\N{NO-BREAK SPACE}dager" in mail["Subject"])
    body = mail.get_body(("plain",))
    text = body.get_content() if body else ""
    lines = [*(f"{name}: {mail[name]}" for name in ("From", "To", "Subject")), "", *text.splitlines()]
    demo.output.show_lines(PageLine(bullet="| ", text=line) for line in lines)


def summary(demo: Demonstration) -> None:
    """The whole story in figures."""
    demo.heading("What the database remembers")
    headings = ("Night", "Command", "Outcome", "Reviewed", "Paused", "Back", "Mails", "Pushes")
    show_rows(demo.output, headings, demo.connection.execute(_RUNS).fetchall())
    demo.count_what_went_out()
    demo.show_alerts(5)
    demo.compare_portal()


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
