"""The cost of a start, of a night without a due mentor, and of a night beside set-based SQL."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import zip_longest
from statistics import median

from certjob.database import Connection
from tests.benchmarks.bench import Bench, Finished, set_based_night
from tests.benchmarks.figures import Bar, Figure, Ratio, in_turns

HELP_BAR_SECONDS = 0.4
MEMORY_BAR_MB = 120
NOTHING_DUE_BAR_SECONDS = 1.0
FLAT_BAR = 1.2
SOME_DUE_BAR, ALL_DUE_BAR = 1.0, 2.0

_STATE = {
    "mentors": "id, portal_visible, certified_until, review_on",
    "certificates": "id, mentor_id, kind, issued_on, expires_on, revoked_at, status",
    "mentor_pauses": "mentor_id, reason, actor, lifted_at IS NOT NULL, lifted_by",
    "certificate_transitions": "certificate_id, mentor_id, from_status, to_status, as_of, run_id IS NULL",
    "cert_notification_log": (
        "mentor_id, threshold_days, cert_id, expires_on, status, attempts, next_attempt_at > now(),"
        " claim_token IS NULL, sent_at IS NULL, maybe_sent, last_error, history, run_id IS NULL"
    ),
    "portal_sync_events": (
        "mentor_id, visible, version, status, attempts, next_attempt_at > now(), claim_token IS NULL,"
        " claim_contact_id IS NULL, delivered_at IS NULL, last_error, run_id IS NULL"
    ),
}
"""Everything that a night writes, without times and runs, which always differ."""


def run_start_up(bench: Bench) -> list[Figure]:
    """Measure `certjob --help` in three times as many rounds."""
    bench.say("certjob --help")
    bench.certjob("--help")
    took = median(bench.certjob("--help").seconds for _ in range(3 * bench.rounds))
    bar = Bar(value=took, unit="s", at_most=HELP_BAR_SECONDS)
    return [Figure(name="certjob --help", ours=f"{took:.2f} s", bars=[bar])]


def run_nothing_due(bench: Bench) -> list[Figure]:
    """Run a night at three sizes, in turns: the size must not matter."""
    sizes = sorted({max(bench.mentors // part, 1) for part in (100, 10, 1)})
    nights: dict[int, list[Finished]] = {size: [] for size in sizes}
    with ExitStack() as stack:
        for size in sizes:
            bench.say(f"{size:,} mentors, nothing due")
            with bench.populated(mentors=size, due_percent=0) as template:
                stack.enter_context(bench.copy(template, f"bench_quiet_{size}"))
            bench.certjob("run", name=f"bench_quiet_{size}")
        for number in range(3 * bench.rounds):
            for size in sizes if number % 2 else reversed(sizes):
                nights[size].append(bench.certjob("run", "--json", name=f"bench_quiet_{size}"))
    return [_quiet_figure(size, nights[size], smallest=nights[sizes[0]]) for size in sizes]


def _quiet_figure(size: int, nights: list[Finished], *, smallest: list[Finished]) -> Figure:
    slowest = max(night.document["duration_seconds"] for night in nights)
    ratio = Ratio([night.seconds for night in nights], [night.seconds for night in smallest])
    took = median(ratio.ours)
    return Figure(
        name=f"nothing due, {size:,} mentors",
        ours=f"{took:.2f} s",
        reference="the smallest size" if nights is not smallest else "itself",
        ratio=ratio,
        bars=[ratio.bar(at_most=FLAT_BAR), Bar(value=took, unit="s", at_most=NOTHING_DUE_BAR_SECONDS)],
        notes=f"in the database {slowest:.3f} s at most, {max(night.peak_mb for night in nights):.0f} MB",
    )


def run_due(bench: Bench) -> list[Figure]:
    """Run nights with some or all mentors due, in turns with set-based SQL."""
    return [_due(bench, percent) for percent in bench.shares]


def _due(bench: Bench, percent: int) -> Figure:
    due = bench.mentors * percent // 100
    nights: list[Finished] = []

    def reference(name: str) -> float:
        bench.say("  the set-based night")
        with bench.connect(name) as connection:
            began = time.perf_counter()
            set_based_night(connection)
            return time.perf_counter() - began

    def ours(name: str) -> float:
        bench.say("  certjob's night")
        # The guards hold a night with a tenth of the mentors.
        allowed = ["--allow-everything"] if percent >= 10 else []
        nights.append(bench.review(name, *allowed))
        document = nights[-1].document
        if document["mentors"]["reviewed"] != due:
            raise RuntimeError(str(document))
        return float(document["duration_seconds"])

    bench.say(f"{due:,} of {bench.mentors:,} mentors due")
    with (
        bench.populated(mentors=bench.mentors, due_percent=percent) as template,
        ExitStack() as our_copy,
        ExitStack() as their_copy,
    ):

        def on_a_copy(kept: ExitStack, name: str, work: Callable[[str], float]) -> float:
            kept.close()  # it keeps the last copy for the comparison
            return work(kept.enter_context(bench.copy(template, name)))

        ratio = in_turns(
            lambda: on_a_copy(our_copy, "bench_ours", ours),
            lambda: on_a_copy(their_copy, "bench_theirs", reference),
            rounds=bench.rounds,
        )
        with bench.connect("bench_ours") as one, bench.connect("bench_theirs") as other:
            rows = compare_states(one, other)
    took, peak = median(ratio.ours), max(night.peak_mb for night in nights)
    return Figure(
        name=f"{percent} % of {bench.mentors:,} due",
        ours=f"{1e6 * took / due:.0f} µs/mentor",
        reference=f"{1e6 * median(ratio.reference) / due:.0f} µs/mentor, set-based SQL",
        ratio=ratio,
        bars=[
            ratio.bar(at_most=ALL_DUE_BAR if percent == 100 else SOME_DUE_BAR),
            Bar(value=peak, unit="MB", at_most=MEMORY_BAR_MB),
        ],
        notes=f"{due / took:,.0f} mentors/s, {rows:,} rows end the same",
    )


def compare_states(one: Connection, other: Connection) -> int:
    """Compare all rows of two databases, and return their number. Raises RuntimeError if one differs."""
    rows = 0
    for table, columns in _STATE.items():
        order = ", ".join(str(number + 1) for number in range(columns.count(",") + 1))
        statement = f"COPY (SELECT {columns} FROM {table} ORDER BY {order}) TO STDOUT"
        for mine, theirs in zip_longest(_rows(one, statement), _rows(other, statement)):
            rows += 1
            if mine != theirs:
                message = f"the end states differ, {table}: {mine!r} here, {theirs!r} there"
                raise RuntimeError(message)
    return rows


def _rows(connection: Connection, statement: str) -> Iterator[bytes]:
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as copy:
        yield from map(bytes, copy)
