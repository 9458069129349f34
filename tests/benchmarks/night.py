"""What a night costs: nothing when nothing is due, and little more than bare SQL for whoever is."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import zip_longest

from certjob.database import Connection
from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import Finished, certjob
from tests.benchmarks.figures import Bar, Figure, Limit, in_turns, paired, seconds
from tests.benchmarks.population import populated, set_based_night

MEMORY_BAR_MB = 120
"""A night's memory, however many are due."""
NOTHING_DUE_BAR_SECONDS = 1.0
FLAT_BAR = 1.2
SOME_DUE_BAR, ALL_DUE_BAR = 1.0, 2.0

_STATE = {
    "mentors": "SELECT id, portal_visible, review_on FROM mentors ORDER BY id",
    "certificates": (
        "SELECT id, mentor_id, kind, issued_on, expires_on, revoked_at, status FROM certificates ORDER BY id"
    ),
    "mentor_pauses": (
        "SELECT mentor_id, reason, actor, lifted_at IS NOT NULL, lifted_by FROM mentor_pauses"
        " ORDER BY mentor_id, reason, lifted_at IS NOT NULL"
    ),
    "certificate_transitions": (
        "SELECT certificate_id, mentor_id, from_status, to_status, as_of, run_id IS NULL FROM certificate_transitions"
        " ORDER BY certificate_id, from_status, to_status, as_of"
    ),
    "cert_notification_log": (
        "SELECT mentor_id, threshold_days, cert_id, expires_on, status, attempts, next_attempt_at > now(),"
        " claim_token IS NULL, sent_at IS NULL, maybe_sent, last_error, history, run_id IS NULL"
        " FROM cert_notification_log ORDER BY mentor_id, threshold_days, cert_id"
    ),
    "portal_sync_events": (
        "SELECT mentor_id, visible, version, status, attempts, next_attempt_at > now(), claim_token IS NULL,"
        " claim_contact_id IS NULL, delivered_at IS NULL, last_error, run_id IS NULL FROM portal_sync_events"
        " ORDER BY mentor_id, version, status"
    ),
}
"""The whole state that a night writes; of what differs by itself (times, the run), whether it is there."""


def run_nothing_due(bench: Bench) -> list[Figure]:
    """The same night at three sizes, in turns with the smallest: growth has to be flat."""
    sizes = sorted({max(bench.mentors // 100, 1), max(bench.mentors // 10, 1), bench.mentors})
    with ExitStack() as stack:
        nights: dict[int, list[Finished]] = {size: [] for size in sizes}
        names = {}
        for size in sizes:
            bench.say(f"{size:,} mentors, nothing due")
            with populated(bench.server, mentors=size, due_percent=0) as template:
                names[size] = stack.enter_context(bench.server.copy(template, f"bench_quiet_{size}"))
            _quiet_night(bench, names[size])
        for number in range(3 * bench.rounds):
            for size in sizes if number % 2 else reversed(sizes):
                nights[size].append(_quiet_night(bench, names[size]))
    return [_quiet_figure(size, nights[size], smallest=nights[sizes[0]]) for size in sizes]


def _quiet_night(bench: Bench, name: str) -> Finished:
    return certjob("run", "--json", database_url=bench.server.url(name))


def _quiet_figure(size: int, nights: list[Finished], *, smallest: list[Finished]) -> Figure:
    slowest = max(night.document["duration_seconds"] for night in nights)
    ratio = paired([n.seconds for n in nights], [n.seconds for n in smallest])
    return Figure(
        part="night",
        name=f"nothing due, {size:,} mentors",
        ours=seconds(ratio.ours),
        reference="the smallest size" if nights is not smallest else "itself",
        ratio=ratio,
        bar=(Bar.AT_MOST, FLAT_BAR),
        limits=[Limit(value=ratio.ours, unit="s", bar=(Bar.AT_MOST, NOTHING_DUE_BAR_SECONDS))],
        notes=f"in the database {seconds(slowest)} at most, {max(n.peak_mb for n in nights):.0f} MB",
    )


def run_due(bench: Bench) -> list[Figure]:
    """Some or all of the mentors due, against set-based SQL."""
    return [_due(bench, percent) for percent in bench.shares]


def _due(bench: Bench, percent: int) -> Figure:
    due = bench.mentors * percent // 100
    peaks: list[float] = []
    whole: list[float] = []

    def reference(name: str) -> float:
        bench.say("  the set-based night")
        with bench.server.connect(name) as connection:
            began = time.perf_counter()
            set_based_night(connection)
            return time.perf_counter() - began

    def ours(name: str) -> float:
        bench.say("  certjob's night")
        # From one mentor in ten on it is no normal night, and the guards would hold it back.
        allowed = ["--allow-mass-change"] if percent >= 10 else []
        night = certjob("run", "--json", "--no-deliver", *allowed, database_url=bench.server.url(name))
        if night.document["mentors"]["reviewed"] != due:
            message = f"{due} mentors were due, but: {night.document}"
            raise RuntimeError(message)
        peaks.append(night.peak_mb)
        whole.append(night.seconds)
        return float(night.document["duration_seconds"])

    bench.say(f"{due:,} of {bench.mentors:,} mentors due")
    with (
        populated(bench.server, mentors=bench.mentors, due_percent=percent) as template,
        ExitStack() as our_copy,
        ExitStack() as their_copy,
    ):

        def on_a_copy(kept: ExitStack, name: str, work: Callable[[str], float]) -> float:
            kept.close()  # the last copies stay, to be compared
            return work(kept.enter_context(bench.server.copy(template, name)))

        ratio = in_turns(
            lambda: on_a_copy(our_copy, "bench_ours", ours),
            lambda: on_a_copy(their_copy, "bench_theirs", reference),
            rounds=bench.rounds,
        )
        with bench.server.connect("bench_ours") as one, bench.server.connect("bench_theirs") as other:
            rows = compare_states(one, other)
    peak = max(peaks)
    return Figure(
        part="night",
        name=f"{percent} % of {bench.mentors:,} due",
        ours=f"{1e6 * ratio.ours / due:.0f} µs/mentor",
        reference=f"{1e6 * ratio.reference / due:.0f} µs/mentor, set-based SQL",
        ratio=ratio,
        bar=(Bar.AT_MOST, ALL_DUE_BAR if percent == 100 else SOME_DUE_BAR),
        limits=[Limit(value=peak, unit="MB", bar=(Bar.AT_MOST, MEMORY_BAR_MB))],
        notes=f"{due / ratio.ours:,.0f} mentors/s, {rows:,} rows end the same",
        detail={"peak_mb": peak, "whole_process_seconds": whole, "due": due},
    )


def compare_states(one: Connection, other: Connection) -> int:
    """Compare every row of two databases and return how many there are; raises RuntimeError if one differs."""
    rows = 0
    for table, statement in _STATE.items():
        for mine, theirs in zip_longest(_rows(one, statement), _rows(other, statement)):
            rows += 1
            if mine != theirs:
                message = f"the end states differ, {table}: {mine!r} here, {theirs!r} there"
                raise RuntimeError(message)
    return rows


def _rows(connection: Connection, statement: str) -> Iterator[bytes]:
    with connection.cursor() as cursor, cursor.copy(f"COPY ({statement}) TO STDOUT".encode()) as copy:
        for block in copy:
            yield bytes(block)
