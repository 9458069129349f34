"""`certjob explain`: the story agrees with what the nights do, and says why."""

import json
import re
from collections import Counter, defaultdict
from datetime import date, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from rich.cells import cell_len

from certjob.cli.pages.explain import page_lines, show_story
from certjob.errors import FailureCode, PermanentPortalError, UnknownMentorError
from certjob.views.explain.document import to_document
from certjob.views.explain.history import MentorHistory
from certjob.views.explain.reader import read_story
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, review
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.programmes import random_programme
from tests.support.terminals import HOSTILE, assert_in_order, flat, terminal

OSLO = ZoneInfo("Europe/Oslo")
DAY = timedelta(days=1)
YESTERDAY, IN_20_DAYS, IN_700_DAYS = TODAY - DAY, TODAY + 20 * DAY, TODAY + 700 * DAY


def story_of(facts: Facts, mentor_id: UUID, *, today: date = TODAY) -> MentorHistory:
    return read_story(facts.connection, mentor_id, today=today, zone=OSLO)


def page(story: MentorHistory) -> str:
    """The page as it is off a terminal, without its indents."""
    return "\n".join(f"{line.bullet}{line.head}{line.text}" for line in page_lines(story))


def told(facts: Facts, mentor_id: UUID, *phrases: str, today: date = TODAY) -> str:
    """Return the page, which has these phrases in this order."""
    text = page(story_of(facts, mentor_id, today=today))
    assert_in_order(text, *phrases)
    return text


def next_kinds(facts: Facts, mentor_id: UUID, *, today: date = TODAY) -> list[str]:
    """What the very next steps are."""
    return [step.kind for step in story_of(facts, mentor_id, today=today).next_steps]


def document(story: MentorHistory) -> dict[str, Any]:
    """The JSON document as a program reads it."""
    read: dict[str, Any] = json.loads(json.dumps(to_document(story), default=str))
    return read


def run(facts: Facts, day: date = TODAY, **how: Any) -> None:
    """A night whose mail arrives."""
    night(facts.connection, day, **{"channel": CollectingChannel()} | how)


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
def test_the_nights_do_what_the_story_says_on_the_days_it_says(facts: Facts, seed: int) -> None:
    """On random data: 45 real nights, and for everybody each change, each reminder, each push is told beforehand."""
    random_programme(facts, seed=seed, mentors=60)
    ids = [str(row[0]) for row in facts.rows("SELECT id FROM mentors")]
    until = TODAY + 44 * DAY
    expected = {id_: [each for each in told_nights(story_of(facts, UUID(id_))) if each[0] <= until] for id_ in ids}
    done: dict[str, list[tuple[date, What]]] = defaultdict(list)
    before = noted(facts)

    for day in (TODAY + number * DAY for number in range(45)):
        run(facts, day, deliver=False, allow_mass_change=True)
        after = noted(facts)
        for mentor_id, rows in after.items():
            if what := Counter(row[:3] for row in rows - before[mentor_id]):
                done[mentor_id].append((day, what))
        before = after

    assert any(expected.values())
    assert {mentor: done[mentor] for mentor in expected} == expected


