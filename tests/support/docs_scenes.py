"""What has happened before each example in the documents: one scene per title sets the stage for every command.

A scene is a generator: each ``yield`` lets the next command under that title run, and says from where: a terminal, or
cron, which is none and mails what is printed.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from uuid import UUID, uuid4

from certjob.cli.demo import people as demo_people
from certjob.database import migrations
from tests.support.bounces import postfix
from tests.support.command_line import SECRET
from tests.support.docs import read_section
from tests.support.docs_world import MORNING, NIGHT, View, World, cron, terminal
from tests.support.facts import TODAY
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.portal_answers import error, html
from tests.support.portal_server import PortalServer
from tests.support.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls

Scene = Callable[[World], Iterator[View]]
SCENES: dict[str, Scene] = {}
"""By the title above the examples."""
NOWHERE = "127.0.0.1:1"
"""Where nobody listens."""
PORTAL_DOWN = {"CERTJOB_PORTAL_URL": f"http://{NOWHERE}/", "CERTJOB_PORTAL_KEY": "k", "CERTJOB_PORTAL_ATTEMPTS": "1"}
MAIL_DOWN = {"CERTJOB_NOTIFY_URL": f"smtp://{NOWHERE}", "CERTJOB_MAIL_FROM": "likeperson@hlf.example"}


def scene(title: str) -> Callable[[Scene], Scene]:
    return lambda play: SCENES.setdefault(title, play)


def to(portal: PortalServer, **settings: str) -> dict[str, str]:
    return {"CERTJOB_PORTAL_URL": portal.url, "CERTJOB_PORTAL_KEY": portal.key} | settings


@scene("Five minutes")
def five_minutes(world: World) -> Iterator[View]:
    """The settings and the file are made by the shell, as they stand there; only the database is the world's."""
    world.forget_the_schema()
    before = read_section("README.md", "Five minutes").partition("    $ ")[0]
    script = "\n".join([*(line[4:] for line in before.splitlines() if line.startswith("    ")), "env"])
    command, home = ["/bin/sh", "-ec", script], {"HOME": str(world.folder), "PATH": "/usr/bin:/bin"}
    made = subprocess.run(command, env=home, cwd=world.folder, stdout=subprocess.PIPE, text=True, check=True).stdout
    settings = dict(line.split("=", 1) for line in made.splitlines())
    assert settings["PATH"].startswith(f"{world.folder}/.venv/bin:")
    assert settings["CERTJOB_DATABASE_URL"] == "embedded"
    yield from [terminal({"CERTJOB_NOTIFY_URL": settings["CERTJOB_NOTIFY_URL"]})] * 6


@scene("Loading files")
def loading_files(world: World) -> Iterator[View]:
    world.facts.organisation()
    (world.folder / "march.csv").write_text(
        "organisation;member_no;full_name;kind;issued_on;expires_on\n"
        "hlf;M1003;Liv Askeland;likeperson;01.03.2026;31.02.2028\n"
        "hlf;M1004;Odd Granmo;likeperson;01.03.2026;01.03.2028\n"
        "nhf;M1005;Nora Oppsal;likeperson;01.03.2026;01.03.2028\n"
    )
    yield cron()


@scene("One mentor, everybody, the coming runs")
def one_mentor_everybody(world: World) -> Iterator[View]:
    """The demo's people after three nights, the last of which met a dead portal."""
    people = demo_people.make_people(TODAY - timedelta(days=2))
    demo_people.load_people(world.connection, people, folder=world.folder)
    for days in (2, 1):
        night(world.connection, TODAY - timedelta(days=days), portal=FlakyPortal(), channel=CollectingChannel())
    night(world.connection, TODAY, deliver=False)
    world.execute(  # the one whose story is told is the first to be pushed, whatever its id
        "UPDATE portal_sync_events SET next_attempt_at = now() - interval '1 hour'"
        " WHERE mentor_id = (SELECT id FROM mentors WHERE member_no = 'H1005') AND status = 'pending'"
    )
    night(world.connection, TODAY, portal=FlakyPortal(failures=99), channel=CollectingChannel())
    world.execute("""
        UPDATE mentor_pauses SET paused_at = '2026-03-10 03:00+01';
        UPDATE cert_notification_log SET sent_at = '2026-03-10 03:01+01';
        UPDATE portal_sync_events SET wanted_at = '2026-03-10 03:00+01', next_attempt_at = '2026-03-10 03:15+01';
        UPDATE portal_sync_events SET delivered_at = '2026-03-09 03:00+01' WHERE status = 'delivered';
        UPDATE dynamics_sync_failures SET last_failed_at = '2026-03-10 03:00+01';
    """)
    yield from (cron(), cron(), terminal(columns=80))


