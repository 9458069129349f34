"""`certjob explain`: one mentor's facts, their meaning, and the next change."""

import re
from datetime import date, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from certjob.domain import holds
from certjob.page import Line
from certjob.reports.explain import Explanation, explain, explain_page
from certjob.reports.next_change import Next
from tests.support.command_line import assert_in_order
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING, CollectingChannel, make_due, night, review
from tests.support.portal_answers import Behaviour, error
from tests.support.portal_server import PortalServer
from tests.support.programmes import changes_by_mentor, random_programme

OSLO = ZoneInfo("Europe/Oslo")
DAY = timedelta(days=1)
YESTERDAY, IN_20_DAYS, IN_700_DAYS = TODAY - DAY, TODAY + 20 * DAY, TODAY + 700 * DAY


def explained(facts: Facts, mentor_id: UUID, today: date = TODAY) -> Explanation:
    return explain(facts.connection, mentor_id, today=today, zone=OSLO)


def coming(facts: Facts, mentor_id: UUID, today: date = TODAY) -> Next:
    """Return the next change, which exists."""
    found = explained(facts, mentor_id, today).next
    assert found is not None
    return found


def page(facts: Facts, mentor_id: UUID, today: date = TODAY) -> str:
    """Return the page without indents."""
    parts = explain_page(explained(facts, mentor_id, today), zone=OSLO, in_pipe=False)
    return "\n".join(f"{part.indent.lstrip()}{part.head}{part.text}" for part in parts if isinstance(part, Line))


def run(facts: Facts, day: date = TODAY, *, answer: Behaviour | None = None, **options: Any) -> None:
    """Run a night with a portal, and with a mail server that accepts everything."""
    with PortalServer(default=answer) as portal:
        night(facts.connection, day, portal=portal, channel=CollectingChannel(), **options)


# What happens next.


def test_next_is_the_first_night_that_changes_the_mentor(facts: Facts) -> None:
    """On random data, eight nights make the first changes on the announced days, and as many as was announced."""
    random_programme(facts, seed=0, mentors=16)
    people = [UUID(str(row[0])) for row in facts.rows("SELECT id FROM mentors ORDER BY member_no")]
    for number, mentor in enumerate(people[::2]):
        facts.certificate(mentor, TODAY + number * DAY, kind="soon")
    run(facts, allow=EVERYTHING)
    nights = [TODAY + number * DAY for number in range(1, 9)]
    announced = {str(mentor): explained(facts, mentor, nights[0]).next for mentor in people}

    changed: dict[str, tuple[date, int]] = {}
    before = changes_by_mentor(facts)
    for day in nights:
        run(facts, day, allow=EVERYTHING)
        after = changes_by_mentor(facts)
        for mentor_id, changes in after.items():
            if new := changes - before[mentor_id]:
                changed.setdefault(mentor_id, (day, len(new)))
        before = after

    expected = {mentor_id: (each.on, len(each.what)) for mentor_id, each in announced.items() if each}
    assert changed == {mentor_id: what for mentor_id, what in expected.items() if what[0] in nights}
    assert len({day for day, _ in changed.values()}) > 3


def test_next_goes_from_reminder_to_expiry_to_nothing(facts: Facts) -> None:
    mentor = facts.certified_mentor(facts.organisation(thresholds=[30, -1]), TODAY + 40 * DAY)
    run(facts)
    assert_in_order(
        page(facts, mentor),
        "Kari Nordmann (M1001), HLF\nActive: not paused. Certified: likeperson is in force until 19 April.",
        "Next: on 20 March, in 10 days: likeperson until 19 April: valid → expiring; reminder 30 days before",
        "Certificates\n- likeperson, 1 January 2024 to 19 April 2026: valid\nits last day is 19 April, in 40 days",
        "Pauses\n- no open pauses",
        "Portal\n- wanted: visible until 19 April\n- the portal has not confirmed a push yet",
    )

    run(facts, TODAY + 10 * DAY)
    expiry = coming(facts, mentor, TODAY + 10 * DAY)
    assert (expiry.on, len(expiry.what)) == (TODAY + 41 * DAY, 4)

    run(facts, expiry.on)
    assert "Next: no change, unless the data changes." in page(facts, mentor, expiry.on)


