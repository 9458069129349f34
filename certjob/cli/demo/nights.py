"""The demo's nights, scene by scene; each tells what happens and reads its figures afterwards."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

from certjob import database
from certjob.cli.demo import figures
from certjob.cli.demo import people as demo_people
from certjob.cli.demo.people import SamplePeople
from certjob.cli.demo.portal import DemoPortal
from certjob.cli.pages import alerts as alerts_page
from certjob.cli.pages import night as night_pages
from certjob.cli.terminal import output as console
from certjob.cli.terminal.output import Output, TerminalProgress
from certjob.database import Connection
from certjob.domain.addresses import parse_sender
from certjob.errors import EXIT_CODES
from certjob.facts import lookup
from certjob.mail.channels.maildir import MaildirChannel
from certjob.night import nightly, resync
from certjob.night.deliveries import Delivery
from certjob.night.nightly import NightOptions
from certjob.night.report import RunReport
from certjob.portal.hlf_dynamics import HLFDynamicsSyncService
from certjob.portal.push import CALL_DEADLINE_SECONDS
from certjob.stopping import StopFlag
from certjob.views import alerts as alerts_views

ZONE: Final = ZoneInfo("Europe/Oslo")
SENDER: Final = "HLF Likeperson <likeperson@hlf.example.org>"

QUARTER_OF_AN_HOUR_LATER: Final = (
    "UPDATE portal_sync_events SET next_attempt_at = next_attempt_at - interval '15 minutes' WHERE status = 'pending'"
)
"""Waits are kept by the database's clock, which the demo cannot set: it says this statement aloud and runs it."""


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

        def make_target() -> HLFDynamicsSyncService:
            return HLFDynamicsSyncService(self.portal.url, self.portal.key, deadline_seconds=CALL_DEADLINE_SECONDS)

        channel = MaildirChannel(self.maildir, sender=parse_sender(SENDER))
        return Delivery(make_target=make_target, channel=channel, mail_from=SENDER)

    def run(
        self, connection: Connection, progress: TerminalProgress, *, today: date, dry_run: bool = False
    ) -> RunReport:
        """Run or plan one night."""
        return nightly.run(
            connection,
            options=NightOptions(today=today, dry_run=dry_run),
            delivery=self.delivery(),
            stop=self.stop,
            progress=progress,
        )

    def plan(self, today: date) -> RunReport:
        """Plan a night, on a connection of its own: a dry run leaves it read-only."""
        with database.connect(self.url) as connection, self.output.progress() as progress:
            return self.run(connection, progress, today=today, dry_run=True)

    def run_night(self, number: int, *, throttled_push: int = 0) -> RunReport:
        """Run one night on a portal that fell asleep since the last one; print its totals and how it ended."""
        self.portal.fall_asleep(throttled_push=throttled_push)
        with self.output.progress() as progress:
            report = self.run(self.connection, progress, today=self.night(number))
        night_pages.show_totals(self.output, report)
        for reason in report.reasons:
            self.say(f"needs a person: {reason}")
        self.say(f"exit code: {EXIT_CODES[report.outcome]}")
        return report

    def show_alerts(self, number: int) -> None:
        """Print what `certjob alerts` would say, and how much that is."""
        alerts = alerts_views.read_alerts(self.connection, today=self.night(number))
        if len(alerts):
            alerts_page.show_alerts(self.output, alerts, zone=ZONE, now=datetime.now(UTC))
        self.count_alerts(number)

    def count_alerts(self, number: int) -> None:
        """Print how much `certjob alerts` would say."""
        alerts = alerts_views.read_alerts(self.connection, today=self.night(number))
        self.say(f"open alerts: {len(alerts)}")

    def compare_portal(self) -> None:
        """Say whether the portal shows what the database says."""
        self.say(str(figures.compare_portal(self.connection, self.portal.visible)))


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
    portal = demo.portal.night
    demo.say(
        f"The portal: its function had to start first (slowest answer {portal.slowest_seconds:.1f} s), then asked "
        f"{portal.answers[429]} time to wait (429, Retry-After); certjob waited, and {portal.answers[200]} pushes are "
        "confirmed."
    )
    demo.compare_portal()
    demo.show_alerts(2)
    demo_people.enter_address(demo.connection, demo.people.without_address)
    demo.say(
        f"A coordinator enters an address for {demo.people.without_address}; that alone makes the reminder due again."
    )


def outage(demo: Demonstration) -> None:
    """Night 3: the portal is down, and nobody who should be hidden is forgotten."""
    demo.heading(f"Night 3, {demo.night(3)}: the portal is down")
    demo.portal.is_down = True
    demo.run_night(3)
    demo.say(
        f"The portal answered 502 to {demo.portal.night.answers[502]} calls before certjob left it alone. The pauses "
        "hold and the mails went out all the same; only the portal does not know yet."
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
    demo.count_alerts(3)
    demo.say("A quarter of an hour passes. The demo does not wait, it moves the retry times in its database:")
    demo.say(f"  {QUARTER_OF_AN_HOUR_LATER}")
    demo.connection.execute(QUARTER_OF_AN_HOUR_LATER)
    demo.say("Then cron starts `certjob deliver`:")
    with demo.output.progress() as progress:
        report = nightly.deliver(
            demo.connection,
            today=demo.night(3),
            delivery=demo.delivery(),
            stop=demo.stop,
            progress=progress,
        )
    night_pages.show_totals(demo.output, report)
    demo.say(f"exit code: {EXIT_CODES[report.outcome]}")
    demo.count_alerts(3)
    recorded, resolved = figures.count_failures(demo.connection)
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
    mails_before = figures.count_mails(demo.connection, demo.maildir)
    start = threading.Barrier(2)

    def one_run(progress: TerminalProgress) -> RunReport:
        with database.connect(demo.url) as connection:
            start.wait(timeout=60)
            return demo.run(connection, progress, today=demo.night(5))

    with demo.output.progress() as progress, ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(one_run, (progress, progress)))
    for which, report in zip(("the one", "the other"), reports, strict=True):
        demo.say(f"{which}:")
        night_pages.show_totals(demo.output, report)
    mails = figures.count_mails(demo.connection, demo.maildir)
    demo.say(
        f"Both together: {mails.marked - mails_before.marked} reminders marked as sent, "
        f"{mails.files - mails_before.files} new messages in the Maildir, {demo.portal.night.answers[200]} pushes. "
        f"Messages that are there twice: {mails.files - mails.message_ids}; pushes made twice: {demo.portal.repeated}."
    )
    demo.compare_portal()


NIGHTS: Final = (take_over, plan_and_night, outage, recovery, renewal, two_at_once)
"""In the order of the story."""
