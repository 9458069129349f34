"""The cost of a start, of a night without a due mentor, and of a night beside set-based SQL."""

import time
from contextlib import ExitStack
from itertools import zip_longest
from resource import RUSAGE_CHILDREN, getrusage

from certjob.database import Connection
from tests.benchmarks.bench import Bench, Measured, set_based_night
from tests.benchmarks.figures import Figure, in_turns
from tests.support.command_line import today

HELP_SECONDS = 0.4
QUIET_SECONDS = 1.0
TIMES_THE_SMALLEST = 1.2
TIMES_SET_BASED = 2.5
MEMORY_MB = 120

_STATE = {
    "mentors": (
        "id, portal_visible, certified_until, decided_visible, without_certificate, seen_certificates, review_on,"
        " reviewed_contact_id"
    ),
    "certificates": "id, mentor_id, kind, issued_on, expires_on, revoked_at, status",
    "mentor_pauses": "mentor_id, reason, actor, lifted_at IS NOT NULL, lifted_by, lapsed_kinds",
    "certificate_transitions": "certificate_id, mentor_id, from_status, to_status, as_of, run_id IS NULL",
    "cert_notification_log": (
        "mentor_id, threshold_days, cert_id, kind, expires_on, status, attempts, next_attempt_at > now(),"
        " claim_token IS NULL, sent_at IS NULL, maybe_sent, last_error, failure_code, history, run_id IS NULL"
    ),
    "portal_sync_events": (
        "mentor_id, visible, wanted_until, version, status, attempts, next_attempt_at > now(),"
        " claim_token IS NULL, claim_contact_id IS NULL, delivered_at IS NULL, last_error, failure_code, run_id IS NULL"
    ),
}
"""Everything that a night writes, without times and runs, which always differ."""


def run_start_up(bench: Bench) -> list[Figure]:
    """Measure `certjob --help`."""
    seconds = [bench.certjob("--help").seconds for _ in range(3 * bench.rounds)]
    return [Figure(name="certjob --help", rounds=seconds, unit="s", at_most=HELP_SECONDS)]


def run_nothing_due(bench: Bench) -> list[Figure]:
    """Run nights without a due mentor at three sizes, in turns: the size must not matter."""
    sizes = [max(bench.mentors // part, 1) for part in (100, 10, 1)]
    nights: dict[int, list[Measured]] = {size: [] for size in sizes}
    with ExitStack() as copies:
        for size in nights:
            bench.say(f"{size:,} mentors, nothing due")
            copies.enter_context(bench.copy(bench.template(mentors=size, due_percent=0), f"quiet_{size}"))
            bench.certjob("run", name=f"quiet_{size}")
        for number in range(3 * bench.rounds):
            for size in nights if number % 2 else reversed(nights):
                nights[size].append(bench.certjob("run", "--json", name=f"quiet_{size}"))
    figures = []
    smallest = [night.seconds for night in nights[sizes[0]]]
    for size, measured in nights.items():
        name, seconds = f"nothing due, {size:,} mentors", [night.seconds for night in measured]
        figures.append(Figure(name=name, rounds=seconds, unit="s", at_most=QUIET_SECONDS))
        ratios = [mine / theirs for mine, theirs in zip(seconds, smallest, strict=True)]
        figures.append(Figure(name=name, rounds=ratios, unit="× the smallest", at_most=TIMES_THE_SMALLEST))
    return figures


def run_due(bench: Bench) -> list[Figure]:
    """Run nights with some or all mentors due, in turns with set-based SQL, and compare the rows."""
    figures = [_due(bench, percent, is_known=is_known) for percent in bench.shares for is_known in (True, False)]
    peak_mb = getrusage(RUSAGE_CHILDREN).ru_maxrss / 1024  # Linux counts at least the size of this process
    return [*figures, Figure(name="memory", rounds=[peak_mb], unit="MB", at_most=MEMORY_MB)]


def _due(bench: Bench, percent: int, *, is_known: bool) -> Figure:
    name = f"{percent} % of {bench.mentors:,} due, {'' if is_known else 'not '}reviewed before"
    bench.say(name)
    template = bench.template(mentors=bench.mentors, due_percent=percent, is_known=is_known)
    with bench.connect(template) as connection:
        ((due,),) = connection.execute("SELECT count(*) FROM mentors WHERE review_on <= %s", (today(),)).fetchall()
    pairs: list[tuple[float, float]] = []

    def ours() -> float:
        # Otherwise the guards hold a night in which everyone is due.
        allowed = [f"--allow=org{number}={bench.mentors}" for number in range(1, 5)]
        night = bench.certjob("run", "--json", *allowed, name="certjob_night")
        if night.document["mentors"]["reviewed"] != due:
            raise RuntimeError(str(night.document))
        return float(night.document["duration_seconds"])

    def set_based() -> float:
        with bench.connect("set_based_night") as connection:
            began = time.perf_counter()
            set_based_night(connection, today())
            return time.perf_counter() - began

    for number in range(bench.rounds):
        bench.say(f"  round {number + 1}")
        with bench.copy(template, "certjob_night") as mine, bench.copy(template, "set_based_night") as theirs:
            pairs.append(in_turns(ours, set_based, number=number))
            with bench.connect(mine) as one, bench.connect(theirs) as other:
                rows = compare_states(one, other)
    fastest = min(seconds for seconds, _ in pairs)
    notes = f"{due / fastest:,.0f} mentors/s at best, {rows:,} rows end the same"
    ratios = [mine / theirs for mine, theirs in pairs]
    return Figure(name=name, rounds=ratios, unit="× set-based SQL", at_most=TIMES_SET_BASED, notes=notes)


def compare_states(one: Connection, other: Connection) -> int:
    """Compare all rows of two databases, and return their number. Raises RuntimeError if one differs."""
    rows = 0
    for table, columns in _STATE.items():
        order = ", ".join(str(number + 1) for number in range(columns.count(",") + 1))
        statement = f"COPY (SELECT {columns} FROM {table} ORDER BY {order}) TO STDOUT"
        with one.cursor().copy(statement.encode()) as ours, other.cursor().copy(statement.encode()) as reference:
            for mine, theirs in zip_longest(map(bytes, ours), map(bytes, reference)):
                rows += 1
                if mine != theirs:
                    message = f"the end states differ, {table}: {mine!r} here, {theirs!r} there"
                    raise RuntimeError(message)
    return rows
