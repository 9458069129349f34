"""`certjob explain`: the story agrees with what the nights do, and says why."""

from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from certjob.cli.pages.explain import page_lines, show_story
from certjob.errors import FailureCode, PermanentPortalError, UnknownMentorError
from certjob.reports.explain.document import to_document
from certjob.reports.explain.history import MentorHistory
from certjob.reports.explain.reader import read_story
from tests.conftest import Certjob
from tests.support.command_line import without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, review
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.programmes import random_programme
from tests.support.terminals import HOSTILE, assert_in_order, flat, terminal

OSLO = ZoneInfo("Europe/Oslo")
DAY = timedelta(days=1)
YESTERDAY, IN_20_DAYS, IN_700_DAYS = TODAY - DAY, TODAY + 20 * DAY, TODAY + 700 * DAY


class Scene(Facts):
    """Facts, nights whose mail arrives, and what is told of a mentor."""

    def run(self, day: date = TODAY, **how: Any) -> None:
        night(self.connection, day, **{"channel": CollectingChannel()} | how)

    def story(self, mentor_id: UUID, *, today: date = TODAY) -> MentorHistory:
        return read_story(self.connection, mentor_id, today=today, zone=OSLO)

    def told(self, mentor_id: UUID, *phrases: str, today: date = TODAY) -> str:
        """Return the page as it is off a terminal, without its indents; it has these phrases in this order."""
        lines = page_lines(self.story(mentor_id, today=today))
        text = "\n".join(f"{line.bullet}{line.head}{line.text}" for line in lines)
        assert_in_order(text, *phrases)
        return text

    def next_kinds(self, mentor_id: UUID, *, today: date = TODAY) -> list[str]:
        """What the very next steps are."""
        return [step.kind for step in self.story(mentor_id, today=today).next_steps]

    def document(self, mentor_id: UUID) -> dict[str, Any]:
        return to_document(self.story(mentor_id))


@pytest.fixture
def scene(facts: Facts) -> Scene:
    return Scene(facts.connection)


# It agrees with the nights.


What = Counter[tuple[str, ...]]


def told_nights(story: MentorHistory) -> list[tuple[date, What]]:
    """What the story says of each coming night."""
    nights: dict[date, What] = defaultdict(Counter)
    for step in story.steps:
        if step.is_of_night:
            more = step.text.split()[-1] if step.kind == "status" else str(step.threshold_days or "")
            nights[step.on][step.kind, str(step.certificate_id or ""), more] += 1
    return sorted(nights.items())


def noted(facts: Facts) -> dict[str, set[tuple[str, ...]]]:
    """What nights have written so far, per mentor, each row with what makes it a new one."""
    rows = facts.rows(
        "SELECT mentor_id::text, 'status', certificate_id::text, to_status, id::text FROM certificate_transitions"
        " UNION ALL SELECT mentor_id::text, 'pause', '', '', id::text FROM mentor_pauses WHERE actor = 'certjob'"
        " UNION ALL SELECT mentor_id::text, 'resume', '', '', id::text FROM mentor_pauses WHERE lifted_by = 'certjob'"
        " UNION ALL SELECT mentor_id::text, 'reminder', cert_id::text, coalesce(nullif(threshold_days, 0)::text, ''),"
        " id || ' ' || jsonb_array_length(history) FROM cert_notification_log"
        " UNION ALL SELECT mentor_id::text, CASE WHEN status = 'withdrawn' THEN 'withdraw' WHEN visible THEN 'show'"
        " ELSE 'hide' END, '', '', id || ' ' || version FROM portal_sync_events"
    )
    found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for mentor_id, *rest in rows:
        found[str(mentor_id)].add(tuple(map(str, rest)))
    return found


