"""What deliveries cost: pushes beside a bare loop and beside Procrastinate, and mails."""

import statistics
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from certjob.database import Connection
from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import PYTHON, certjob, python, start
from tests.benchmarks.figures import Bar, Figure, Limit, in_turns, per_second
from tests.benchmarks.population import run_script, set_based_night, today

ROOT = Path(__file__).parent.parent.parent
SPEED_BAR = 0.9
"""Of a bare loop, where a portal takes 200 ms for each answer."""
PUSHES_BAR = 100
"""A second, four at once, where it takes 20 ms."""
MAILS_BAR = 100
PROCRASTINATE_BAR = 3.0
AT_ONCE, AT_ONCE_MS = 4, 0

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
def with_events(bench: Bench, number: int, *, name: str = "bench_events") -> Iterator[str]:
    """A database with so many events that are due, and nobody who is to be reviewed."""
    with bench.server.fresh(name):
        with bench.server.connect(name) as connection:
            run_script(connection, "population.sql", mentors=number, today=today())
            connection.execute(_ALL_WITH_PORTAL.encode())
            connection.execute("VACUUM ANALYZE")
        yield name


def deliver(
    bench: Bench,
    template: str,
    number: int,
    *,
    settings: Mapping[str, str],
    what: tuple[str, str] = ("portal", "delivered"),
) -> float:
    """Deliver what is queued in a copy of a database; return the seconds. Raises RuntimeError if not all arrived."""
    with bench.server.copy(template) as name:
        done = certjob("deliver", "--json", database_url=bench.server.url(name), settings=settings).document
    if done[what[0]][what[1]] != number:
        raise RuntimeError(str(done))
    return float(done["duration_seconds"])


def portal_settings(port: int, concurrency: int) -> dict[str, str]:
    """A portal on loopback, at any rate."""
    return {
        "CERTJOB_PORTAL_URL": f"http://127.0.0.1:{port}/",
        "CERTJOB_PORTAL_KEY": "key",
        "CERTJOB_PORTAL_CONCURRENCY": str(concurrency),
        "CERTJOB_PORTAL_RATE": "0",
    }


def run_pushes(bench: Bench) -> list[Figure]:
    """Answers after 20 and 200 ms, as the function and Dataverse give them; four at once is the setting's default."""
    return [
        _pushes(bench, delay_ms=20, concurrency=4),
        _pushes(bench, delay_ms=200, concurrency=4),
        _pushes(bench, delay_ms=200, concurrency=16),
    ]


def _pushes(bench: Bench, *, delay_ms: int, concurrency: int) -> Figure:
    number = max(bench.pushes * concurrency * 5 // delay_ms // 20, 10)
    bench.say(f"{number} pushes, {delay_ms} ms, {concurrency} at once")
    with helper("answering", str(delay_ms)) as (port, _), with_events(bench, number) as template:

        def bare() -> float:
            url = f"http://127.0.0.1:{port}/"
            return float(python(_BARE_PUSHES, url, str(concurrency), str(number)).document["seconds"])

        ratio = in_turns(
            lambda: deliver(bench, template, number, settings=portal_settings(port, concurrency)),
            bare,
            rounds=bench.rounds,
            more_is_better=True,
        )
    possible = concurrency * 1000 / delay_ms
    speed = number / ratio.ours
    return Figure(
        part="pushes",
        name=f"{delay_ms} ms answers, {concurrency} at once",
        ours=per_second(number, ratio.ours, "pushes"),
        reference=f"{per_second(number, ratio.reference, 'pushes')}, bare httpx",
        ratio=ratio,
        bar=(Bar.AT_LEAST, SPEED_BAR) if delay_ms == 200 else None,
        limits=[Limit(value=speed, unit="pushes/s", bar=(Bar.AT_LEAST, PUSHES_BAR))] if delay_ms == 20 else [],
        notes=f"{speed / possible:.0%} of {possible:,.0f}/s, the limit",
    )


def run_procrastinate(bench: Bench) -> list[Figure]:
    """The same pushes as jobs of Procrastinate, which is installed for it into a folder of the bench."""
    folder = bench.folder / "procrastinate"
    bench.say("installing procrastinate")
    words = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target", str(folder), "procrastinate")
    installed = subprocess.run([str(PYTHON), *words], capture_output=True, text=True, check=False)
    name = f"{bench.pushes:,} pushes, {AT_ONCE_MS} ms answers, {AT_ONCE} at once"
    if installed.returncode:
        return [Figure(part="procrastinate", name=name, ours="", notes="procrastinate could not be installed")]
    with helper("answering", str(AT_ONCE_MS)) as (port, _), with_events(bench, bench.pushes) as template:

        def theirs() -> float:
            with bench.server.fresh("bench_procrastinate") as fresh:
                url, portal = bench.server.url(fresh), f"http://127.0.0.1:{port}/"
                worker = Path(__file__).with_name("procrastinate_worker.py")
                words: list[str | Path] = [PYTHON, worker, str(folder), url, portal, str(bench.pushes), str(AT_ONCE)]
                finished = start(words).finish()
            if finished.exit_code:
                raise RuntimeError(finished.stderr)
            return float(finished.document["seconds"])

        ratio = in_turns(
            lambda: deliver(bench, template, bench.pushes, settings=portal_settings(port, AT_ONCE)),
            theirs,
            rounds=bench.rounds,
            more_is_better=True,
        )
    return [
        Figure(
            part="procrastinate",
            name=name,
            ours=per_second(bench.pushes, ratio.ours, "pushes"),
            reference=f"{per_second(bench.pushes, ratio.reference, 'pushes')}, its worker",
            ratio=ratio,
            bar=(Bar.AT_LEAST, PROCRASTINATE_BAR),
        )
    ]


def run_mails(bench: Bench) -> list[Figure]:
    """One message after the other, each settled by a durable commit before the next."""
    number = bench.pushes // 2
    with helper("mail_sink") as (port, _), bench.server.fresh("bench_mails") as template:
        with bench.server.connect(template) as connection:
            _queue_reminders(connection, number)
        mail = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{port}", "CERTJOB_MAIL_FROM": "post@example.org"}
        took = []
        for _ in range(bench.rounds):
            bench.say(f"{number} mails")
            took.append(deliver(bench, template, number, settings=mail, what=("reminders", "sent")))
    speed = number / statistics.median(took)
    return [
        Figure(
            part="mails",
            name="one durable commit each",
            ours=f"{speed:,.0f} mails/s",
            limits=[Limit(value=speed, unit="mails/s", bar=(Bar.AT_LEAST, MAILS_BAR))],
            detail={"ours_seconds": took},
        )
    ]


def _queue_reminders(connection: Connection, number: int) -> None:
    run_script(connection, "population.sql", mentors=20 * number, today=today())
    set_based_night(connection)
    connection.execute("UPDATE portal_sync_events SET status = 'delivered'")
    kept = "SELECT id FROM cert_notification_log ORDER BY id LIMIT %s"
    connection.execute(f"DELETE FROM cert_notification_log WHERE id NOT IN ({kept})".encode(), (number,))
    connection.execute("VACUUM ANALYZE")
