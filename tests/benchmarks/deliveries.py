"""The cost of deliveries: pushes beside a bare loop, and mails."""

import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from socketserver import StreamRequestHandler, ThreadingTCPServer
from threading import Thread

import httpx

from tests.benchmarks.bench import Bench, populate, set_based_night
from tests.benchmarks.figures import Figure, in_turns
from tests.support.command_line import today
from tests.support.portal_answers import delay
from tests.support.portal_server import PortalServer

PUSHES_A_SECOND = MAILS_A_SECOND = 100
SHARE_OF_HTTPX = 0.9
AT_ONCE = 4

_A_PUSH_FOR_EVERYONE = b"""
    SET LOCAL session_replication_role = replica;
    UPDATE organisations SET portal = 'dynamics';
    UPDATE mentors SET review_on = 'infinity', portal_visible = false,
        dynamics_contact_id = coalesce(dynamics_contact_id, gen_random_uuid());
    INSERT INTO portal_sync_events (mentor_id, visible) SELECT id, false FROM mentors;
"""


def run_pushes(bench: Bench) -> list[Figure]:
    """Push to a portal that answers after 20 or 200 ms, as the function and Dataverse do."""
    quick, slow = _pushes(bench, delay_ms=20), _pushes(bench, delay_ms=200)
    rates, ratios = [ours for ours, _ in quick], [ours / theirs for ours, theirs in slow]
    bare = f"{max(theirs for _, theirs in quick):,.0f} pushes/s with bare httpx"
    return [
        Figure(name="pushes, 20 ms", rounds=rates, unit="pushes/s", at_least=PUSHES_A_SECOND, notes=bare),
        Figure(name="pushes, 200 ms", rounds=ratios, unit="× the speed of bare httpx", at_least=SHARE_OF_HTTPX),
    ]


def _pushes(bench: Bench, *, delay_ms: int) -> list[tuple[float, float]]:
    """Return the pushes per second of certjob and of bare httpx in each round."""
    number = max(bench.pushes * AT_ONCE * 5 // delay_ms // 2, 10)  # five seconds of answers: a rate, not a start
    bench.say(f"{number} pushes, {delay_ms} ms")
    with (
        bench.copy(name="pushes") as template,
        PortalServer(default=delay(delay_ms / 1000)) as portal,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other_process,
    ):
        with bench.connect(template) as connection:
            populate(connection, number)
            connection.execute(_A_PUSH_FOR_EVERYONE)
            connection.execute("VACUUM ANALYZE")
        settings = portal.settings
        contacts = [str(uuid.uuid4()) for _ in range(number)]
        return [
            in_turns(
                lambda: _deliver(bench, template, number, settings),
                lambda: number / other_process.submit(bare_pushes, portal.url, portal.key, contacts).result(),
                number=each,
            )
            for each in range(bench.rounds)
        ]


def bare_pushes(url: str, key: str, contacts: Sequence[str]) -> float:
    """Make the same calls with httpx only, and return the seconds."""

    def push(contacts: Sequence[str]) -> None:
        with httpx.Client(timeout=30, trust_env=False, headers={"Authorization": f"Bearer {key}"}) as client:
            for contact in contacts:
                wish = {"contact_id": contact, "visible": False, "visible_until": None}
                client.post(url, json=wish, headers={"Idempotency-Key": contact}).raise_for_status()

    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(push, [contacts[first::AT_ONCE] for first in range(AT_ONCE)]))
    return time.perf_counter() - began


def _deliver(bench: Bench, template: str, number: int, settings: Mapping[str, str]) -> float:
    """Deliver everything in a copy of a database; return the number per second. Raises RuntimeError if some is left."""
    with bench.copy(template) as name:
        done = bench.certjob("deliver", "--json", name=name, settings=settings).document
    if done["portal"]["delivered"] + done["reminders"]["sent"] != number:
        raise RuntimeError(str(done))
    return number / float(done["duration_seconds"])


class MailSink(StreamRequestHandler):
    """Accepts every message. It is faster than a real mail server."""

    def handle(self) -> None:
        """Answer the commands of one connection."""
        self.wfile.write(b"220 sink\r\n")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            self.wfile.write({b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}.get(verb, b"250 ok\r\n"))
            if verb == b"DATA":
                while self.rfile.readline() != b".\r\n":
                    pass
                self.wfile.write(b"250 taken\r\n")


def run_mails(bench: Bench) -> list[Figure]:
    """Send mails one after the other, each with a durable commit before the next."""
    number = bench.pushes // 2
    bench.say(f"{number} mails")
    with ThreadingTCPServer(("127.0.0.1", 0), MailSink) as server, bench.copy(name="mails") as template:
        Thread(target=server.serve_forever, daemon=True).start()
        with bench.connect(template) as connection:
            populate(connection, 20 * number)
            set_based_night(connection, today())
            connection.execute("UPDATE portal_sync_events SET status = 'delivered'")
            kept = f"SELECT id FROM cert_notification_log ORDER BY id LIMIT {number}"
            connection.execute(f"DELETE FROM cert_notification_log WHERE id NOT IN ({kept})".encode())
            connection.execute("VACUUM ANALYZE")
        url = f"smtp://127.0.0.1:{server.server_address[1]}"
        settings = {"CERTJOB_NOTIFY_URL": url, "CERTJOB_MAIL_FROM": "post@example.org"}
        rates = [_deliver(bench, template, number, settings) for _ in range(bench.rounds)]
        server.shutdown()
    return [Figure(name="mails, a durable commit each", rounds=rates, unit="mails/s", at_least=MAILS_A_SECOND)]
