"""`certjob explain`: one mentor's facts, their meaning, and the next change."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from certjob.cli.pages.explain import page_lines, show_explanation
from certjob.errors import Cause, PermanentPortalError, UnknownMentorError
from certjob.reports.explain import Explanation, Next, explain
from tests.conftest import Certjob
from tests.support.command_line import HOSTILE, assert_in_order, flat, terminal, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import EVERYTHING, CollectingChannel, FlakyPortal, make_due, night, review
from tests.support.programmes import changes_by_mentor, random_programme

OSLO = ZoneInfo("Europe/Oslo")
DAY = timedelta(days=1)
YESTERDAY, IN_20_DAYS, IN_700_DAYS = TODAY - DAY, TODAY + 20 * DAY, TODAY + 700 * DAY


class Explained(Facts):
    """Facts, runs with accepted mail, and explanations."""

    def run(self, day: date = TODAY, **options: Any) -> None:
        night(self.connection, day, **{"channel": CollectingChannel()} | options)

    def explain(self, mentor_id: UUID, *, today: date = TODAY) -> Explanation:
        return explain(self.connection, mentor_id, today=today, zone=OSLO)

    def next(self, mentor_id: UUID, *, today: date = TODAY) -> Next:
        coming = self.explain(mentor_id, today=today).next
        assert coming is not None
        return coming

    def page(self, mentor_id: UUID, *phrases: str, today: date = TODAY) -> str:
        """Return the page without indents. It has these phrases in this order."""
        lines = page_lines(self.explain(mentor_id, today=today), zone=OSLO)
        text = "\n".join(f"{line.bullet}{line.head}{line.text}" for line in lines)
        assert_in_order(text, *phrases)
        return text


@pytest.fixture
def explained(facts: Facts) -> Explained:
    return Explained(facts.connection)


# What happens next.


@pytest.mark.parametrize("seed", range(2))
def test_next_names_the_day_of_every_change_by_a_run(explained: Explained, seed: int) -> None:
    """On random data, 15 runs change exactly the mentors, on exactly the days, in as many ways as was announced."""
    random_programme(explained, seed=seed, mentors=40)
    people = [UUID(str(row[0])) for row in explained.rows("SELECT id FROM mentors")]
    for number, mentor in enumerate(people[::2]):
        explained.certificate(mentor, TODAY + number * DAY, kind="soon")
    before, announced = changes_by_mentor(explained), dict[UUID, Next]()
    changed, today = 0, "today, when `certjob run` runs"

    for day in (TODAY + number * DAY for number in range(15)):
        coming = {mentor: explained.explain(mentor, today=day).next for mentor in people}
        assert {m: c.on for m, c in announced.items()} == {m: c.on for m, c in coming.items() if c and m in announced}
        explained.run(day, portal=FlakyPortal(), allow=EVERYTHING)
        after = changes_by_mentor(explained)
        done = Counter({mentor: len(rows - before[str(mentor)]) for mentor in people if (rows := after[str(mentor)])})
        assert +done == Counter({mentor: len(c.what) for mentor, c in coming.items() if c and c.when == today})
        announced = {mentor: c for mentor, c in coming.items() if c and c.on > day}
        before, changed = after, changed + done.total()

    assert changed > 50


def test_next_goes_from_reminder_to_expiry_to_nothing(explained: Explained) -> None:
    """Each run names the next one, and the last page names none."""
    mentor = explained.certified_mentor(explained.organisation(thresholds=[30, -1]), TODAY + 40 * DAY)
    explained.run(portal=FlakyPortal())
    explained.page(
        mentor,
        "Kari Nordmann (M1001), HLF\nActive: no pause is open. Certified: likeperson is in force until 19 April.",
        "Next: on 20 March, in 10 days: likeperson until 19 April: valid → expiring; reminder 30 days before",
        "Certificates\n- likeperson, 1 January 2024 to 19 April 2026: valid\nits last day is 19 April, in 40 days",
        "Pauses\n- none is open",
        "Portal\n- wanted: visible until 19 April\n- the portal has not confirmed a push yet",
    )
    document = explained.explain(mentor).to_document()
    assert document["certificates"][0]["stored_on"] == TODAY
    assert (document["next"]["on"], document["mentor"]["review_on"]) == (TODAY + 10 * DAY, TODAY + 10 * DAY)

    explained.run(TODAY + 10 * DAY, portal=FlakyPortal())
    expiry = explained.next(mentor, today=TODAY + 10 * DAY)
    assert (expiry.on, len(expiry.what)) == (TODAY + 41 * DAY, 4)
    explained.run(expiry.on, portal=FlakyPortal())
    explained.page(mentor, "Next: no change, unless a fact changes.", today=expiry.on)


def test_doubtful_dates_are_marked_on_the_page(explained: Explained) -> None:
    """The page warns without a run, after a missed run, and on a day before the last run."""
    mentor = explained.certified_mentor(explained.organisation(portal=None), IN_20_DAYS)
    explained.page(mentor, "There has been no nightly run yet;", "not stored yet, a run today stores it")

    explained.run()
    assert "nightly run was" not in explained.page(mentor, today=TODAY + DAY)
    explained.page(mentor, "The last nightly run was for 10 March;", today=TODAY + 2 * DAY)

    explained.run(TODAY + 30 * DAY)
    explained.page(mentor, "A run today is refused, because the last nightly run was for 9 April. ")
    assert explained.next(mentor).when == "today, when `certjob run` runs"  # everyone is reviewed again


def test_held_changes_are_named_with_the_guards_line(explained: Explained, monkeypatch: pytest.MonkeyPatch) -> None:
    """If only reminders are held, the other changes are not marked as held."""
    monkeypatch.setattr("certjob.domain.rules.MASS_REMINDER_LIMIT", 5)
    hlf, nhf = explained.organisation(portal=None), explained.organisation("nhf", portal=None)
    ended, *_ = (explained.certified_mentor(hlf, YESTERDAY) for _ in range(30))
    reminded, *_ = (explained.certified_mentor(nhf, IN_20_DAYS) for _ in range(22))
    held = night(explained.connection, dry_run=True, organisation="hlf").held

    assert list(explained.explain(ended).held) == held
    explained.page(ended, f"A guard holds changes: {held[0]}", "held back: certjob pauses the mentor")
    assert all(text.startswith("held back: ") for text in explained.next(ended).what)
    status, reminder = explained.next(reminded).what
    assert (status.startswith("held back: "), reminder.startswith("held back: ")) == (False, True)


# Deliveries.


def test_open_push_is_followed_until_the_portal_confirms(explained: Explained) -> None:
    """A queued push, its alert with the time of the retry, the confirmation, and a renewal after it."""
    mentor = explained.certified_mentor(explained.organisation(), YESTERDAY)
    review(explained.connection)
    queued = explained.next(mentor)
    assert queued.when == "today, with the next `certjob run` or `certjob deliver`"
    assert queued.what[0] == "the portal is asked to hide the mentor"

    explained.run(portal=FlakyPortal(failures=99))
    ((retry_at,),) = explained.connection.execute("SELECT next_attempt_at FROM portal_sync_events").fetchall()
    local = retry_at.astimezone(OSLO)
    coming = explained.next(mentor, today=local.date())
    assert (coming.at, coming.when) == (retry_at, f"today, at {local:%H:%M} or soon after")
    assert coming.what == ["the portal is asked again to hide the mentor"]
    explained.page(
        mentor, "Dynamics sync pending", f"certjob tries again at {local:%H:%M}", "Certificates", today=local.date()
    )
    make_due(explained)

    explained.run(portal=FlakyPortal())
    explained.page(mentor, "the portal last confirmed: hidden, ", "1 earlier failure, resolved")
    portal = explained.explain(mentor).portal
    assert portal
    assert (portal.wanted, portal.confirmed, portal.push, portal.resolved_failures) == (False, False, None, 1)
    explained.certificate(mentor, IN_700_DAYS, issued_on=TODAY)
    renewed = "Next: today, when `certjob run` runs: likeperson until "
    explained.page(mentor, renewed, "certjob lifts its pause; the portal is asked to show the mentor.")


def test_push_that_no_run_can_make_has_no_date(explained: Explained) -> None:
    """A blocked push has a command, a missing contact ID a warning, and a removed portal withdraws the push."""
    organisation = explained.organisation()
    blocked = explained.certified_mentor(organisation, TODAY - 100 * DAY, member_no="M 7")
    refusal = PermanentPortalError("the portal answered 404 contact_not_found", code=Cause.CONTACT_NOT_FOUND)
    explained.run(portal=FlakyPortal(failures=9, error=lambda: refusal))
    assert explained.explain(blocked).next is None
    step = "What to do: Correct the contact ID in the app; the next `certjob deliver` updates the portal."
    explained.page(blocked, "Dynamics has no contact with this ID.", step)

    missing = explained.certified_mentor(organisation, YESTERDAY, contact_id=None)
    hidden = explained.certified_mentor(organisation, YESTERDAY)
    explained.run(portal=FlakyPortal())
    explained.page(missing, "no contact ID, so certjob makes no pushes; add it")
    explained.connection.execute("UPDATE organisations SET portal = NULL")
    assert explained.next(missing).what == ["the queued push is withdrawn, because the organisation has no portal"]
    explained.run()
    assert explained.explain(missing).next is None
    explained.page(hidden, "hlf has lost its portal, so certjob makes no pushes", "last confirmed: hidden")


def test_changes_of_a_later_run_are_not_announced_for_today(explained: Explained) -> None:
    """Today's run only withdraws the hide; the next reminder, about another certificate, is due in six days."""
    mentor = explained.certified_mentor(explained.organisation(), YESTERDAY)
    explained.certificate(mentor, IN_20_DAYS, kind="course")
    explained.run()

    explained.connection.execute("UPDATE organisations SET portal = NULL")
    explained.connection.execute("UPDATE mentors SET review_on = '-infinity'")

    assert explained.next(mentor).what == ["the queued push is withdrawn, because the organisation has no portal"]