@pytest.mark.parametrize("seed", range(2))
def test_the_nights_do_what_the_story_says_on_the_days_it_says(scene: Scene, seed: int) -> None:
    """On random data: 45 real nights, and for everybody each change, each reminder, each push is told beforehand."""
    random_programme(scene, seed=seed, mentors=60)
    days = [TODAY + number * DAY for number in range(45)]
    ids = [str(row[0]) for row in scene.rows("SELECT id FROM mentors")]
    expected = {id_: [each for each in told_nights(scene.story(UUID(id_))) if each[0] <= days[-1]] for id_ in ids}
    done: dict[str, list[tuple[date, What]]] = defaultdict(list)
    before = noted(scene)

    for day in days:
        scene.run(day, deliver=False, allow_mass_change=True)
        after = noted(scene)
        for mentor_id, rows in after.items():
            if what := Counter(row[:3] for row in rows - before[mentor_id]):
                done[mentor_id].append((day, what))
        before = after

    assert any(expected.values())
    assert {mentor: done[mentor] for mentor in expected} == expected


def test_the_next_date_is_that_of_the_first_thing_and_says_what(scene: Scene) -> None:
    """From reminder to reminder to the expiry, which pauses and hides; then nothing."""
    mentor_id = scene.certified_mentor(scene.organisation(thresholds=[30, -1]), TODAY + 40 * DAY)
    scene.run(portal=FlakyPortal())
    scene.told(
        mentor_id,
        "Kari Nordmann (M1001), HLF\nActive: no pause is open. Certified: likeperson is in force until 19 April.",
        "Next: on 20 March, in 10 days: likeperson until 19 April: valid → expiring; reminder 30 days before",
        "Certificates\n- likeperson, 1 January 2024 to 19 April 2026: valid\nits last day is 19 April, 40 days away",
        "Pauses\n- none is open",
        "to come: 30 days before (20 March), 1 day after (20 April)",
        "Portal\n- wanted: shown\n- the portal has confirmed nothing yet",
        "After that, if no fact changes\n- on 20 April, in 41 days: likeperson until 19 April: expiring → expired",
    )
    read, days = scene.document(mentor_id), (TODAY + 10 * DAY, TODAY + 41 * DAY)
    assert (read["certificates"][0]["stored_on"], read["certificates"][0]["days_left"]) == (TODAY, 40)
    assert (read["next"]["on"], len(read["next"]["what"])) == (days[0], 2)
    assert read["review"] == {"due": False, "on": days[0], "changes_something": False}
    assert [step["on"] for step in read["coming"]] == [days[0]] * 2 + [days[1]] * 4
    for on, kinds in zip(days, (["status", "reminder"], ["status", "pause", "hide", "reminder"]), strict=True):
        assert scene.next_kinds(mentor_id, today=on - DAY) == kinds
        scene.run(on, portal=FlakyPortal())
    scene.told(mentor_id, "Next: nothing, as long as no fact changes.", today=days[1])


def test_what_makes_the_dates_doubtful_is_told(scene: Scene) -> None:
    """No night yet; nights that do not run; a day before the last night, which a run would refuse."""
    mentor_id = scene.certified_mentor(scene.organisation(portal=None), IN_20_DAYS)
    scene.told(mentor_id, "There has been no nightly run yet;", "not stored yet, a run today stores it")

    scene.run(deliver=False)
    assert "nightly run was" not in scene.told(mentor_id, today=TODAY + DAY)
    scene.told(mentor_id, "The last nightly run was for 10 March;", today=TODAY + 2 * DAY)

    scene.run(TODAY + 30 * DAY, deliver=False)
    scene.told(mentor_id, "A run today is refused, because the last nightly run was for 9 April; ", "--allow-earlier")
    steps = scene.story(mentor_id).next_steps  # everybody is due: what is stored for the later day is changed
    assert [step.kind for step in steps] == ["status", "resume", "reminder", "mail"]
    assert (steps[0].on, steps[-1].text.endswith("is cancelled: not due")) == (TODAY, True)


