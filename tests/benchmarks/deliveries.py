"""The cost of deliveries: pushes beside a bare loop, mails, and reading the portal."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median

from tests.benchmarks.bench import ROOT, Bench, Finished, populate, run, run_script, set_based_night
from tests.benchmarks.figures import Bar, Figure, in_turns
from tests.support.command_line import today

SPEED_BAR = 0.9
"""Of the speed of a bare loop, with answers after 200 ms."""
PUSHES_BAR = MAILS_BAR = 100
"""Per second, with answers after 20 ms."""
AT_ONCE = 4
CONTACTS, PAGES, DIFFERENT = 100_000, 20, 20
RECONCILE_BAR_SECONDS, RECONCILE_BAR_MB = 5.0, 150.0

_ALL_WITH_PORTAL = b"""
    SET LOCAL session_replication_role = replica;
    UPDATE organisations SET portal = 'dynamics';
    UPDATE mentors SET review_on = 'infinity', portal_visible = false,
        dynamics_contact_id = coalesce(dynamics_contact_id, gen_random_uuid());
    INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors;
"""
_ALL_IN_FORCE = b"""
    SET LOCAL session_replication_role = replica;
    UPDATE portal_sync_events SET status = 'delivered', delivered_at = now() - interval '1 day';
    UPDATE mentors SET portal_visible = true, review_on = current_date + 30;
    UPDATE certificates SET status = 'valid';
"""
_BARE_PUSHES = """
import json, sys, time, uuid
from concurrent.futures import ThreadPoolExecutor
import httpx
url, threads, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def work(contacts):
    with httpx.Client(timeout=30, trust_env=False) as client:
        for contact in contacts:
            headers = {"Authorization": "Bearer key", "Idempotency-Key": contact}
            wish = {"contact_id": contact, "visible": False, "visible_until": None}
            answer = client.post(url, json=wish, headers=headers)
            assert answer.json()["contact_id"] == contact
contacts = [str(uuid.uuid4()) for _ in range(number)]
began = time.perf_counter()
with ThreadPoolExecutor(threads) as pool:
    list(pool.map(work, [contacts[share::threads] for share in range(threads)]))
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


