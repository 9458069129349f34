"""The demo's scenes: each tells what happens, does it as the commands do, and prints what they print.

Time passes by the date that each night is run for. All figures are read from the database, the Maildir and the portal's
stand-in, after the fact.
"""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

from rich.panel import Panel
from rich.text import Text

from certjob import database
from certjob.cli.demo import people as demo_people
from certjob.cli.demo.people import SamplePeople
from certjob.cli.demo.portal import DemoPortal
from certjob.cli.pages import alerts as alerts_page
from certjob.cli.pages import night as night_pages
from certjob.cli.terminal import output as console
from certjob.cli.terminal.output import Output, TerminalProgress
from certjob.cli.terminal.plain import print_attention
from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.errors import EXIT_CODES
from certjob.facts import lookup
from certjob.mail.channels.maildir import MaildirChannel
from certjob.night import nightly, reconcile, resync
from certjob.night.deliveries import Delivery
from certjob.night.nightly import NightOptions
from certjob.night.report import RunReport
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.portal.push import CALL_DEADLINE_SECONDS
from certjob.stopping import StopFlag
from certjob.views import alerts as alerts_views

ZONE: Final = ZoneInfo("Europe/Oslo")
SENDER: Final = "HLF Likeperson <likeperson@hlf.example.org>"

_LATER: Final = (
    "UPDATE portal_sync_events SET next_attempt_at = next_attempt_at - interval '15 minutes' WHERE status = 'pending'"
)
"""Waits are kept by the database's clock, which the demo cannot set: it prints this statement and runs it."""