def test_queued_reminder_is_sent_or_cancelled_as_the_rules_say(explained: Explained) -> None:
    """A renewal cancels the queued reminder, and a more urgent one replaces it."""
    organisation = explained.organisation(portal=None)
    kept, renewed = (explained.certified_mentor(organisation, IN_20_DAYS) for _ in range(2))
    review(explained.connection)
    explained.certificate(renewed, IN_700_DAYS, issued_on=TODAY + DAY)

    reminder = "the queued reminder 30 days before the last day (30 March) is"
    assert explained.next(kept).what == [f"{reminder} sent"]
    explained.connection.execute("UPDATE mentors SET review_on = %s", (TODAY + DAY,))
    assert explained.next(renewed).what == [f"{reminder} cancelled: renewed"]
    urgent = explained.next(kept, today=TODAY + 6 * DAY)
    assert urgent.what == ["reminder 14 days before the last day (30 March)"]


def test_every_outcome_of_a_reminder_is_on_the_page(explained: Explained) -> None:
    """Sent, cancelled, not delivered with its reason, superseded; a reminder that will not be sent has a reason."""
    organisation = explained.organisation(portal=None)
    kept, renewed, replaced = (explained.certified_mentor(organisation, IN_20_DAYS) for _ in range(3))
    homeless = explained.certified_mentor(organisation, IN_20_DAYS, email=" ")
    review(explained.connection)
    explained.certificate(renewed, IN_700_DAYS, issued_on=TODAY + DAY)
    explained.connection.execute(
        "UPDATE certificates SET expires_on = expires_on - 6 WHERE mentor_id = %s", (replaced,)
    )
    explained.connection.execute("UPDATE cert_notification_log SET last_error = 'corrected since'")
    assert "corrected" not in explained.page(kept, "30 days before: queued ")

    explained.run()

    explained.page(kept, "30 days before: sent ")
    continued = "no reminder, because the next one, 11 March to 8 February 2028, continues it without a gap"
    assert continued in explained.page(renewed, "30 days before: cancelled: renewed")
    action = "There is no e-mail address.\nWhat to do: Enter it in the app"
    explained.page(homeless, action, "30 days before: not delivered (no address)", "the mentor has no e-mail address")
    explained.page(replaced, "30 days before: never sent: a more urgent one took its place")