def test_what_the_guards_hold_is_told_with_the_guards_line(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why is she not paused? Because so many would be; where only reminders are held, the rest goes on."""
    monkeypatch.setattr("certjob.domain.rules.MASS_REMINDER_LIMIT", 5)
    hlf, nhf = scene.organisation(portal=None), scene.organisation("nhf", portal=None)
    ended, *_ = (scene.certified_mentor(hlf, YESTERDAY) for _ in range(30))
    reminded, *_ = (scene.certified_mentor(nhf, IN_20_DAYS) for _ in range(22))
    held = night(scene.connection, dry_run=True, organisation="hlf").held

    assert scene.document(ended)["held"] == held
    assert all(step.held for step in scene.story(ended).next_steps if step.kind != "guard")
    scene.told(ended, "--allow-mass-change", "held back: certjob pauses the mentor")
    steps = [(step.kind, step.held) for step in scene.story(reminded).next_steps]
    assert steps == [("guard", False), ("status", False), ("reminder", True)]
    scene.told(reminded, "30 days before (held back)")


# Deliveries that are still to come.


def test_a_push_is_told_from_the_wish_to_the_confirmation(scene: Scene) -> None:
    """Fresh, in work, failed with the time of its retry, due again, confirmed; a renewal since then is told instead."""
    mentor_id = scene.certified_mentor(scene.organisation(), YESTERDAY)
    review(scene.connection)
    scene.told(mentor_id, "It goes out with the next `certjob run` or `certjob deliver`.")
    lease = "claim_token = {0}, next_attempt_at = now() + {1} * interval '5 min'"
    claims = f"UPDATE portal_sync_events SET {lease}; UPDATE cert_notification_log SET {lease}"
    scene.connection.execute(claims.format("gen_random_uuid()", 1).encode())
    scene.told(mentor_id, "is being asked to hide the mentor", "is being sent", "certjob is working on it right now.")
    scene.connection.execute(claims.format("gen_random_uuid()", -1).encode())
    assert "is being" not in scene.told(mentor_id), "whoever died works on nothing"
    scene.connection.execute(claims.format("NULL", 0).encode())

    scene.run(portal=FlakyPortal(failures=99))
    ((retry_at,),) = scene.connection.execute("SELECT next_attempt_at FROM portal_sync_events").fetchall()
    local = retry_at.astimezone(OSLO)
    step = next(step for step in scene.story(mentor_id, today=local.date()).steps if step.kind == "push")
    assert (step.on, step.at) == (local.date(), retry_at)
    scene.told(mentor_id, f"{local:%H:%M} or soon after: the portal is asked again to hide", today=local.date())
    make_due(scene)  # docs/commands.md has the page of one that is due again

    scene.run(portal=FlakyPortal())
    scene.told(mentor_id, "the portal last confirmed: hidden, ", "1 earlier failure, resolved")
    read = scene.document(mentor_id)["portal"]
    assert (read["wanted"], read["confirmed"], read["push"], read["resolved_failures"]) == (False, False, None, 1)
    scene.certificate(mentor_id, IN_700_DAYS, issued_on=TODAY)
    assert scene.next_kinds(mentor_id) == ["status", "status", "resume", "show"]
    stale = "The stored state is not today's: a run today changes it.\n\nNext: today, when `certjob run` runs: "
    scene.told(
        mentor_id, stale, "certjob lifts its pause; the portal", "stored as expired so far, a run today stores it"
    )
    review(scene.connection)
    scene.told(mentor_id, "for the portal to show this mentor; may still be hidden")


def test_a_push_that_no_night_can_make_is_told_without_a_date(scene: Scene) -> None:
    """Blocked, until a person acts, with the command; without a contact ID; for a portal that was given up."""
    organisation = scene.organisation()
    blocked = scene.certified_mentor(organisation, TODAY - 100 * DAY, member_no="M 7")
    refusal = PermanentPortalError("the portal answered 404 contact_not_found", code=FailureCode.CONTACT_NOT_FOUND)
    scene.run(portal=FlakyPortal(failures=9, error=lambda: refusal))
    assert scene.story(blocked).steps == []
    step = "What to do: correct the contact ID in the app, then `certjob resync 'M 7' --organisation hlf`."
    scene.told(blocked, "The portal has no contact with this ID.", step)

    missing = scene.certified_mentor(organisation, YESTERDAY, contact_id=None)
    hidden = scene.certified_mentor(organisation, YESTERDAY)
    without = "hide the mentor, but there is no contact ID"
    scene.told(missing, without)
    review(scene.connection)
    scene.told(missing, without, "no contact ID: nothing can be pushed; add it")
    scene.run(portal=FlakyPortal())

    scene.connection.execute("UPDATE organisations SET portal = NULL")
    assert scene.next_kinds(missing) == ["withdraw"]
    scene.run()
    assert scene.story(missing).steps == []
    scene.told(hidden, "hlf no longer has a portal: nothing is pushed", "the portal last confirmed: hidden")


def test_a_reminder_is_told_from_the_queue_to_its_end(scene: Scene) -> None:
    """As the mail stage asks the rules again: sent, cancelled because of a renewal, or not without an address."""
    organisation = scene.organisation(portal=None)
    kept, renewed, replaced = (scene.certified_mentor(organisation, IN_20_DAYS) for _ in range(3))
    homeless = scene.certified_mentor(organisation, IN_20_DAYS, email=" ")
    reminder = "reminder 30 days before the last day (30 March)"
    scene.told(homeless, f"{reminder}, but there is no e-mail address")
    review(scene.connection)
    scene.certificate(renewed, IN_700_DAYS, issued_on=TODAY + DAY)

    for mentor_id, becomes in ((kept, "sent"), (renewed, "cancelled: renewed")):
        assert [step.text for step in scene.story(mentor_id).steps if step.kind == "mail"] == [
            f"the queued {reminder} is {becomes}"
        ]
    assert scene.next_kinds(kept, today=TODAY + 6 * DAY) == ["reminder"]  # a more urgent one takes its place
    scene.connection.execute("UPDATE certificates SET expires_on = expires_on - 6 WHERE mentor_id = %s", (replaced,))
    scene.connection.execute("UPDATE cert_notification_log SET last_error = 'what has been corrected since'")
    assert "corrected" not in scene.told(kept, "30 days before: queued ")
    scene.run()
    scene.told(kept, "30 days before: sent ")
    continued = "none comes, the next one, 11 March to 8 February 2028, continues it without a gap"
    assert continued in scene.told(renewed, "30 days before: cancelled: renewed")
    failed = "30 days before: not delivered. There is no e-mail address. What to do: add the mentor's address"
    scene.told(homeless, failed, "there is no e-mail address: nothing can be sent")
    scene.told(replaced, "30 days before: never sent: a more urgent one took its place")

    scene.connection.execute("UPDATE certificates SET expires_on = '2026-04-04' WHERE mentor_id = %s", (kept,))
    scene.run()  # in place: another cycle of the same reminder
    scene.told(kept, "likeperson until 4 April, 30 days before: sent", "before that, about 30 March: sent")


# Who, and why.


def test_pauses_are_told_with_whose_they_are_and_what_lifts_them(scene: Scene) -> None:
    """docs/commands.md has the page of certjob's own; what was lifted comes last. Times are those of Oslo."""
    mentor_id = scene.certified_mentor(scene.organisation(portal=None), TODAY - 5 * DAY)
    scene.pause(mentor_id, reason="leave", actor="ola")
    scene.connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'ola'")
    scene.pause(mentor_id)
    scene.connection.execute("UPDATE mentor_pauses SET paused_at = '2026-03-08 23:30Z' WHERE reason = 'illness'")
    scene.run()

    ended = "Paused: illness, no valid certificate. Not certified: likeperson ended on 5 March, 5 days ago."
    other = "illness, by coordinator since 9 March 00:30\ncertjob never lifts it; a coordinator does, in the app"
    scene.told(mentor_id, ended, other, "earlier: leave, by ola since ")
    scene.certificate(mentor_id, IN_700_DAYS, issued_on=TODAY)
    scene.told(mentor_id, "every kind that counts is in force: a run today lifts it")


def test_who_is_watched_and_who_is_not(scene: Scene) -> None:
    """A mentor who has left; one without a certificate that counts, who is not called certified; an optional kind."""
    organisation = scene.organisation(portal=None, optional_kinds=["course"])
    left = scene.certified_mentor(organisation, TODAY - 5 * DAY)
    bare = scene.mentor(organisation, full_name=None, member_no="M1")
    taught = scene.certified_mentor(organisation, TODAY + 300 * DAY)
    scene.certificate(taught, TODAY - 50 * DAY, kind="course")
    revoked_at = datetime(2026, 3, 8, 23, 30, tzinfo=UTC)  # in Oslo the day after
    scene.certificate(taught, TODAY, kind="talk", revoked_at=revoked_at)
    scene.run()
    scene.connection.execute("UPDATE mentors SET left_at = '2026-03-09 12:00+01' WHERE id = %s", (left,))

    scene.told(left, "Has left, on 9 March.", "it stays as it is while the mentor has left")
    scene.told(left, "likeperson until 5 March: none comes, the mentor has left")
    assert scene.told(bare, "Holds no certificate that counts, so").startswith("M1, HLF\n")
    scene.certificate(bare, date(2028, 3, 20), issued_on=date(2026, 3, 20))
    scene.told(bare, "likeperson has not begun yet")
    read = scene.document(bare)
    assert (read["without_certificate"], read["certified"]) == (True, False)
    optional = "course ended on 19 January, 50 days ago (optional: it pauses nobody); likeperson is in"
    scene.told(
        taught,
        "Not certified: ",
        optional,
        "; talk was revoked.",
        "course, optional, 1 January 2024 to 19 January 2026: expired",
        "revoked on 9 March",
    )


# How it is printed.


def test_a_terminal_gets_lines_that_fit_and_not_every_far_off_day(scene: Scene) -> None:
    """Whatever was entered, at any width; dates stay whole. --json, and the page off a terminal, leave nothing out."""
    organisation = scene.organisation(thresholds=list(range(0, 40, 2)))
    mentor_id = scene.certified_mentor(organisation, YESTERDAY, full_name=HOSTILE * 3)
    scene.certificate(mentor_id, TODAY + 100 * DAY, kind=HOSTILE, issued_on=TODAY - 5 * DAY)
    scene.pause(mentor_id, reason=HOSTILE, actor=HOSTILE)
    scene.run(portal=FlakyPortal(failures=99))
    for columns in (40, 80):
        output, shown = terminal(columns)

        show_story(output, scene.story(mentor_id))

        text = without_escapes(shown.getvalue())
        assert all(cell_len(line) <= columns for line in text.splitlines())
        assert ("\x1b[2J" in shown.getvalue(), "\u202e" in text) == (False, False)
        assert_in_order(flat(text), "1 January 2024 to 9 March 2026: expired", "more; --json has all of them")
    assert "more; --json" not in scene.told(mentor_id)


def test_the_command_tells_the_story_off_a_terminal(here: Certjob, scene: Scene) -> None:
    """Exit 0, no colour, nothing on stderr; one who is deleted meanwhile is said so."""
    for slug in ("hlf", "nhf"):
        scene.certified_mentor(scene.organisation(slug), date(2099, 1, 31), member_no="M1", full_name="Kari\x1b[2J")

    result = here("explain", "M1", "--organisation", "nhf")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Kari\ufffd[2J (M1), NHF\n")
    with pytest.raises(UnknownMentorError, match="does not exist any more"):
        scene.story(uuid4())