def test_doubtful_dates_are_marked_on_the_page(facts: Facts) -> None:
    """The page warns without a run, after a missed run, and on a day before the last run."""
    mentor = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
    assert_in_order(page(facts, mentor), "There has been no nightly run yet;", "not stored yet, a run today stores it")

    run(facts)
    assert "nightly run was" not in page(facts, mentor, TODAY + DAY)
    assert "The last run was on 10 March;" in page(facts, mentor, TODAY + 2 * DAY)

    run(facts, TODAY + 30 * DAY)
    assert "certjob rejects a run today, because an earlier run had the date 9 April. " in page(facts, mentor)
    assert coming(facts, mentor).when == "today, when `certjob run` runs"  # everyone is reviewed again


def test_held_changes_are_named_with_the_guards_line(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    """If only reminders are held, the other changes are not marked as held."""
    monkeypatch.setattr(holds, "LEAST", 2)
    hlf, nhf = facts.organisation(thresholds=()), facts.organisation("nhf")
    ended, *_ = (facts.certified_mentor(hlf, YESTERDAY) for _ in range(3))
    reminded, *_ = (facts.certified_mentor(nhf, IN_20_DAYS) for _ in range(3))

    (line,) = night(facts.connection, dry_run=True, organisation="hlf").held
    status, reminder = coming(facts, reminded).what

    assert_in_order(
        page(facts, ended), f"A guard holds changes back: {line}", "held back by a guard: ", "certjob pauses the mentor"
    )
    assert (status.startswith("held back: "), reminder.startswith("held back: ")) == (False, True)
    run(facts)
    assert "30 days before the last day: held back by a guard; `certjob alerts` says why" in page(facts, reminded)


# Deliveries.


def test_open_push_is_followed_until_the_portal_confirms(facts: Facts) -> None:
    """The push is queued, fails, and is confirmed; then the mentor renews."""
    mentor = facts.certified_mentor(facts.organisation(), YESTERDAY)
    review(facts.connection)
    queued = coming(facts, mentor)
    assert queued.when == "today, with the next `certjob run` or `certjob deliver`"
    assert queued.what[0] == "the portal is asked to hide the mentor"

    run(facts, answer=error(503, "dynamics_unavailable"))
    ((retry_at,),) = facts.connection.execute("SELECT next_attempt_at FROM portal_sync_events").fetchall()
    local = retry_at.astimezone(OSLO)
    failed = coming(facts, mentor, local.date())
    assert (failed.at, failed.when) == (retry_at, f"today, at {local:%H:%M} or soon after")
    assert failed.what == ["the portal is asked again to hide the mentor"]
    assert_in_order(page(facts, mentor, local.date()), "Dynamics sync pending", f"certjob tries again at {local:%H:%M}")

    make_due(facts)
    run(facts)
    assert_in_order(page(facts, mentor), "the portal last confirmed: hidden, ", "1 earlier failure, resolved")

    facts.certificate(mentor, IN_700_DAYS, issued_on=TODAY)
    assert "certjob lifts its pause; the portal is asked to show the mentor." in page(facts, mentor)


def test_push_that_no_run_can_make_has_no_date(facts: Facts) -> None:
    """A blocked push has a command, and a missing contact ID a warning."""
    organisation = facts.organisation()
    blocked = facts.certified_mentor(organisation, TODAY - 100 * DAY)
    run(facts, answer=error(404, "contact_not_found"))
    missing = facts.certified_mentor(organisation, YESTERDAY, contact_id=None)
    run(facts)

    assert (explained(facts, blocked).next, explained(facts, missing).next) == (None, None)
    step = "What to do: Correct the contact ID in the app or with `certjob load`; the next `certjob deliver` "
    assert_in_order(page(facts, blocked), "Dynamics has no contact with this ID.", step)
    assert "no contact ID, so certjob makes no pushes; add it" in page(facts, missing)


def test_push_of_a_removed_portal_is_withdrawn(facts: Facts) -> None:
    mentor = facts.certified_mentor(facts.organisation(), YESTERDAY)
    review(facts.connection)

    facts.connection.execute("UPDATE organisations SET portal = NULL")

    assert coming(facts, mentor).what == ["the queued push is withdrawn, because the organisation has no portal"]
    assert "hlf has lost its portal, so certjob makes no pushes" in page(facts, mentor)


def test_queued_reminder_is_sent_or_cancelled_as_the_rules_say(facts: Facts) -> None:
    """A renewal cancels the queued reminder, and a more urgent one replaces it."""
    organisation = facts.organisation(portal=None)
    kept, renewed = (facts.certified_mentor(organisation, IN_20_DAYS) for _ in range(2))
    review(facts.connection)
    facts.certificate(renewed, IN_700_DAYS, issued_on=TODAY + DAY)

    reminder = "the queued reminder 30 days before the last day (30 March) is"
    assert coming(facts, kept).what == [f"{reminder} sent"]
    facts.connection.execute("UPDATE mentors SET review_on = %s", (TODAY + DAY,))
    assert coming(facts, renewed).what == [f"{reminder} cancelled: renewed"]
    urgent = coming(facts, kept, TODAY + 6 * DAY)
    assert urgent.what == ["reminder 14 days before the last day (30 March)"]


def test_every_outcome_of_a_reminder_is_on_the_page(facts: Facts) -> None:
    """A reminder that will not be sent has a reason."""
    organisation = facts.organisation(portal=None)
    kept, renewed, replaced = (facts.certified_mentor(organisation, IN_20_DAYS) for _ in range(3))
    homeless = facts.certified_mentor(organisation, IN_20_DAYS, email=" ")
    review(facts.connection)
    facts.certificate(renewed, IN_700_DAYS, issued_on=TODAY + DAY)
    facts.connection.execute("UPDATE certificates SET expires_on = expires_on - 6 WHERE mentor_id = %s", (replaced,))
    assert re.search(r"30 days before the last day: queued [^()]+$", page(facts, kept), re.MULTILINE)

    run(facts)

    assert "30 days before the last day: sent " in page(facts, kept)
    continued = "no reminder, because the next one (11 March to 8 February 2028) continues it without a gap"
    assert_in_order(page(facts, renewed), "30 days before the last day: cancelled: renewed", continued)
    assert_in_order(page(facts, homeless), "What to do: Enter it in the app", "not delivered (no address)")
    assert "30 days before the last day: never sent: a more urgent one took its place" in page(facts, replaced)


# Who, and why.


def test_page_names_who_opened_a_pause_and_what_lifts_it(facts: Facts) -> None:
    """Open pauses come before lifted ones, with local times."""
    mentor = facts.certified_mentor(facts.organisation(portal=None), TODAY - 5 * DAY)
    facts.pause(mentor, reason="leave", actor="ola")
    facts.connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'ola'")
    facts.pause(mentor)
    facts.connection.execute("UPDATE mentor_pauses SET paused_at = '2026-03-08 23:30Z' WHERE reason = 'illness'")
    run(facts)

    assert_in_order(
        page(facts, mentor),
        "Paused: illness, no valid certificate. Not certified: likeperson ended on 5 March, 5 days ago.",
        "illness, by coordinator since 9 March 00:30\n"
        "certjob never lifts it; a coordinator does, in the app, or `certjob unpause`",
        "earlier: leave, by ola since ",
    )


def test_mentor_who_has_left_is_neither_reminded_nor_reinstated(facts: Facts) -> None:
    left = facts.certified_mentor(facts.organisation(portal=None), TODAY - 5 * DAY)
    run(facts)

    facts.connection.execute("UPDATE mentors SET left_at = '2026-03-09 12:00+01' WHERE id = %s", (left,))

    assert_in_order(page(facts, left), "Left on 9 March.", "it stays as it is while the mentor has left")
    assert "likeperson until 5 March: no reminder, because the mentor has left" in page(facts, left)


def test_mentor_without_a_certificate_is_hidden_but_not_paused(facts: Facts) -> None:
    """An upcoming certificate does not count."""
    bare = facts.mentor(facts.organisation())
    assert_in_order(page(facts, bare), "Active: not paused. Has never had", "They are hidden on the portal.")

    facts.certificate(bare, date(2028, 3, 20), issued_on=date(2026, 3, 20))

    assert "likeperson has not begun yet" in page(facts, bare)
    found = explained(facts, bare)
    assert (found.without_certificate, found.certified) == (True, False)
