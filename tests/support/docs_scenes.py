"""What has happened before each example in the documents: one scene per title sets the stage for every command.

A scene is a generator: each ``yield`` lets the next command under that title run, and says from where: a terminal, or
cron, which is none and mails what is printed.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from unittest import mock
from uuid import UUID, uuid4

from certjob.cli.demo import people as demo_people
from certjob.database import migrations
from certjob.stopping import StopFlag
from tests.support.bounces import postfix
from tests.support.command_line import SECRET
from tests.support.docs import read_section
from tests.support.docs_world import MORNING, NIGHT, View, World, cron, terminal
from tests.support.facts import TODAY
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.portal_answers import error, html
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls

NOWHERE = "127.0.0.1:1"
"""Where nobody listens."""


def to(portal: PortalServer) -> dict[str, str]:
    return {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key}


PORTAL_DOWN = {
    "CERTJOB_PORTAL_URL": f"http://{NOWHERE}/",
    "CERTJOB_PORTAL_KEY": "k",
    "CERTJOB_PORTAL_ATTEMPTS": "1",
}


def five_minutes(world: World) -> Iterator[View]:
    """The file is made by the shell, as it stands there."""
    world.forget_the_schema()
    tour = read_section("README.md", "Five minutes")
    file = tour[tour.index("    cat > people.csv") :].partition("    END\n")
    script = "\n".join(line[4:] for line in (file[0] + file[1]).splitlines())
    subprocess.run(["/bin/sh", "-c", script], cwd=world.folder, check=True)
    for _ in range(6):
        yield terminal()


def loading_files(world: World) -> Iterator[View]:
    world.facts.organisation()
    (world.folder / "march.csv").write_text(
        "organisation;member_no;full_name;kind;issued_on;expires_on\n"
        "hlf;M1003;Liv Askeland;likeperson;01.03.2026;31.02.2028\n"
        "hlf;M1004;Odd Granmo;likeperson;01.03.2026;01.03.2028\n"
        "nhf;M1005;Nora Oppsal;likeperson;01.03.2026;01.03.2028\n"
    )
    yield cron()


def one_mentor_everybody(world: World) -> Iterator[View]:
    """The demo's people after three nights, the last of which met a dead portal."""
    people = demo_people.make_people(TODAY - timedelta(days=2))
    demo_people.load_people(world.connection, people, folder=world.folder)
    for days in (2, 1):
        night(world.connection, TODAY - timedelta(days=days), portal=FlakyPortal(), channel=CollectingChannel())
    night(world.connection, TODAY, deliver=False)
    world.connection.execute(  # the one whose story is told is the first to be pushed, whatever its id
        "UPDATE portal_sync_events SET next_attempt_at = now() - interval '1 hour'"
        " WHERE mentor_id = (SELECT id FROM mentors WHERE member_no = 'H1005') AND status = 'pending'"
    )
    night(world.connection, TODAY, portal=FlakyPortal(failures=99), channel=CollectingChannel())
    for statement in (
        "UPDATE mentor_pauses SET paused_at = '2026-03-10 03:00+01'",
        "UPDATE cert_notification_log SET sent_at = '2026-03-10 03:01+01'",
        "UPDATE portal_sync_events SET wanted_at = '2026-03-10 03:00+01', next_attempt_at = '2026-03-10 03:15+01'",
        "UPDATE portal_sync_events SET delivered_at = '2026-03-09 03:00+01' WHERE status = 'delivered'",
        "UPDATE dynamics_sync_failures SET last_failed_at = '2026-03-10 03:00+01'",
    ):
        world.connection.execute(statement)
    yield cron()
    yield cron()
    yield terminal(columns=80)
    yield cron()