_ACTIVE: Final = (
    "SELECT m.dynamics_contact_id, m.left_at IS NULL AND NOT EXISTS ("
    "    SELECT FROM mentor_pauses AS p WHERE p.mentor_id = m.id AND p.lifted_at IS NULL"
    ") FROM mentors AS m WHERE m.dynamics_contact_id IS NOT NULL"
)
_SOME_MENTOR: Final = (
    "SELECT dynamics_contact_id FROM mentors AS m WHERE dynamics_contact_id IS NOT NULL AND portal_visible IS {}"
    " AND review_on < 'infinity' ORDER BY member_no LIMIT 1"
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
    maildir: Path
    people: SamplePeople
    first_night: date

    def night(self, number: int) -> date:
        """Return the date of a night; the first one is number 1."""
        return self.first_night + timedelta(days=number - 1)

    def heading(self, text: str) -> None:
        """Begin a scene."""
        self.stop.check()
        if self.output.on_terminal:
            self.output.out.print()
            self.output.out.rule(f"[bold]{console.clean(text)}[/]", align="left")
        else:
            self.output.result("")
            self.output.result(f"== {text}")

    def say(self, text: str) -> None:
        """Tell what happens; wrapped at words on a terminal, else one line."""
        if self.output.on_terminal:
            self.output.out.print(console.clean(text))
        else:
            self.output.result(text)

    def delivery(self) -> Delivery:
        """Return the ways out: real HTTP to the stand-in, a real Maildir."""
        channel = MaildirChannel(self.maildir, sender=parse_sender(SENDER))
        return Delivery(make_target=self.portal_client, channel=channel, zone=ZONE)

    def portal_client(self) -> HLFDynamicsSyncService:
        """Return the portal's client, as the commands make it."""
        return HLFDynamicsSyncService(self.portal.url, self.portal.key, deadline_seconds=CALL_DEADLINE_SECONDS)

    def run(
        self, connection: Connection, progress: TerminalProgress, *, today: date, dry_run: bool = False
    ) -> RunReport:
        """Run or plan one night."""
        options = NightOptions(today=today, dry_run=dry_run)
        return nightly.run(connection, options=options, delivery=self.delivery(), stop=self.stop, progress=progress)

    def plan(self, today: date) -> RunReport:
        """Plan a night, on a connection of its own: a dry run leaves it read-only."""
        with database.connect(self.url) as connection, self.output.progress() as progress:
            return self.run(connection, progress, today=today, dry_run=True)

    def run_night(self, number: int, *, throttled_push: int = 0) -> None:
        """Run one night on a portal that fell asleep since the last one."""
        self.portal.fall_asleep(throttled_push=throttled_push)
        with self.output.progress() as progress:
            report = self.run(self.connection, progress, today=self.night(number))
        self.show_report("certjob run", report)

    def show_report(self, command: str, report: RunReport) -> None:
        """Print a run as its command does, and its exit code."""
        night_pages.show_totals(self.output, report)
        sys.stdout.flush()
        for reason in report.reasons:
            print_attention(command, reason)
        self.say(f"exit code: {EXIT_CODES[report.outcome]}")

    def show_alerts(self, number: int) -> None:
        """Print what `certjob alerts` prints."""
        alerts = alerts_views.read_alerts(self.connection, today=self.night(number))
        alerts_page.show_alerts(self.output, alerts, now=datetime.now(ZONE))
        self.say(f"open alerts: {len(alerts)}")

    def compare_portal(self) -> None:
        """Say whether the portal shows what the database says."""
        visible = self.portal.visible
        active = self.connection.execute(_ACTIVE).fetchall()
        shown = sum(visible[contact_id] and not wanted for contact_id, wanted in active)
        hidden = sum(wanted and not visible[contact_id] for contact_id, wanted in active)
        if shown + hidden:
            self.say(
                f"portal and database disagree: {shown} are shown who are paused, {hidden} are hidden who are active"
            )
            return
        shown = sum(visible.values())
        self.say(
            f"portal and database agree about all {len(visible)} contacts: {shown} shown, {len(visible) - shown} hidden"
        )

    def reminders(self) -> list[EmailMessage]:
        """Return the reminders in the Maildir; other mails lie there, too."""
        mails = [message_from_bytes(path.read_bytes(), policy=default) for path in sorted(self.maildir.glob("new/*"))]
        return [mail for mail in mails if "-reminder-" in mail["Message-ID"]]

    def count_marked(self) -> int:
        """Return how many reminders are marked as sent."""
        return int(self.fetch("SELECT count(*) FROM cert_notification_log WHERE status = 'sent'")[0])

    def fetch(self, statement: str) -> tuple[Any, ...]:
        """Return one row."""
        return self.connection.execute(statement.encode()).fetchone() or ()


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
    night_pages.show_plan(demo.output, demo.plan(demo.night(2)))
    demo.heading(f"Night 2, {demo.night(2)}: then for real, `certjob run`")
    demo.run_night(2, throttled_push=3)
    demo.say(
        f"The portal: its function had to start first (slowest answer {demo.portal.slowest_seconds:.1f} s), then asked "
        f"{demo.portal.answers[429]} time to wait (429, Retry-After); certjob waited, and {demo.portal.answers[200]} "
        "pushes are confirmed."
    )
    demo.compare_portal()
    demo.show_alerts(2)
    silent = demo.people.without_address
    demo_people.enter_address(demo.connection, silent)
    demo.say(f"A coordinator enters an address for {silent}; that alone makes the reminder due again.")


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
    urgent = alerts_views.read_alerts(demo.connection, today=demo.night(3)).pushes[0]
    demo.say(f"One of them cannot wait, `certjob resync {urgent.member_no}`:")
    resynced = resync.resync(
        demo.connection,
        urgent.mentor_id,
        today=demo.night(3),
        delivery=demo.delivery(),
        stop=demo.stop,
    )
    night_pages.show_resync(demo.output, resynced.before, resynced.after)
    demo.say("A quarter of an hour passes. The demo does not wait, it moves the retry times in its database:")
    demo.say(f"  {_LATER}")
    demo.connection.execute(_LATER)
    demo.say("Then cron starts `certjob deliver`:")
    with demo.output.progress() as progress:
        report = nightly.deliver(
            demo.connection, today=demo.night(3), delivery=demo.delivery(), stop=demo.stop, progress=progress
        )
    demo.show_report("certjob deliver", report)
    demo.show_alerts(3)
    recorded, resolved = demo.fetch("SELECT count(*), count(resolved_at) FROM dynamics_sync_failures")
    demo.say(f"failures on record: {recorded}, resolved: {resolved}")
    demo.compare_portal()


def renewal(demo: Demonstration) -> None:
    """Night 4: a renewal brings a mentor back, and lifts nothing that certjob did not open."""
    members = (demo.people.returning, demo.people.ill)
    demo.heading(f"Night 4, {demo.night(4)}: two renewals")
    mentors = [lookup.find_mentor(demo.connection, name, organisation=demo_people.HLF) for name in members]
    before = [resync.describe(demo.connection, mentor_id) for mentor_id in mentors]
    for member_no in members:
        demo_people.renew(demo.connection, member_no, issued_on=demo.night(4))
    demo.say(f"{members[0]} and {members[1]} took the course again; a coordinator has paused {members[1]} for illness.")
    demo.run_night(4)
    for mentor_id, state in zip(mentors, before, strict=True):
        night_pages.show_resync(demo.output, state, resync.describe(demo.connection, mentor_id))
    demo.say("certjob lifts its own pauses only: the first is back, the second stays paused and hidden.")
    demo.compare_portal()


def two_at_once(demo: Demonstration) -> None:
    """Night 5: cron and a person start the night at the same moment."""
    demo.heading(f"Night 5, {demo.night(5)}: two runs at the same moment")
    demo.portal.fall_asleep()
    marked_before, files_before = demo.count_marked(), len(demo.reminders())
    start = threading.Barrier(2)

    def one_run(progress: TerminalProgress) -> RunReport:
        with database.connect(demo.url) as connection:
            start.wait(timeout=60)
            return demo.run(connection, progress, today=demo.night(5))

    with demo.output.progress() as progress, ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(one_run, (progress, progress)))
    for report in reports:
        night_pages.show_totals(demo.output, report)
    mails = demo.reminders()
    repeated = sum(times > 1 for times in demo.portal.confirmed.values())
    demo.say(
        f"Both together: {demo.count_marked() - marked_before} reminders marked as sent, {len(mails) - files_before} "
        f"new messages in the Maildir, {demo.portal.answers[200]} pushes. Messages that are there twice: "
        f"{len(mails) - len({mail['Message-ID'] for mail in mails})}; pushes made twice: {repeated}."
    )
    demo.compare_portal()


