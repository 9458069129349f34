"""What it costs to read the portal and compare, beside pushing everything again."""

from tests.benchmarks.bench import Bench
from tests.benchmarks.commands import certjob
from tests.benchmarks.deliveries import deliver, helper, portal_settings, with_events
from tests.benchmarks.figures import Bar, Figure, Limit, in_turns

CONTACTS = 100_000
PAGES = 20
DIFFERENT = 20
"""So many does the portal show wrongly."""
SECONDS_BAR, MEMORY_BAR = 5.0, 150.0

_ALL_IN_FORCE = """
    UPDATE portal_sync_events SET status = 'delivered', delivered_at = now() - interval '1 day';
    UPDATE mentors SET portal_visible = true, review_on = current_date + 30;
    UPDATE certificates SET status = 'valid';
"""
_SHOWN = "SELECT dynamics_contact_id::text FROM mentors ORDER BY 1 OFFSET %s"


def run(bench: Bench) -> list[Figure]:
    """100,000 contacts, 20 of which somebody has hidden by hand; pushing all again is scaled up from some pushes."""
    contacts = bench.folder / "visible.txt"
    bench.say(f"reconcile, {CONTACTS:,} contacts")
    peaks: list[float] = []
    with with_events(bench, CONTACTS, name="bench_visible") as template, with_events(bench, bench.pushes) as small:
        with bench.server.connect(template) as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute(_ALL_IN_FORCE.encode())
            connection.execute("VACUUM ANALYZE")
            contacts.write_text("\n".join(row[0] for row in connection.execute(_SHOWN.encode(), (DIFFERENT,))))
        with helper("answering", "0", str(contacts)) as (port, _):
            settings = portal_settings(port, 4)

            def reconcile() -> float:
                with bench.server.copy(template) as name:
                    done = certjob("reconcile", "--json", database_url=bench.server.url(name), settings=settings)
                found = done.document
                if (found["read"]["pages"], found["portal"]["delivered"]) != (PAGES, DIFFERENT):
                    raise RuntimeError(str(found))
                peaks.append(done.peak_mb)
                return done.seconds

            def push_all() -> float:
                return deliver(bench, small, bench.pushes, settings=settings) * CONTACTS / bench.pushes

            ratio = in_turns(reconcile, push_all, rounds=bench.rounds)
    return [
        Figure(
            part="reconcile",
            name=f"{CONTACTS:,} contacts, {DIFFERENT} differ",
            ours=f"{ratio.ours:.1f} s whole, {PAGES} reads and {DIFFERENT} pushes",
            reference=f"{ratio.reference:,.0f} s, all pushed again (scaled)",
            ratio=ratio,
            limits=[
                Limit(value=ratio.ours, unit="s", bar=(Bar.AT_MOST, SECONDS_BAR)),
                Limit(value=max(peaks), unit="MB", bar=(Bar.AT_MOST, MEMORY_BAR)),
            ],
        )
    ]