def test_the_next_date_is_that_of_the_first_thing_and_says_what(facts: Facts) -> None:
    """From reminder to reminder to the expiry, which pauses and hides; then nothing. The document has ids and dates."""
    mentor_id = facts.certified_mentor(facts.organisation(thresholds=[30, -1]), TODAY + 40 * DAY)
    run(facts, portal=FlakyPortal())
    read = document(story_of(facts, mentor_id))
    told(
        facts,
        mentor_id,
        "Kari Nordmann (M1001), HLF\nActive: no pause is open. Certified: likeperson is in force until 19 April.",
        "Next: on 20 March, in 10 days: likeperson until 19 April: valid → expiring; reminder 30 days before",
        "Certificates\n- likeperson, 1 January 2024 to 19 April 2026: valid\nits last day is 19 April, 40 days away",
        "Pauses\n- none is open",
        "to come: 30 days before (20 March), 1 day after (20 April)",
        "Portal\n- wanted: shown\n- the portal has confirmed nothing yet",
        "After that, if no fact changes\n- on 20 April, in 41 days: likeperson until 19 April: expiring → expired",
    )
    days: list[date] = []
    while steps := story_of(facts, mentor_id, today=days[-1] if days else TODAY).steps:
        days.append(steps[0].on)
        run(facts, days[-1], portal=FlakyPortal())

    assert (read["outcome"], read["today"], read["mentor"]["id"]) == ("ok", "2026-03-10", str(mentor_id))
    (certificate,) = read["certificates"]
    assert (certificate["status"], certificate["stored_status"]) == ("valid", "valid")
    assert (certificate["stored_on"], certificate["days_left"]) == ("2026-03-10", 40)
    what = ["likeperson until 19 April: valid → expiring", "reminder 30 days before the last day (19 April)"]
    assert read["next"] == {"on": "2026-03-20", "what": what}
    coming = [f"{step['on']} {step['kind']}" for step in read["coming"]]
    expiry = [f"2026-04-20 {kind}" for kind in ("status", "pause", "hide", "reminder")]
    assert coming == ["2026-03-20 status", "2026-03-20 reminder", *expiry]
    assert read["review"] == {"due": False, "on": "2026-03-20", "changes_something": False}
    assert days == [date(2026, 3, 20), date(2026, 4, 20)]
    told(facts, mentor_id, "Next: nothing, as long as no fact changes.", today=days[-1])


def test_what_is_stale_is_told_with_what_a_run_today_does(facts: Facts) -> None:
    """A certificate revoked since the last night: the page says today's truth, what is noted, and what a run does."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY + 200 * DAY)
    run(facts)
    facts.connection.execute("UPDATE certificates SET revoked_at = '2026-03-10 08:00+01'")

    told(
        facts,
        mentor_id,
        "Active: no pause is open. Not certified: likeperson was revoked.",
        "The stored state is not today's: a run today changes it.",
        "Next: today, when `certjob run` runs: likeperson until 26 September: valid → revoked; certjob pauses the "
        "mentor; the portal is asked to hide the mentor.",
        "likeperson, 1 January 2024 to 26 September 2026: revoked",
        "it was revoked on 10 March; stored as valid so far, a run today stores it",
    )


def test_what_makes_the_dates_doubtful_is_told(facts: Facts) -> None:
    """No night yet; nights that do not run; a day before the last night, which a run would refuse."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), IN_20_DAYS)
    never = "There has been no nightly run yet; the dates below need `certjob run` every night."
    told(facts, mentor_id, never, "not stored yet, a run today stores it")

    run(facts, deliver=False)
    assert "nightly run was" not in told(facts, mentor_id, today=TODAY + DAY)
    told(facts, mentor_id, "The last nightly run was for 10 March;", today=TODAY + 2 * DAY)

    run(facts, TODAY + 30 * DAY, deliver=False)
    refused = "A run today is refused, because the last nightly run was for 9 April; "
    told(facts, mentor_id, refused, "--allow-earlier-date")
    story = story_of(facts, mentor_id)  # everybody is due: what is stored for the later day is changed
    assert next_kinds(facts, mentor_id) == ["status", "resume", "reminder", "mail"]
    assert story.steps[0].on == TODAY
    assert story.next_steps[-1].text.endswith("is cancelled: not due")