def hand_edit(demo: Demonstration) -> None:
    """After night 5: somebody edits the portal by hand, and nothing in the database knows."""
    demo.heading(f"After night 5, {demo.night(5)}: somebody edits the portal by hand")
    (shown,) = demo.fetch(_SOME_MENTOR.format("FALSE"))
    (hidden,) = demo.fetch(_SOME_MENTOR.format("TRUE"))
    demo.portal.visible[shown], demo.portal.visible[hidden] = True, False
    demo.compare_portal()
    demo.say("No run would notice: everything was confirmed. `certjob reconcile` reads what the portal shows:")
    with demo.output.progress() as progress:
        report = reconcile.reconcile(
            demo.connection,
            options=reconcile.ReconcileOptions(today=demo.night(5)),
            make_reader=demo.portal_client,
            delivery=demo.delivery(),
            stop=demo.stop,
            progress=progress,
        )
    demo.show_report("certjob reconcile", report)
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
    (log_id,) = demo.fetch(
        "SELECT l.id FROM cert_notification_log AS l JOIN mentors AS m ON m.id = l.mentor_id"
        " WHERE l.status = 'sent' AND l.threshold_days = 7 AND m.locale = 'nb' ORDER BY l.sent_at DESC LIMIT 1"
    )
    mail = next(mail for mail in demo.reminders() if mail["Message-ID"].startswith(f"<certjob-reminder-{log_id}-"))
    body = mail.get_body(("plain",))
    headers = [f"{name}: {mail[name]}" for name in ("From", "To", "Subject")]
    text = "\n".join([*headers, "", body.get_content().strip() if body else ""])
    if demo.output.on_terminal:
        demo.output.out.print(Panel(Text(text), width=min(demo.output.out.width, 80)))
        return
    for line in text.splitlines():
        demo.say(f"| {line}".rstrip())


def summary(demo: Demonstration) -> None:
    """The whole story in figures."""
    demo.heading("What the database remembers")
    headings = ("Night", "Command", "Outcome", "Reviewed", "Paused", "Back", "Mails", "Pushes")
    console.show_rows(demo.output, headings, demo.connection.execute(_RUNS).fetchall())
    mails = demo.reminders()
    demo.say(
        f"reminders marked as sent: {demo.count_marked()}, messages in the Maildir: {len(mails)}, different ones among "
        f"them: {len({mail['Message-ID'] for mail in mails})}"
    )
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