@scene("Before a run: check")
def before_a_run(world: World) -> Iterator[View]:
    """A function that is not deployed, a login that is refused, a coordinator who is missing."""
    world.organisation()
    world.facts.organisation("lhl", portal=None)
    mailbox = Mailbox()
    with (
        PortalServer([html(404)], key=SECRET) as portal,
        real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server,
    ):
        login = {"CERTJOB_NOTIFY_USER": "post", "CERTJOB_NOTIFY_PASSWORD": SECRET, "SSL_CERT_FILE": str(CERTIFICATE)}
        mail = {"CERTJOB_NOTIFY_URL": f"smtp://localhost:{server.port}", "CERTJOB_MAIL_FROM": "certjob@example.org"}
        yield cron(to(portal) | mail | login)


def note_run(world: World, at: datetime, *, seconds: float | None = None, **row: object) -> None:
    """A run of that time; without ``seconds`` it has not ended, and was seen last five minutes later."""
    ended_at = None if seconds is None else at + timedelta(seconds=seconds)
    row = {"last_seen_at": at + timedelta(minutes=5), "command": "run", "outcome": ended_at and "ok"} | row
    row |= {"as_of": at.date(), "host": "night-1", "version": "0.1.0", "started_at": at, "finished_at": ended_at}
    world.facts.insert("job_runs", id=uuid4(), **row)


@scene("After a run: status")
def after_a_run(world: World) -> Iterator[View]:
    """Its delivery met a portal in trouble, and the next one was killed."""
    note_run(world, NIGHT, seconds=58, outcome="attention")
    note_run(world, NIGHT + timedelta(minutes=5), command="deliver")
    unknown, waiting, bare = (world.facts.mentor(organisation) for organisation in [world.organisation()] * 3)
    for mentor_id, status, kind, said in (
        (unknown, "blocked", "permanent", "the portal answered 404 contact_not_found"),
        (waiting, "pending", "transient", "reset"),
    ):
        world.facts.certificate(mentor_id, TODAY - timedelta(days=9))
        failure = {"mentor_id": mentor_id, "visible": False, "kind": kind, "attempts": 1, "error": said}
        world.facts.insert("dynamics_sync_failures", **failure)
        event = {"mentor_id": mentor_id, "visible": False, "status": status}
        world.facts.insert("portal_sync_events", next_attempt_at=MORNING + timedelta(hours=3), **event)
    reminder = {"mentor_id": waiting, "threshold_days": 30, "cert_id": uuid4(), "expires_on": date(2026, 4, 9)}
    world.facts.insert("cert_notification_log", **reminder)
    world.execute("UPDATE mentors SET review_on = '2026-03-11'")
    world.execute("UPDATE mentors SET review_on = 'infinity' WHERE id = %s", (bare,))
    yield cron()


@scene("Trying them")
def your_own_templates(world: World) -> Iterator[View]:
    mentor = world.facts.mentor(world.facts.organisation(), member_no="M1042", locale="en")
    world.facts.certificate(mentor, TODAY + timedelta(days=7), issued_on=date(2024, 3, 18))
    yield cron({"CERTJOB_MAIL_FROM": "HLF <likeperson@hlf.example>"})


@scene("Mails that come back")
def mails_come_back(world: World) -> Iterator[View]:
    """One report of each kind."""
    mentor = world.facts.mentor(world.facts.organisation(), email="kari@example.org")
    reminder = {"mentor_id": mentor, "threshold_days": 7, "cert_id": uuid4(), "expires_on": date(2026, 3, 17)}
    log_id = world.facts.insert("cert_notification_log", status="sent", **reminder)
    sent = f"<certjob-reminder-{log_id}-0@example.org>"
    reports = [postfix(sent, "kari@example.org"), postfix(sent, "kari@example.org", action="delayed")]
    reports += [postfix("<4711@shop.example>", "kari@example.org"), b"Hello"]
    mbox = b"".join(b"From - Tue Mar 10 08:00:07 2026\n" + each + b"\n" for each in reports)
    (world.folder / "reports.mbox").write_bytes(mbox)
    yield terminal()


@scene("Rules per organisation")
def rules(world: World) -> Iterator[View]:
    hlf = world.organisation()
    world.facts.certified_mentor(hlf, TODAY)
    world.facts.organisation("lhl", portal=None)
    world.facts.certified_mentor(hlf, TODAY + timedelta(days=75))
    yield from [terminal()] * 4


@scene("The portal is down")
def portal_is_down(world: World) -> Iterator[View]:
    world.expired_mentors(7)
    yield cron(PORTAL_DOWN)
    yield terminal()
    with PortalServer() as portal:
        yield terminal(to(portal))
    assert len(portal.visible) == 7


@scene("The portal refuses the key")
def key_is_wrong(world: World) -> Iterator[View]:
    world.expired_mentors(2)
    with PortalServer() as portal:
        yield cron(to(portal, CERTJOB_PORTAL_KEY="old"))


@scene("The portal does not know a mentor")
def contact_is_unknown(world: World) -> Iterator[View]:
    world.kari()
    with PortalServer([error(404, "contact_not_found")]) as portal:
        world.night(**to(portal))
        yield terminal()
        yield terminal(to(portal))
        assert list(portal.visible.values()) == [False]