@contextmanager
def server(*arguments: str) -> Iterator[int]:
    """Run a server of ``tests.benchmarks.servers`` as a process; yield its port."""
    command = [sys.executable, "-m", "tests.benchmarks.servers", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield int(process.stdout.readline())
        process.stdin.close()


@contextmanager
def with_events(bench: Bench, number: int) -> Iterator[str]:
    """Yield the name of a database with so many due events and no due mentor."""
    with bench.copy(name="bench_events") as name:
        with bench.connect(name) as connection:
            populate(connection, number)
            connection.execute(_ALL_WITH_PORTAL)
            connection.execute("VACUUM ANALYZE")
        yield name


def deliver(bench: Bench, template: str, number: int, *, settings: Mapping[str, str]) -> float:
    """Deliver everything in a copy of a database; return the seconds. Raises RuntimeError if something is left."""
    with bench.copy(template) as name:
        done = bench.certjob("deliver", "--json", name=name, settings=settings).document
    if done["portal"]["delivered"] + done["reminders"]["sent"] != number:
        raise RuntimeError(str(done))
    return float(done["duration_seconds"])


def portal_settings(port: int) -> dict[str, str]:
    return {"CERTJOB_PORTAL_URL": f"http://127.0.0.1:{port}/", "CERTJOB_PORTAL_KEY": "key"}


def run_pushes(bench: Bench) -> list[Figure]:
    """Push to a portal that answers after 20 or 200 ms, as the function and Dataverse do."""
    return [_pushes(bench, delay_ms) for delay_ms in (20, 200)]


def _pushes(bench: Bench, delay_ms: int) -> Figure:
    number = max(bench.pushes * AT_ONCE * 5 // delay_ms // 2, 10)  # five seconds of answers: a rate, not a start
    name, possible = f"pushes, {delay_ms} ms answers, {AT_ONCE} at once", AT_ONCE * 1000 / delay_ms
    bench.say(f"{number} {name}")
    with server("portal", str(delay_ms)) as port, with_events(bench, number) as template:
        bare = [sys.executable, "-c", _BARE_PUSHES, f"http://127.0.0.1:{port}/", str(AT_ONCE), str(number)]
        ratio = in_turns(
            lambda: deliver(bench, template, number, settings=portal_settings(port)),
            lambda: float(run(bare).document["seconds"]),
            rounds=bench.rounds,
            of_speeds=True,
        )
    speed = number / median(ratio.ours)
    bars = {20: Bar(value=speed, unit="pushes/s", at_least=PUSHES_BAR), 200: ratio.bar(at_least=SPEED_BAR)}
    return Figure(
        name=name,
        ours=f"{speed:,.0f} pushes/s",
        reference=f"{number / median(ratio.reference):,.0f} pushes/s, bare httpx",
        ratio=ratio,
        bars=[bars[delay_ms]],
        notes=f"{speed / possible:.0%} of {possible:,.0f}/s, the limit",
    )


def run_mails(bench: Bench) -> list[Figure]:
    """Send mails one after the other, each with a durable commit before the next."""
    number = bench.pushes // 2
    with server("mail") as port, bench.copy(name="bench_mails") as template:
        with bench.connect(template) as connection:
            run_script(connection, "population.sql", mentors=20 * number, today=today())
            set_based_night(connection)
            connection.execute("UPDATE portal_sync_events SET status = 'delivered'")
            kept = f"SELECT id FROM cert_notification_log ORDER BY id LIMIT {number}"
            connection.execute(f"DELETE FROM cert_notification_log WHERE id NOT IN ({kept})".encode())
            connection.execute("VACUUM ANALYZE")
        bench.say(f"{number} mails, {bench.rounds} times")
        mail = {"CERTJOB_NOTIFY_URL": f"smtp://127.0.0.1:{port}", "CERTJOB_MAIL_FROM": "post@example.org"}
        speed = number / median(deliver(bench, template, number, settings=mail) for _ in range(bench.rounds))
    bar = Bar(value=speed, unit="mails/s", at_least=MAILS_BAR)
    return [Figure(name="mails, a durable commit each", ours=f"{speed:,.0f} mails/s", bars=[bar])]


def run_reconcile(bench: Bench) -> list[Figure]:
    """Reconcile 100,000 contacts, 20 of which someone has hidden by hand."""
    contacts = bench.folder / "visible.txt"
    bench.say(f"reconcile, {CONTACTS:,} contacts")
    done: list[Finished] = []
    with with_events(bench, CONTACTS) as template:
        with bench.connect(template) as connection:
            connection.execute(_ALL_IN_FORCE)
            connection.execute("VACUUM ANALYZE")
            shown = f"SELECT dynamics_contact_id::text FROM mentors ORDER BY 1 OFFSET {DIFFERENT}"
            contacts.write_text("\n".join(row[0] for row in connection.execute(shown.encode())))
        with server("portal", "0", str(contacts)) as port:
            for _ in range(bench.rounds):
                with bench.copy(template) as name:
                    done.append(bench.certjob("reconcile", "--json", name=name, settings=portal_settings(port)))
                found = done[-1].document
                if (found["read"]["pages"], found["portal"]["delivered"]) != (PAGES, DIFFERENT):
                    raise RuntimeError(str(found))
    took, peak = median(each.seconds for each in done), max(each.peak_mb for each in done)
    return [
        Figure(
            name=f"reconcile, {CONTACTS:,} contacts, {DIFFERENT} differ",
            ours=f"{took:.1f} s whole, {PAGES} reads and {DIFFERENT} pushes",
            bars=[
                Bar(value=took, unit="s", at_most=RECONCILE_BAR_SECONDS),
                Bar(value=peak, unit="MB", at_most=RECONCILE_BAR_MB),
            ],
        )
    ]