# Who, and why.


def test_page_names_who_opened_a_pause_and_what_lifts_it(explained: Explained) -> None:
    """Open pauses come before lifted ones, with local times."""
    mentor = explained.certified_mentor(explained.organisation(portal=None), TODAY - 5 * DAY)
    explained.pause(mentor, reason="leave", actor="ola")
    explained.connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'ola'")
    explained.pause(mentor)
    explained.connection.execute("UPDATE mentor_pauses SET paused_at = '2026-03-08 23:30Z' WHERE reason = 'illness'")
    explained.run()

    explained.page(
        mentor,
        "Paused: illness, no valid certificate. Not certified: likeperson ended on 5 March, 5 days ago.",
        "illness, by coordinator since 9 March 00:30\ncertjob never lifts it; a coordinator does, in the app",
        "earlier: leave, by ola since ",
    )


def test_mentor_who_has_left_is_neither_reminded_nor_resumed(explained: Explained) -> None:
    left = explained.certified_mentor(explained.organisation(portal=None), TODAY - 5 * DAY)
    explained.run()

    explained.connection.execute("UPDATE mentors SET left_at = '2026-03-09 12:00+01' WHERE id = %s", (left,))

    explained.page(left, "Has left, on 9 March.", "it stays as it is while the mentor has left")
    explained.page(left, "likeperson until 5 March: no reminder, because the mentor has left")