@scene("The portal asks to wait")
def portal_throttles(world: World) -> Iterator[View]:
    world.expired_mentors(2)
    with PortalServer(default=error(429, "throttled", retry_after="900")) as portal:
        yield cron(to(portal))


@scene("The portal and certjob disagree")
def portal_disagrees(world: World) -> Iterator[View]:
    hlf, contacts = world.facts.organisation(), [uuid4() for _ in range(40)]
    for number, contact_id in enumerate(contacts, start=1007):
        who = {"member_no": f"M{number}", "contact_id": contact_id}
        world.facts.certified_mentor(hlf, TODAY + timedelta(days=300), **who)
    night(world.connection, TODAY, deliver=False)
    unknown = UUID("6f9619ff-8b86-4d01-b42d-00cf4fc964ff")
    with PortalServer(visible=dict.fromkeys([*contacts[37:], unknown, uuid4()], True)) as portal:
        yield from [cron(to(portal))] * 3
        assert [portal.visible.get(contact_id) for contact_id in contacts] == [True] * 40
        yield cron(to(portal))


@scene("Mail does not go out")
def mail_is_down(world: World) -> Iterator[View]:
    world.facts.certified_mentor(world.organisation(portal=None), TODAY + timedelta(days=7))
    night(world.connection, TODAY, deliver=False)
    yield from [cron(MAIL_DOWN)] * 2
    assert list(world.facts.rows("SELECT status FROM cert_notification_log")) == [("pending",)]


@scene("Mail waits")
def mail_waits(world: World) -> Iterator[View]:
    """Queued by the night before the last, on a server that is down since then."""
    hlf = world.facts.organisation(portal=None)
    for _ in range(2):
        world.facts.certified_mentor(hlf, TODAY + timedelta(days=7))
    world.night(**MAIL_DOWN)
    world.execute("UPDATE cert_notification_log SET queued_at = '2026-03-08 03:10+01'")
    yield cron(MAIL_DOWN)


@scene("An organisation is held")
def import_is_wrong(world: World) -> Iterator[View]:
    world.expired_mentors(40)
    yield from [cron()] * 3


@scene("Somebody is never reviewed")
def pause_is_refused(world: World) -> Iterator[View]:
    world.kari()
    world.execute("ALTER TABLE mentor_pauses ADD CONSTRAINT no_pauses_in_march CHECK (actor <> 'certjob') NOT VALID")
    with PortalServer() as portal:
        yield from [cron(to(portal))] * 2
        world.execute("ALTER TABLE mentor_pauses DROP CONSTRAINT no_pauses_in_march")
        yield cron(to(portal))


@scene("The clocks disagree")
def clock_is_wrong(world: World) -> Iterator[View]:
    yield View(machine_at=MORNING + timedelta(days=300))
    note_run(world, NIGHT + timedelta(days=30), seconds=1)
    yield cron()


@scene("The schema is older or newer than certjob")
def schema_is_old(world: World) -> Iterator[View]:
    """As the certjob before this one left it."""
    world.forget_the_schema()
    folder = world.folder / "earlier"
    folder.mkdir()
    *earlier, _ = (path for path in (migration.path for migration in migrations.migrations()) if path is not None)
    for path in earlier:
        shutil.copy(path, folder)
    migrations.migrate(world.connection, folder)
    world.execute("UPDATE certjob_migrations SET applied_at = '2026-01-12 09:30+01'")
    yield from [terminal()] * 3


@scene("The database does not answer")
def database_is_away(_world: World) -> Iterator[View]:
    yield cron({"CERTJOB_DATABASE_URL": f"postgresql://certjob_cron@{NOWHERE}/certjob"})


@scene("A nightly run does not end")
def night_goes_on(world: World) -> Iterator[View]:
    note_run(world, NIGHT - timedelta(days=1), seconds=9)
    note_run(world, NIGHT, last_seen_at=MORNING - timedelta(seconds=30))
    yield cron()


@scene("A mentor says: I am hidden, and should not be")
def mentor_is_hidden(world: World) -> Iterator[View]:
    """Hidden in the night; the date was wrong, and has been corrected since."""
    world.kari()
    with PortalServer() as portal:
        world.night(**to(portal))
        world.execute("UPDATE certificates SET expires_on = '2027-03-09'")
        yield cron(to(portal))


@scene("The disk is full")
def disk_is_full(world: World) -> Iterator[View]:
    world.facts.certified_mentor(world.facts.organisation(), TODAY + timedelta(days=300))
    world.execute("""
        INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, next_attempt_at, delivered_at)
        SELECT id, true, 'delivered', t, t, t FROM mentors,
            generate_series(timestamptz '2021-03-10 03:10+01', '2023-02-07 03:10+01', interval '1 week') AS t
    """)
    yield cron()