def before_a_run(world: World) -> Iterator[View]:
    """A function that is not deployed, a login that is refused, a coordinator who is missing."""
    hlf = world.facts.organisation()
    world.facts.organisation("lhl", portal=None)
    world.coordinator(hlf)
    mailbox = Mailbox()
    with (
        PortalServer([html(404)], key=SECRET) as portal,
        real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server,
    ):
        yield cron(
            to(portal)
            | {
                "CERTJOB_NOTIFY_URL": f"smtp://localhost:{server.port}",
                "CERTJOB_NOTIFY_USER": "post",
                "CERTJOB_NOTIFY_PASSWORD": SECRET,
                "CERTJOB_MAIL_FROM": "certjob@example.org",
                "SSL_CERT_FILE": str(CERTIFICATE),
            }
        )


def after_a_run(world: World) -> Iterator[View]:
    """Its delivery met a portal in trouble, and the next one was killed."""
    organisation = world.facts.organisation()
    world.coordinator(organisation)
    runs = (
        ("run", NIGHT, NIGHT + timedelta(seconds=58), "attention"),
        ("deliver", NIGHT + timedelta(minutes=5), None, None),
    )
    for command, started_at, finished_at, outcome in runs:
        _note_run(world, command, started_at=started_at, finished_at=finished_at, outcome=outcome)
    reasons = (("blocked", "permanent", "the portal answered 404 contact_not_found"), ("pending", "transient", "reset"))
    for number, (status, kind, reason) in enumerate(reasons):
        mentor = world.facts.mentor(organisation, member_no=f"M{1001 + number}")
        world.connection.execute(
            "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, next_attempt_at)"
            " VALUES (%s, false, %s, now(), %s)",
            (mentor, status, MORNING + timedelta(hours=3)),
        )
        world.connection.execute(
            "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, attempts, error)"
            " VALUES (%s, false, %s, 1, %s)",
            (mentor, kind, reason),
        )
        world.facts.certificate(mentor, TODAY - timedelta(days=9))
    world.connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on)"
        " VALUES (%s, 30, gen_random_uuid(), '2026-04-09')",
        (mentor,),
    )
    world.connection.execute("UPDATE mentors SET review_on = '2026-03-11'")
    new = world.facts.mentor(organisation, member_no="M1003")
    world.connection.execute("UPDATE mentors SET review_on = 'infinity' WHERE id = %s", (new,))
    yield cron()


def _note_run(
    world: World,
    command: str,
    *,
    started_at: datetime,
    finished_at: datetime | None = None,
    last_seen_at: datetime | None = None,
    outcome: str | None = None,
) -> None:
    world.connection.execute(
        "INSERT INTO job_runs (id, command, as_of, host, version, started_at, last_seen_at, finished_at, outcome)"
        " VALUES (%s, %s, %s, 'night-1', '0.1.0', %s, %s, %s, %s)",
        (
            uuid4(),
            command,
            started_at.date(),
            started_at,
            last_seen_at or finished_at or started_at + timedelta(minutes=5),
            finished_at,
            outcome,
        ),
    )


def your_own_templates(world: World) -> Iterator[View]:
    mentor = world.facts.mentor(world.facts.organisation(), member_no="M1042", locale="en")
    world.facts.certificate(mentor, TODAY + timedelta(days=7), issued_on=date(2024, 3, 18))
    yield cron({"CERTJOB_MAIL_FROM": "HLF <likeperson@hlf.example>"})


def mails_come_back(world: World) -> Iterator[View]:
    """One report of each kind."""
    mentor = world.facts.mentor(world.facts.organisation(), email="kari@example.org")
    ((log_id,),) = world.facts.rows(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, status)"
        " VALUES (%s, 7, gen_random_uuid(), '2026-03-17', 'sent') RETURNING id",
        mentor,
    )
    sent = f"<certjob-reminder-{log_id}-0@example.org>"
    reports = (
        postfix(sent, "kari@example.org"),
        postfix(sent, "kari@example.org", action="delayed"),
        postfix("<4711@shop.example>", "kari@example.org"),
        b"Hello",
    )
    (world.folder / "reports.mbox").write_bytes(
        b"".join(b"From - Tue Mar 10 08:00:07 2026\n" + each + b"\n" for each in reports)
    )
    yield terminal()


