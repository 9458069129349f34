"""What deliveries cost beside the bare loop: pushes, mails, and several processes on one backlog."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from certjob.database import Connection
from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import PYTHON, Finished, certjob, python, start
from tests.benchmarks.figures import Bar, Figure, Ratio, in_turns, paired, per_second, seconds
from tests.benchmarks.population import run_script, set_based_night, today
from tests.conftest import installed_command

ROOT = Path(__file__).parent.parent.parent
SPEED_BAR = 0.85
SLOW_PORTAL_BAR = 0.9
LEAST_PUSHES_A_SECOND = 100

_ALL_WITH_PORTAL = """
    ALTER TABLE organisations DISABLE TRIGGER USER;
    ALTER TABLE mentors DISABLE TRIGGER USER;
    UPDATE organisations SET portal = 'dynamics';
    UPDATE mentors SET review_on = 'infinity', portal_visible = false,
        dynamics_contact_id = coalesce(dynamics_contact_id, gen_random_uuid());
    INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors;
    ALTER TABLE mentors ENABLE TRIGGER USER;
    ALTER TABLE organisations ENABLE TRIGGER USER;
"""

_BARE_PUSHES = """
import json, sys, threading, time, uuid
import httpx
url, threads, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
contacts = iter([str(uuid.uuid4()) for _ in range(number)])
lock = threading.Lock()
def work():
    with httpx.Client(timeout=30, trust_env=False) as client:
        while True:
            with lock:
                contact = next(contacts, None)
            if contact is None:
                return
            headers = {"Authorization": "Bearer key", "Idempotency-Key": contact}
            answer = client.post(url, json={"contact_id": contact, "visible": False}, headers=headers)
            assert answer.json()["contact_id"] == contact