def test_what_the_guards_hold_is_told_with_the_guards_line(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why is she not paused? Because so many would be; where only reminders are held, the rest goes on."""
    monkeypatch.setattr("certjob.domain.rules.MASS_REMINDER_LIMIT", 5)
    hlf, nhf = facts.organisation(portal=None), facts.organisation("nhf", portal=None)
    ended, *_ = (facts.certified_mentor(hlf, YESTERDAY) for _ in range(30))
    reminded, *_ = (facts.certified_mentor(nhf, IN_20_DAYS) for _ in range(22))
    held = night(facts.connection, dry_run=True, organisation="hlf").held

    story = story_of(facts, ended)
    assert ([story.held], document(story)["held"]) == (held, held)
    assert all(step.held for step in story.next_steps if step.kind != "guard")
    told(facts, ended, "--allow-mass-change", "held back: certjob pauses the mentor")
    steps = [(step.kind, step.held) for step in story_of(facts, reminded).next_steps]
    assert steps == [("guard", False), ("status", False), ("reminder", True)]
    told(facts, reminded, "30 days before (held back)")


# Deliveries that are still to come.


def test_a_push_is_told_from_the_wish_to_the_confirmation(facts: Facts) -> None:
    """Fresh, in work, failed with the time of its retry, due again, confirmed; a renewal since then is told instead."""
    mentor_id = facts.certified_mentor(facts.organisation(), YESTERDAY)
    review(facts.connection)
    fresh = told(facts, mentor_id, "It goes out with the next `certjob run` or `certjob deliver`.")
    assert "it has waited for more than an hour" not in fresh
    lease = "claim_token = {0}, next_attempt_at = now() + {1} * interval '5 min'"
    claims = f"UPDATE portal_sync_events SET {lease}; UPDATE cert_notification_log SET {lease}"
    facts.connection.execute(claims.format("gen_random_uuid()", 1).encode())
    told(facts, mentor_id, "is being asked to hide the mentor", "is being sent", "certjob is working on it right now.")
    facts.connection.execute(claims.format("NULL", 0).encode())

    run(facts, portal=FlakyPortal(failures=99))
    ((retry_at,),) = facts.connection.execute("SELECT next_attempt_at FROM portal_sync_events").fetchall()
    local = retry_at.astimezone(OSLO)
    step = next(step for step in story_of(facts, mentor_id, today=local.date()).steps if step.kind == "push")
    assert (step.on, step.at) == (local.date(), retry_at)
    again = f"{local:%H:%M} or soon after: the portal is asked again to hide the mentor"
    told(facts, mentor_id, again, today=local.date())
    make_due(facts)
    told(facts, mentor_id, "Next: today, with the next `certjob run` or `certjob deliver`: the portal is asked again")

    run(facts, portal=FlakyPortal())
    told(facts, mentor_id, "the portal last confirmed: hidden, ", "1 earlier failure, resolved")
    read = document(story_of(facts, mentor_id))["portal"]
    assert (read["wanted"], read["confirmed"], read["push"], read["resolved_failures"]) == (False, False, None, 1)
    facts.certificate(mentor_id, IN_700_DAYS, issued_on=TODAY)
    assert next_kinds(facts, mentor_id) == ["status", "status", "resume", "show"]


def test_a_push_that_no_night_can_make_is_told_without_a_date(facts: Facts) -> None:
    """Blocked, until a person acts, with the command; without a contact ID; for a portal that was given up."""
    organisation = facts.organisation()
    blocked = facts.certified_mentor(organisation, TODAY - 100 * DAY, member_no="M 7")
    refusal = PermanentPortalError("the portal answered 404 contact_not_found", code=FailureCode.CONTACT_NOT_FOUND)
    run(facts, portal=FlakyPortal(failures=9, error=lambda: refusal))
    assert story_of(facts, blocked).steps == []
    step = "What to do: correct the contact ID in the app, then `certjob resync 'M 7' --organisation hlf`."
    told(facts, blocked, "The portal has no contact with this ID.", step)
    assert document(story_of(facts, blocked))["portal"]["push"]["failure_kind"] == "permanent"

    missing = facts.certified_mentor(organisation, YESTERDAY, contact_id=None)
    told(facts, missing, "the portal is asked to hide the mentor, but there is no contact ID")
    hidden = facts.certified_mentor(organisation, YESTERDAY)
    review(facts.connection)
    told(facts, missing, "hide the mentor, but there is no contact ID", "no contact ID: nothing can be pushed; add it")
    run(facts, portal=FlakyPortal())

    facts.connection.execute("UPDATE organisations SET portal = NULL")
    assert next_kinds(facts, missing) == ["withdraw"]
    run(facts)
    assert facts.rows("SELECT status FROM portal_sync_events WHERE mentor_id = %s", missing) == [("withdrawn",)]
    assert story_of(facts, missing).steps == []
    told(facts, hidden, "hlf no longer has a portal: nothing is pushed", "the portal last confirmed: hidden")


def test_a_reminder_is_told_from_the_queue_to_its_end(facts: Facts) -> None:
    """As the mail stage asks the rules again: sent, cancelled because of a renewal, or not without an address."""
    organisation = facts.organisation(portal=None)
    kept, renewed = (facts.certified_mentor(organisation, IN_20_DAYS) for _ in range(2))
    homeless = facts.certified_mentor(organisation, IN_20_DAYS, email=" ")
    reminder = "reminder 30 days before the last day (30 March)"
    told(facts, homeless, f"{reminder}, but there is no e-mail address")
    review(facts.connection)
    facts.certificate(renewed, IN_700_DAYS, issued_on=TODAY + DAY)

    def mail(mentor_id: UUID) -> list[str]:
        return [step.text for step in story_of(facts, mentor_id).steps if step.kind == "mail"]

    assert mail(kept) == [f"the queued {reminder} is sent"]
    assert mail(renewed) == [f"the queued {reminder} is cancelled: renewed"]
    assert next_kinds(facts, kept, today=TODAY + 6 * DAY) == ["reminder"]  # a more urgent one takes its place
    replaced = facts.certified_mentor(organisation, IN_20_DAYS)
    review(facts.connection)
    facts.connection.execute("UPDATE certificates SET expires_on = expires_on - 6 WHERE mentor_id = %s", (replaced,))
    run(facts)
    told(facts, kept, "30 days before: sent ")
    continued = "none comes, the next one, 11 March to 8 February 2028, continues it without a gap"
    assert continued in told(facts, renewed, "30 days before: cancelled: renewed")
    failed = "30 days before: not delivered. There is no e-mail address. What to do: add the mentor's address"
    assert "there is no e-mail address: nothing can be sent" in told(facts, homeless, failed)
    told(facts, replaced, "30 days before: never sent: a more urgent one took its place")

    facts.connection.execute("UPDATE certificates SET expires_on = '2026-04-04' WHERE mentor_id = %s", (kept,))
    run(facts)  # in place: another cycle of the same reminder
    told(facts, kept, "likeperson until 4 April, 30 days before: sent", "before that, about 30 March: sent")
    assert [len(row["earlier"]) for row in document(story_of(facts, kept))["reminders"]] == [1]


# Who, and why.


def test_pauses_are_told_with_whose_they_are_and_what_lifts_them(facts: Facts) -> None:
    """certjob's own by a certificate, another only by a person; one that was lifted comes last. Times are Oslo's."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY - 5 * DAY)
    pause_id = facts.pause(mentor_id, reason="leave", actor="ola")
    facts.connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'ola' WHERE id = %s", (pause_id,))
    facts.pause(mentor_id)
    facts.connection.execute("UPDATE mentor_pauses SET paused_at = '2026-03-08 23:30Z' WHERE reason = 'illness'")
    run(facts)

    ended = "Paused: illness, no valid certificate. Not certified: likeperson ended on 5 March, 5 days ago."
    text = told(facts, mentor_id, ended)
    own = "certjob lifts it once likeperson is in force again; if a person lifts it before that,"
    assert re.search(f"no valid certificate, by certjob since .*\\n{own}", text)
    other = "illness, by coordinator since 9 March 00:30\ncertjob never lifts it; a coordinator does, in the app"
    assert_in_order(text, other, "earlier: leave, by ola since ")
    facts.certificate(mentor_id, IN_700_DAYS, issued_on=TODAY)
    told(facts, mentor_id, "every kind that counts is in force: a run today lifts it")


def test_who_is_watched_and_who_is_not(facts: Facts) -> None:
    """A mentor who has left; one without a certificate that counts, who is not called certified; an optional kind."""
    organisation = facts.organisation(portal=None, optional_kinds=["course"])
    left = facts.certified_mentor(organisation, TODAY - 5 * DAY)
    bare = facts.mentor(organisation, full_name=None, member_no="M1")
    taught = facts.certified_mentor(organisation, TODAY + 300 * DAY)
    facts.certificate(taught, TODAY - 50 * DAY, kind="course")
    run(facts)
    facts.connection.execute("UPDATE mentors SET left_at = '2026-03-09 12:00+01' WHERE id = %s", (left,))

    told(facts, left, "Has left, on 9 March.", "it stays as it is while the mentor has left")
    told(facts, left, "likeperson until 5 March: none comes, the mentor has left")
    assert told(facts, bare, "Holds no certificate that counts, so").startswith("M1, HLF\n")
    facts.certificate(bare, date(2028, 3, 20), issued_on=date(2026, 3, 20))
    told(facts, bare, "likeperson has not begun yet")
    read = document(story_of(facts, bare))
    assert (read["without_certificate"], read["certified"]) == (True, False)
    optional = "Certified: course ended on 19 January, 50 days ago (optional: it pauses nobody); likeperson is in"
    told(facts, taught, optional, "course, optional, 1 January 2024 to 19 January 2026: expired")


# How it is printed.


def test_a_terminal_gets_lines_that_fit_and_not_every_far_off_day(facts: Facts) -> None:
    """Whatever was entered, at any width; dates stay whole. --json, and the page off a terminal, leave nothing out."""
    organisation = facts.organisation(thresholds=list(range(0, 40, 2)))
    mentor_id = facts.certified_mentor(organisation, YESTERDAY, full_name=HOSTILE * 3)
    facts.certificate(mentor_id, TODAY + 100 * DAY, kind=HOSTILE, issued_on=TODAY - 5 * DAY)
    facts.pause(mentor_id, reason=HOSTILE, actor=HOSTILE)
    run(facts, portal=FlakyPortal(failures=99))
    story = story_of(facts, mentor_id)
    for columns in (40, 80):
        output, shown = terminal(columns)

        show_story(output, story)

        text = without_escapes(shown.getvalue())
        assert all(cell_len(line) <= columns for line in text.splitlines())
        assert ("\x1b[2J" in shown.getvalue(), "\u202e" in text) == (False, False)
        assert_in_order(flat(text), "1 January 2024 to 9 March 2026: expired", "more; --json has all of them")
    assert "9 March 2026" in text.replace("\n", "|")
    assert "more; --json" not in page(story)


def test_the_command_tells_the_story_off_a_terminal_in_whole_lines(here: Certjob, facts: Facts) -> None:
    """By member number, e-mail or id; exit 0, no colour, nothing on stderr; unknown or ambiguous: exit 2."""
    hlf, nhf = facts.organisation("hlf"), facts.organisation("nhf")
    mentor_id = facts.certified_mentor(hlf, date(2099, 1, 31), member_no="M1", full_name="Kari\x1b[2J")

    results = [here("explain", name) for name in ("M1", "m1@example.org", str(mentor_id))]

    assert {(result.stdout, result.returncode, result.stderr) for result in results} == {(results[0].stdout, 0, "")}
    assert results[0].stdout.startswith("Kari\ufffd[2J (M1), HLF\n")
    assert "\x1b" not in results[0].stdout
    facts.certified_mentor(nhf, date(2099, 1, 31), member_no="M1")
    assert_one_line(here("explain", "M1"), "M1 of hlf", "M1 of nhf", code=2, command="certjob explain")
    assert here("explain", "M1", "--organisation", "nhf").returncode == 0
    unknown = here("explain", "M2", "--json")
    assert_one_line(unknown, "no mentor 'M2'", code=2, command="certjob explain")
    assert json.loads(unknown.stdout)["error"]["code"] == "unknown_mentor"
    with pytest.raises(UnknownMentorError, match="does not exist any more"):  # deleted meanwhile
        story_of(facts, uuid4())


def test_a_reminder_that_waits_again_does_not_repeat_what_was_corrected(facts: Facts) -> None:
    """Once the address is there, `(no address)` would send people to look for another mistake."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=7))
    run(facts, channel=None)
    facts.connection.execute("UPDATE cert_notification_log SET last_error = 'no address'")

    assert "no address" not in told(facts, mentor_id, "7 days before: queued ")