def test_mentor_without_a_certificate_is_hidden_but_not_paused(explained: Explained) -> None:
    """An upcoming certificate does not count. The first one that has begun shows the mentor."""
    bare = explained.mentor(explained.organisation(), full_name=None, member_no="M1")
    page = explained.page(
        bare, "Active: no pause is open. Has never held", "They are hidden on the portal.", "to hide the mentor"
    )
    assert page.startswith("M1, HLF\n")
    explained.run(portal=FlakyPortal())
    explained.page(bare, "wanted: hidden", "the portal last confirmed: hidden")

    explained.certificate(bare, date(2028, 3, 20), issued_on=date(2026, 3, 20))
    explained.page(bare, "likeperson has not begun yet")
    document = explained.explain(bare).to_document()
    assert (document["without_certificate"], document["certified"]) == (True, False)

    explained.certificate(bare, IN_700_DAYS, issued_on=TODAY)
    assert explained.next(bare).what[-1] == "the portal is asked to show the mentor"


def test_new_mentor_without_contact_and_certificate_has_no_push(explained: Explained) -> None:
    bare = explained.mentor(explained.organisation(), contact_id=None)

    explained.run(portal=FlakyPortal())

    assert explained.explain(bare).next is None


def test_every_kind_of_certificate_is_judged_separately(explained: Explained) -> None:
    """An optional kind is marked, and a revocation has its local day."""
    organisation = explained.organisation(portal=None, optional_kinds=["course"])
    taught = explained.certified_mentor(organisation, TODAY + 300 * DAY)
    explained.certificate(taught, TODAY - 50 * DAY, kind="course")
    explained.certificate(taught, TODAY, kind="talk", revoked_at=datetime(2026, 3, 8, 23, 30, tzinfo=UTC))
    explained.run()

    explained.page(
        taught,
        "Not certified: ",
        "course ended on 19 January, 50 days ago (optional: it pauses no one); likeperson is in",
        "; talk was revoked.",
        "course, optional, 1 January 2024 to 19 January 2026: expired",
        "revoked on 9 March",
    )


# How it is printed.


def test_page_fits_the_terminal_whatever_was_entered(explained: Explained) -> None:
    """Hostile texts are harmless, and dates stay whole, at any width."""
    mentor = explained.certified_mentor(explained.organisation(), YESTERDAY, full_name=HOSTILE * 3)
    explained.certificate(mentor, TODAY + 100 * DAY, kind=HOSTILE, issued_on=TODAY - 5 * DAY)
    explained.pause(mentor, reason=HOSTILE, actor=HOSTILE)
    explained.run(portal=FlakyPortal(failures=99))
    for columns in (40, 80):
        output, shown = terminal(columns)

        show_explanation(output, explained.explain(mentor), zone=OSLO)

        text = without_escapes(shown.getvalue())
        assert all(cell_len(line) <= columns for line in text.splitlines())
        assert ("\x1b[2J" in shown.getvalue(), "\u202e" in text) == (False, False)
        assert "1 January 2024 to 9 March 2026: expired" in flat(text)


def test_command_prints_the_page_off_a_terminal(here: Certjob, explained: Explained) -> None:
    """It exits 0 with an empty stderr, and escapes control characters."""
    for slug in ("hlf", "nhf"):
        explained.certified_mentor(
            explained.organisation(slug), date(2099, 1, 31), member_no="M1", full_name="Kari\x1b[2J"
        )

    result = here("explain", "M1", "--organisation", "nhf")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Kari\ufffd[2J (M1), NHF\n")


def test_deleted_mentor_cannot_be_explained(explained: Explained) -> None:
    """A mentor who is deleted between the look-up and the read is an error."""
    with pytest.raises(UnknownMentorError, match="has been deleted"):
        explained.explain(uuid4())