began = time.perf_counter()
workers = [threading.Thread(target=work) for _ in range(threads)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(json.dumps({"seconds": time.perf_counter() - began}))
"""

_BARE_MAILS = """
import json, smtplib, sys, time
from email.message import EmailMessage
import psycopg
host, port, url = "127.0.0.1", int(sys.argv[1]), sys.argv[2]
connection = psycopg.connect(url, autocommit=True)
rows = connection.execute(
    "SELECT l.id, m.email, m.full_name FROM cert_notification_log AS l JOIN mentors AS m ON m.id = l.mentor_id"
    " WHERE l.status = 'pending' ORDER BY l.id"
).fetchall()
began = time.perf_counter()
server = smtplib.SMTP(host, port, timeout=30)
for row_id, address, name in rows:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "post@example.org", address, "Your certificate expires"
    message.set_content(f"Dear {name},\\n" + "your certificate expires soon. " * 20)
    message.add_alternative(f"<p>Dear {name},</p>" + "<p>your certificate expires soon.</p>" * 20, subtype="html")
    server.send_message(message)
    connection.execute("UPDATE cert_notification_log SET status = 'sent', sent_at = now() WHERE id = %s", (row_id,))
took = time.perf_counter() - began
server.quit()
print(json.dumps({"seconds": took, "sent": len(rows)}))
"""


@contextmanager
def helper(module: str, *arguments: str) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """A server of the bench in a process of its own; yields its port, and the process."""
    command = [str(PYTHON), "-m", f"tests.benchmarks.{module}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield int(process.stdout.readline()), process
        if not process.stdin.closed:
            process.stdin.close()
            process.stdout.read()


@contextmanager
def with_events(bench: Bench, number: int) -> Iterator[str]:
    """A database with so many events that are due, and nobody who is to be reviewed."""
    with bench.server.fresh("bench_events") as name:
        with bench.server.connect(name) as connection:
            run_script(connection, "population.sql", mentors=number, today=today())
            connection.execute(_ALL_WITH_PORTAL.encode())
            connection.execute("VACUUM ANALYZE")
        yield name


def settings(port: int, concurrency: int) -> dict[str, str]:
    """A portal on loopback, at any rate."""
    return {
        "CERTJOB_PORTAL_URL": f"http://127.0.0.1:{port}/",
        "CERTJOB_PORTAL_KEY": "key",
        "CERTJOB_PORTAL_CONCURRENCY": str(concurrency),
        "CERTJOB_PORTAL_RATE": "0",
    }


def run_pushes(bench: Bench) -> list[Figure]:
    """Answers after 20 and 200 ms, one, four and sixteen at once."""
    return [
        _pushes(bench, delay_ms=delay_ms, concurrency=concurrency)
        for delay_ms in (20, 200)
        for concurrency in (1, 4, 16)
    ]


def _pushes(bench: Bench, *, delay_ms: int, concurrency: int) -> Figure:
    number = max(bench.pushes * concurrency * 5 // delay_ms // 20, 10)
    bench.say(f"{number} pushes, {delay_ms} ms, {concurrency} at once")
    with helper("answering", str(delay_ms)) as (port, _), with_events(bench, number) as template:

        def ours() -> float:
            with bench.server.copy(template) as name:
                url = bench.server.url(name)
                done = certjob("deliver", "--json", database_url=url, settings=settings(port, concurrency)).document
            if done["portal"]["delivered"] != number:
                raise RuntimeError(str(done))
            return float(done["duration_seconds"])

        def bare() -> float:
            url = f"http://127.0.0.1:{port}/"
            return float(python(_BARE_PUSHES, url, str(concurrency), str(number)).document["seconds"])

        ratio = in_turns(ours, bare, rounds=bench.rounds, more_is_better=True)
    limit = concurrency * 1000 / delay_ms
    speed = number / ratio.ours
    missed = "; MISSED 100/s" if (delay_ms, concurrency) == (20, 4) and speed < LEAST_PUSHES_A_SECOND else ""
    return Figure(
        part="pushes",
        name=f"{delay_ms} ms answers, {concurrency} at once",
        ours=per_second(number, ratio.ours, "pushes"),
        reference=f"{per_second(number, ratio.reference, 'pushes')}, bare httpx",
        ratio=ratio,
        bar=(Bar.AT_LEAST, SLOW_PORTAL_BAR) if delay_ms == 200 else None,
        notes=f"{speed / limit:.0%} of {limit:,.0f}/s, the limit{missed}",
    )


def run_procrastinate(bench: Bench) -> list[Figure]:
    """The same pushes as jobs of Procrastinate, which is installed for it into a folder of the bench."""
    folder = bench.folder / "procrastinate"
    bench.say("installing procrastinate")
    install = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
        str(folder),
        "procrastinate",
    ]
    installed = subprocess.run([str(PYTHON), *install], capture_output=True, text=True, check=False)
    name = f"{bench.pushes:,} pushes, 0 ms answers, 4 at once"
    if installed.returncode:
        return [Figure(part="procrastinate", name=name, ours="", notes="procrastinate could not be installed")]
    with helper("answering", "0") as (port, _), with_events(bench, bench.pushes) as template:

        def ours() -> float:
            with bench.server.copy(template) as copy:
                url = bench.server.url(copy)
                done = certjob("deliver", "--json", database_url=url, settings=settings(port, 4)).document
            if done["portal"]["delivered"] != bench.pushes:
                raise RuntimeError(str(done))
            return float(done["duration_seconds"])

        def theirs() -> float:
            with bench.server.fresh("bench_procrastinate") as fresh:
                arguments = [str(folder), bench.server.url(fresh), f"http://127.0.0.1:{port}/", str(bench.pushes), "4"]
                worker = Path(__file__).with_name("procrastinate_worker.py")
                finished = start([PYTHON, worker, *arguments]).finish()
            if finished.exit_code:
                raise RuntimeError(finished.stderr)
            return float(finished.document["seconds"])

        ratio = in_turns(ours, theirs, rounds=bench.rounds, more_is_better=True)
    return [
        Figure(
            part="procrastinate",
            name=name,
            ours=per_second(bench.pushes, ratio.ours, "pushes"),
            reference=f"{per_second(bench.pushes, ratio.reference, 'pushes')}, its worker",
            ratio=ratio,
            bar=(Bar.AT_LEAST, 3.0),
        )
    ]


def run_mails(bench: Bench) -> list[Figure]:
    """One message after the other, each settled by a durable commit before the next."""
    number = bench.pushes // 2
    bench.say(f"{number} mails")
    with helper("mail_sink") as (port, _), bench.server.fresh("bench_mails") as template:
        with bench.server.connect(template) as connection:
            _queue_reminders(connection, number)

        def ours() -> float:
            mail = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{port}", "CERTJOB_MAIL_FROM": "post@example.org"}
            with bench.server.copy(template) as name:
                done = certjob("deliver", "--json", database_url=bench.server.url(name), settings=mail).document
            if done["reminders"]["sent"] != number:
                raise RuntimeError(str(done))
            return float(done["duration_seconds"])

        def bare() -> float:
            with bench.server.copy(template) as name:
                done = python(_BARE_MAILS, str(port), bench.server.url(name)).document
            if done["sent"] != number:
                raise RuntimeError(str(done))
            return float(done["seconds"])

        ratio = in_turns(ours, bare, rounds=bench.rounds, more_is_better=True)
    return [
        Figure(
            part="mails",
            name="one durable commit each",
            ours=per_second(number, ratio.ours, "mails"),
            reference=f"{per_second(number, ratio.reference, 'mails')}, smtplib and an UPDATE",
            ratio=ratio,
            bar=(Bar.AT_LEAST, SPEED_BAR),
        )
    ]


def _queue_reminders(connection: Connection, number: int) -> None:
    run_script(connection, "population.sql", mentors=20 * number, today=today())
    set_based_night(connection)
    connection.execute("UPDATE portal_sync_events SET status = 'delivered'")
    kept = "SELECT id FROM cert_notification_log ORDER BY id LIMIT %s"
    connection.execute(f"DELETE FROM cert_notification_log WHERE id NOT IN ({kept})".encode(), (number,))
    connection.execute("VACUUM ANALYZE")


def run_together(bench: Bench) -> list[Figure]:
    """One, two and four nights at once on one backlog of slow pushes: the speed-up, and no push twice."""
    number = bench.pushes // 2
    times: dict[int, list[float]] = {processes: [] for processes in (1, 2, 4)}
    with helper("answering", "200") as (port, server), with_events(bench, number) as template:
        for turn in range(bench.rounds):
            for processes in times if turn % 2 == 0 else reversed(times):
                bench.say(f"{number} pushes of 200 ms, {processes} process(es)")
                with bench.server.copy(template) as name:
                    times[processes].append(_together(bench, name, processes, port=port, number=number))
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.close()
        calls = int(server.stdout.readline())
    expected = number * len(times) * bench.rounds
    if calls != expected:
        message = f"{expected} calls were to be made, {calls} were"
        raise RuntimeError(message)
    return [
        _speed_up(paired(times[processes], times[1], more_is_better=True), processes, bar=bar)
        for processes, bar in ((2, 1.8), (4, 3.4))
    ]


def _together(bench: Bench, name: str, processes: int, *, port: int, number: int) -> float:
    """Seconds from the first one's beginning to the last one's end, as their lines in job_runs have it."""
    url = bench.server.url(name)
    command: list[str | Path] = [installed_command(), "run", "--json"]
    started = [start(command, database_url=url, settings=settings(port, 4)) for _ in range(processes)]
    nights: list[Finished] = [night.finish() for night in started]
    delivered = sum(night.document["portal"]["delivered"] for night in nights)
    if delivered != number:
        message = f"{number} pushes were to be made, {delivered} were: {[night.document for night in nights]}"
        raise RuntimeError(message)
    with bench.server.connect(name) as connection:
        row = connection.execute(
            "SELECT extract(epoch FROM max(finished_at) - min(started_at))::float8 FROM job_runs"
        ).fetchone()
    assert row is not None
    return float(row[0])


def _speed_up(ratio: Ratio, processes: int, *, bar: float) -> Figure:
    return Figure(
        part="together",
        name=f"{processes} processes, 200 ms answers",
        ours=seconds(ratio.ours),
        reference=f"{seconds(ratio.reference)}, one process",
        ratio=ratio,
        bar=(Bar.AT_LEAST, bar),
        notes="every push made once",
    )