def rules(world: World) -> Iterator[View]:
    hlf = world.facts.organisation()
    world.coordinator(hlf)
    world.facts.certified_mentor(hlf, TODAY)
    world.facts.organisation("lhl", portal=None)
    world.facts.certified_mentor(hlf, TODAY + timedelta(days=75))
    for _ in range(4):
        yield terminal()


def press_ctrl_c(stop: StopFlag, _seconds: float | None = None) -> bool:
    """In place of a wait: whoever watches has seen enough."""
    stop.signal_name = "SIGINT"
    stop.set()
    return True


def portal_is_down(world: World) -> Iterator[View]:
    world.expired_mentors(7)
    yield cron(PORTAL_DOWN)
    with mock.patch.object(StopFlag, "wait", press_ctrl_c):
        yield terminal({"TERM": "xterm", "NO_COLOR": "1"})
    with PortalServer() as portal:
        yield terminal(to(portal))
    assert len(portal.visible) == 7


def key_is_wrong(world: World) -> Iterator[View]:
    world.expired_mentors(2)
    with PortalServer() as portal:
        yield cron(to(portal) | {"CERTJOB_PORTAL_KEY": "old"})


def contact_is_unknown(world: World) -> Iterator[View]:
    world.kari()
    with PortalServer(default=error(404, "contact_not_found")) as portal:
        world.night(to(portal))
    yield terminal()
    with PortalServer() as portal:
        yield terminal(to(portal))
        assert list(portal.visible.values()) == [False]


def portal_throttles(world: World) -> Iterator[View]:
    world.expired_mentors(2)
    with PortalServer(default=error(429, "throttled", retry_after="900")) as portal:
        yield cron(to(portal))


def portal_disagrees(world: World) -> Iterator[View]:
    hlf = world.facts.organisation()
    contacts = [uuid4() for _ in range(40)]
    for number, contact_id in enumerate(contacts):
        world.facts.certified_mentor(
            hlf, TODAY + timedelta(days=300), member_no=f"M{1007 + number}", contact_id=contact_id
        )
    world.types("certjob run --no-deliver", cron(at=NIGHT))
    unknown = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
    with PortalServer(visible=dict.fromkeys([*contacts[37:], unknown, uuid4()], True)) as portal:
        yield cron(to(portal))
        yield cron(to(portal))
        yield cron(to(portal))
        assert [portal.visible.get(contact_id) for contact_id in contacts] == [True] * 40
        yield cron(to(portal))


def mail_is_down(world: World) -> Iterator[View]:
    hlf = world.facts.organisation(portal=None)
    world.coordinator(hlf)
    world.facts.certified_mentor(hlf, TODAY + timedelta(days=7))
    world.types("certjob run --no-deliver", cron(at=NIGHT))
    settings = {"CERTJOB_NOTIFY_URL": f"smtp://{NOWHERE}", "CERTJOB_MAIL_FROM": "likeperson@hlf.example"}
    yield cron(settings)
    yield cron(settings)
    assert list(world.facts.rows("SELECT status FROM cert_notification_log")) == [("pending",)]


def mail_waits(world: World) -> Iterator[View]:
    """Queued by the night before the last, on a server that is down since then."""
    hlf = world.facts.organisation(portal=None)
    for _ in range(2):
        world.facts.certified_mentor(hlf, TODAY + timedelta(days=7))
    settings = {"CERTJOB_NOTIFY_URL": f"smtp://{NOWHERE}", "CERTJOB_MAIL_FROM": "likeperson@hlf.example"}
    world.types("certjob run", cron(settings, at=NIGHT))
    world.connection.execute("UPDATE cert_notification_log SET queued_at = '2026-03-08 03:10+01'")
    yield cron(settings)


def import_is_wrong(world: World) -> Iterator[View]:
    world.expired_mentors(40)
    yield cron()
    yield cron()
    yield cron()


def pause_is_refused(world: World) -> Iterator[View]:
    world.kari()
    world.connection.execute(
        "ALTER TABLE mentor_pauses ADD CONSTRAINT no_pauses_in_march CHECK (actor <> 'certjob') NOT VALID"
    )
    with PortalServer() as portal:
        yield cron(to(portal))
        yield cron(to(portal))
        world.connection.execute("ALTER TABLE mentor_pauses DROP CONSTRAINT no_pauses_in_march")
        yield cron(to(portal))


def clock_is_wrong(world: World) -> Iterator[View]:
    yield View(settings={}, machine_at=MORNING + timedelta(days=300))
    _note_run(
        world,
        "run",
        started_at=NIGHT + timedelta(days=30),
        finished_at=NIGHT + timedelta(days=30, seconds=1),
        outcome="ok",
    )
    yield cron()


def schema_is_old(world: World) -> Iterator[View]:
    """As the certjob before this one left it."""
    world.forget_the_schema()
    folder = world.folder / "earlier"
    folder.mkdir()
    *earlier, _ = migrations.migrations()
    for migration in earlier:
        if migration.path is not None:
            shutil.copy(migration.path, folder)
    migrations.migrate(world.connection, folder)
    world.connection.execute("UPDATE certjob_migrations SET applied_at = '2026-01-12 09:30+01'")
    for _ in range(3):
        yield terminal()


def database_is_away(world: World) -> Iterator[View]:
    yield cron({"CERTJOB_DATABASE_URL": f"postgresql://certjob_cron@{NOWHERE}/certjob"})


def night_goes_on(world: World) -> Iterator[View]:
    before = NIGHT - timedelta(days=1)
    _note_run(world, "run", started_at=before, finished_at=before + timedelta(seconds=9), outcome="ok")
    _note_run(world, "run", started_at=NIGHT, last_seen_at=MORNING - timedelta(seconds=30))
    yield cron()


def mentor_is_hidden(world: World) -> Iterator[View]:
    """Hidden in the night; the date was wrong, and has been corrected since."""
    world.kari()
    with PortalServer() as portal:
        world.night(to(portal))
        world.connection.execute("UPDATE certificates SET expires_on = '2027-03-09'")
        yield cron(to(portal))


def disk_is_full(world: World) -> Iterator[View]:
    mentor = world.facts.certified_mentor(world.facts.organisation(), TODAY + timedelta(days=300))
    world.connection.execute(
        "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, next_attempt_at, delivered_at)"
        " SELECT %s, true, 'delivered', t, t, t FROM generate_series(timestamptz '2021-03-10 03:10+01',"
        " '2023-02-07 03:10+01', interval '1 week') AS t",
        (mentor,),
    )
    yield cron()


SCENES: dict[str, Callable[[World], Iterator[View]]] = {
    "Five minutes": five_minutes,
    "Loading files": loading_files,
    "One mentor, everybody, the coming runs": one_mentor_everybody,
    "Before a run: check": before_a_run,
    "After a run: status": after_a_run,
    "Trying them": your_own_templates,
    "Mails that come back": mails_come_back,
    "Rules per organisation": rules,
    "The portal is down": portal_is_down,
    "The portal refuses the key": key_is_wrong,
    "The portal does not know a mentor": contact_is_unknown,
    "The portal and certjob disagree": portal_disagrees,
    "The portal asks to wait": portal_throttles,
    "Mail does not go out": mail_is_down,
    "Mail waits": mail_waits,
    "An organisation is held": import_is_wrong,
    "Somebody is never reviewed": pause_is_refused,
    "The clocks disagree": clock_is_wrong,
    "The schema is older or newer than certjob": schema_is_old,
    "The database does not answer": database_is_away,
    "A nightly run does not end": night_goes_on,
    "A mentor says: I am hidden, and should not be": mentor_is_hidden,
    "The disk is full": disk_is_full,
}
