"""`certjob explain`: the story agrees with what the nights do, says why, and touches nothing."""

import json
import re
from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import psycopg
import pytest
from rich.cells import cell_len

from certjob import database
from certjob.cli.pages.explain import page_lines, show_story
from certjob.database import Connection
from certjob.errors import FailureCode, PermanentPortalError, UnknownMentorError
from certjob.views.explain.document import to_document
from certjob.views.explain.history import MentorHistory
from certjob.views.explain.reader import read_story
from tests.conftest import Certjob
from tests.support.command_line import assert_one_line, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.intents import make_due, review
from tests.support.nights import CollectingChannel, FlakyPortal, night
from tests.support.programmes import everything, random_programme
from tests.support.terminals import HOSTILE, assert_in_order, flat, terminal

OSLO = ZoneInfo("Europe/Oslo")


def story_of(connection: Connection, mentor_id: UUID, *, today: date = TODAY) -> MentorHistory:
    return read_story(connection, mentor_id, today=today, zone=OSLO)


def page(story: MentorHistory) -> str:
    """The page as it is off a terminal, without its indents."""
    return "\n".join(f"{line.bullet}{line.head}{line.text}" for line in page_lines(story))


def told(connection: Connection, mentor_id: UUID, *, today: date = TODAY) -> str:
    return page(story_of(connection, mentor_id, today=today))


def document(story: MentorHistory) -> dict[str, Any]:
    """The JSON document as a program reads it."""
    read: dict[str, Any] = json.loads(json.dumps(to_document(story), default=str))
    return read


# It agrees with the nights.


What = Counter[tuple[str, ...]]


def told_nights(story: MentorHistory) -> list[tuple[date, What]]:
    """What the story says of each coming night."""
    nights: dict[date, What] = defaultdict(Counter)
    for step in story.steps:
        if not step.is_of_night:
            continue
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
def test_the_nights_do_what_the_story_says_on_the_days_it_says(connection: Connection, facts: Facts, seed: int) -> None:
    """On random data: 45 real nights, and for everybody each change, each reminder, each push is told beforehand."""
    random_programme(facts, seed=seed, mentors=60)
    ids = [UUID(str(row[0])) for row in facts.rows("SELECT id FROM mentors")]
    until = TODAY + timedelta(days=44)
    expected = {}
    for mentor_id in ids:
        expected[str(mentor_id)] = [each for each in told_nights(story_of(connection, mentor_id)) if each[0] <= until]
    done: dict[str, list[tuple[date, What]]] = defaultdict(list)
    before = noted(facts)

    for number in range(45):
        day = TODAY + timedelta(days=number)
        night(connection, day, deliver=False, allow_mass_change=True)
        after = noted(facts)
        for mentor_id_, rows in after.items():
            if what := Counter(row[:3] for row in rows - before[mentor_id_]):
                done[mentor_id_].append((day, what))
        before = after

    assert any(expected.values())
    assert {mentor: done[mentor] for mentor in expected} == expected


def test_the_next_date_is_that_of_the_first_thing_and_says_what(connection: Connection, facts: Facts) -> None:
    """From reminder to reminder to the expiry, which pauses and hides; then nothing."""
    mentor_id = facts.certified_mentor(facts.organisation(thresholds=[30, -1]), TODAY + timedelta(days=40))
    seen = []
    today = TODAY
    while True:
        night(connection, today, portal=FlakyPortal(), channel=CollectingChannel())
        story = story_of(connection, mentor_id, today=today)
        if not story.steps:
            break
        today = story.steps[0].on
        seen.append((today, [step.kind for step in story.next_steps]))

    assert seen == [
        (date(2026, 3, 20), ["status", "reminder"]),
        (date(2026, 4, 20), ["status", "pause", "hide", "reminder"]),
    ]
    assert "Next: nothing, as long as no fact changes." in page(story)


def test_what_is_stale_is_told_with_what_a_run_today_does(connection: Connection, facts: Facts) -> None:
    """A certificate revoked since the last night: the page says today's truth, what is noted, and what a run does."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=200))
    night(connection)
    facts.connection.execute("UPDATE certificates SET revoked_at = '2026-03-10 08:00+01'")

    text = told(connection, mentor_id)

    assert_in_order(
        text,
        "Active: no pause is open. Not certified: likeperson was revoked.",
        "The stored state is not today's: a run today changes it.",
        "Next: today, when `certjob run` runs: likeperson until 26 September: valid → revoked; certjob pauses the "
        "mentor; the portal is asked to hide the mentor.",
        "likeperson, 1 January 2024 to 26 September 2026: revoked",
        "it was revoked on 10 March; stored as valid so far, a run today stores it",
    )


def test_what_makes_the_dates_doubtful_is_told(connection: Connection, facts: Facts) -> None:
    """No night yet; nights that do not run; a day before the last night, which a run would refuse."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY + timedelta(days=20))
    text = told(connection, mentor_id)
    assert "There has been no nightly run yet; the dates below need `certjob run` every night." in text
    assert "not stored yet, a run today stores it" in text

    night(connection, deliver=False)
    assert "nightly run was" not in told(connection, mentor_id, today=TODAY + timedelta(days=1))
    assert "The last nightly run was for 10 March;" in told(connection, mentor_id, today=TODAY + timedelta(days=2))

    night(connection, TODAY + timedelta(days=30), deliver=False)
    text = told(connection, mentor_id)
    assert "A run today is refused, because the last nightly run was for 9 April; " in text
    assert "--allow-earlier-date" in text
    story = story_of(connection, mentor_id)  # everybody is due: what is stored for the later day is changed
    assert [step.kind for step in story.next_steps] == ["status", "resume", "reminder", "mail"]
    assert story.steps[0].on == TODAY
    assert story.next_steps[-1].text.endswith("is cancelled: not due")


def test_what_the_guards_hold_is_told_with_the_guards_line(connection: Connection, facts: Facts) -> None:
    """Why is she not paused? Because so many would be; the story says so and which command lets it through."""
    organisation = facts.organisation(portal=None)
    mentors = [facts.certified_mentor(organisation, TODAY - timedelta(days=1)) for _ in range(30)]
    held = night(connection, dry_run=True).held

    story = story_of(connection, mentors[0])

    assert [story.held] == held
    assert "--allow-mass-change" in page(story)
    assert all(step.held for step in story.next_steps if step.kind != "guard")
    assert "held back: certjob pauses the mentor" in page(story)
    assert document(story)["held"] == held


def test_when_only_the_reminders_are_held_the_rest_is_not(
    connection: Connection, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State goes on, the reminder waits."""
    monkeypatch.setattr("certjob.domain.rules.MASS_REMINDER_LIMIT", 5)
    organisation = facts.organisation(portal=None)
    mentors = [facts.certified_mentor(organisation, TODAY + timedelta(days=20)) for _ in range(22)]

    story = story_of(connection, mentors[0])

    assert [(step.kind, step.held) for step in story.next_steps] == [
        ("guard", False),
        ("status", False),
        ("reminder", True),
    ]
    assert "30 days before (held back)" in page(story)


# Deliveries that are still to come.


def test_a_push_that_failed_is_told_with_its_time(connection: Connection, facts: Facts) -> None:
    """The retry is the next thing, at the time of the row; once it is due, with the next run or deliver."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1), full_name="Kari Nordmann")
    night(connection, portal=FlakyPortal(failures=99))
    retry_at = datetime.fromisoformat(str(facts.rows("SELECT next_attempt_at FROM portal_sync_events")[0][0]))

    story = story_of(connection, mentor_id, today=retry_at.astimezone(OSLO).date())

    step = next(step for step in story.steps if step.kind == "push")
    assert (step.on, step.at) == (retry_at.astimezone(OSLO).date(), retry_at)
    assert f"{retry_at.astimezone(OSLO):%H:%M} or soon after: the portal is asked again to hide the mentor" in page(
        story
    )
    make_due(facts)
    text = told(connection, mentor_id)
    assert "Next: today, with the next `certjob run` or `certjob deliver`: the portal is asked again to hide" in text
    assert_in_order(
        text,
        "wanted: hidden",
        "the portal has confirmed nothing yet",
        "for the portal to hide this mentor; may still be visible",
        "The portal did not answer or could not make the change.",
        "What to do: nothing; certjob tries again automatically",
        "3 calls so far: connection reset",
    )


def test_a_blocked_push_waits_for_a_person_and_no_date_is_told(connection: Connection, facts: Facts) -> None:
    """What to do is said, with the command; nothing comes by itself."""
    organisation = facts.organisation()
    mentor_id = facts.certified_mentor(organisation, TODAY - timedelta(days=100), member_no="M 7")
    refuses = FlakyPortal(
        failures=9,
        error=lambda: PermanentPortalError(
            "the portal answered 404 contact_not_found", code=FailureCode.CONTACT_NOT_FOUND
        ),
    )
    night(connection, portal=refuses)

    story = story_of(connection, mentor_id)

    assert story.steps == []
    text = page(story)
    assert "The portal has no contact with this ID." in text
    assert "What to do: correct the contact ID in the app, then `certjob resync 'M 7' --organisation hlf`." in text
    assert document(story)["portal"]["push"]["failure_kind"] == "permanent"


def test_what_the_portal_last_acknowledged_is_told(connection: Connection, facts: Facts) -> None:
    """Hidden, when, and that the trouble before it is over."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
    night(connection, portal=FlakyPortal(failures=3), channel=CollectingChannel())
    make_due(facts)
    night(connection, portal=FlakyPortal(), channel=CollectingChannel())

    story = story_of(connection, mentor_id)

    assert "the portal last confirmed: hidden, " in page(story)
    assert "1 earlier failure, all resolved" in page(story)
    read = document(story)["portal"]
    assert (read["wanted"], read["confirmed"], read["push"], read["resolved_failures"]) == (False, False, None, 1)


def test_a_fresh_wish_is_no_trouble_and_a_newer_one_overtakes_it(connection: Connection, facts: Facts) -> None:
    """It goes out with the next run or deliver; a renewal since then shows, which is told instead."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
    review(connection)
    text = told(connection, mentor_id)
    assert "It goes out with the next `certjob run` or `certjob deliver`." in text
    assert "it has waited for more than an hour" not in text

    facts.certificate(mentor_id, TODAY + timedelta(days=700), issued_on=TODAY)
    kinds = [step.kind for step in story_of(connection, mentor_id).next_steps]
    assert kinds == ["status", "status", "resume", "show", "mail"]


def test_a_lost_portal_withdraws_the_push(connection: Connection, facts: Facts) -> None:
    """The run today does it, and no call is told of; what it confirmed last may still be what it shows."""
    organisation = facts.organisation()
    told_of = facts.certified_mentor(organisation, TODAY - timedelta(days=1))
    night(connection, portal=FlakyPortal(), channel=CollectingChannel())
    mentor_id = facts.certified_mentor(organisation, TODAY - timedelta(days=1))
    night(connection, channel=CollectingChannel())
    facts.connection.execute("UPDATE organisations SET portal = NULL")

    assert [step.kind for step in story_of(connection, mentor_id).next_steps] == ["withdraw"]
    night(connection, channel=CollectingChannel())
    assert facts.rows("SELECT status FROM portal_sync_events WHERE mentor_id = %s", mentor_id) == [("withdrawn",)]
    assert story_of(connection, mentor_id).steps == []
    text = told(connection, told_of)
    assert "hlf no longer has a portal: nothing is pushed" in text
    assert "the portal last confirmed: hidden" in text


def test_a_queued_reminder_goes_out_or_is_cancelled_as_it_is_told(connection: Connection, facts: Facts) -> None:
    """As the mail stage asks the rules again: sent, or cancelled because of a renewal."""
    organisation = facts.organisation(portal=None)
    kept, renewed = (facts.certified_mentor(organisation, TODAY + timedelta(days=20)) for _ in range(2))
    review(connection)
    facts.certificate(renewed, TODAY + timedelta(days=700), issued_on=TODAY + timedelta(days=1))

    def mail(mentor_id: UUID) -> list[str]:
        return [step.text for step in story_of(connection, mentor_id).steps if step.kind == "mail"]

    assert mail(kept) == ["the queued reminder 30 days before the last day, 30 March is sent"]
    assert mail(renewed) == ["the queued reminder 30 days before the last day, 30 March is cancelled: renewed"]
    channel = CollectingChannel()
    night(connection, channel=channel)
    assert [message.mentor_id for message in channel.sent] == [kept]
    assert "30 days before: sent " in told(connection, kept)
    assert "30 days before: cancelled: renewed" in told(connection, renewed)
    assert "none comes, the next one, 11 March to 8 February 2028, continues it without a gap" in told(
        connection, renewed
    )


def test_a_more_urgent_reminder_takes_the_place_of_a_queued_one(connection: Connection, facts: Facts) -> None:
    """As a run today would: the older one is not told to be sent."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY + timedelta(days=20))
    review(connection)

    story = story_of(connection, mentor_id, today=TODAY + timedelta(days=6))

    assert [(step.kind, step.threshold_days) for step in story.next_steps] == [("reminder", 14)]
    night(connection, TODAY + timedelta(days=6), channel=CollectingChannel())
    assert "30 days before: never sent: a more urgent one took its place" in told(connection, mentor_id)


def test_what_is_in_work_is_told_as_such(connection: Connection, facts: Facts) -> None:
    """A live lease of another run, for the push and for the mail."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1))
    review(connection)
    for table in ("portal_sync_events", "cert_notification_log"):
        facts.connection.execute(
            f"UPDATE {table} SET claim_token = gen_random_uuid(), next_attempt_at = now() + '5 min'".encode()
        )

    text = told(connection, mentor_id)

    assert "the portal is being asked to hide the mentor" in text
    assert "the queued reminder 1 day after the last day, 9 March is being sent" in text
    assert "certjob is working on it right now." in text


def test_without_a_contact_id_no_push_is_promised(connection: Connection, facts: Facts) -> None:
    """Neither the one to come nor the one that is queued; and what to do is said."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1), contact_id=None)

    assert "the portal is asked to hide the mentor, but there is no contact ID" in told(connection, mentor_id)
    review(connection)
    text = told(connection, mentor_id)
    assert "the portal is asked to hide the mentor, but there is no contact ID" in text
    assert "there is no contact ID: nothing can be pushed; add it in the app" in text


def test_reminders_without_an_address_are_told_to_fail(connection: Connection, facts: Facts) -> None:
    """Before the night and after it, with what to do."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY + timedelta(days=20), email=" ")

    assert "reminder 30 days before the last day, 30 March, but there is no e-mail address" in told(
        connection, mentor_id
    )
    night(connection, channel=CollectingChannel())
    text = told(connection, mentor_id)
    assert "30 days before: not delivered. There is no e-mail address. What to do: add the mentor's address" in text
    assert "there is no e-mail address: nothing can be sent" in text


def test_earlier_cycles_of_a_reminder_are_told(connection: Connection, facts: Facts) -> None:
    """A certificate extended in place: the same threshold about the old date and about the new one."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY + timedelta(days=20))
    night(connection, channel=CollectingChannel())
    facts.connection.execute("UPDATE certificates SET expires_on = %s", (TODAY + timedelta(days=25),))
    night(connection, channel=CollectingChannel())

    story = story_of(connection, mentor_id)

    assert_in_order(page(story), "likeperson until 4 April, 30 days before: sent", "before that, about 30 March: sent")
    assert [len(row["earlier"]) for row in document(story)["reminders"]] == [1]


# Who, and why.


def test_pauses_are_told_with_whose_they_are_and_what_lifts_them(connection: Connection, facts: Facts) -> None:
    """certjob's own by a certificate, another only by a person; one that was lifted comes last."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), TODAY - timedelta(days=5))
    pause_id = facts.pause(mentor_id, reason="leave", actor="ola")
    facts.connection.execute("UPDATE mentor_pauses SET lifted_at = now(), lifted_by = 'ola' WHERE id = %s", (pause_id,))
    facts.pause(mentor_id, reason="illness", actor="coordinator")
    night(connection)

    text = told(connection, mentor_id)

    assert "Paused: illness, no valid certificate. Not certified: likeperson ended on 5 March, 5 days ago." in text
    own = "certjob lifts it once likeperson is in force again; if a person lifts it before that,"
    assert re.search(f"no valid certificate, by certjob since .*\\n{own}", text)
    assert re.search("illness, by coordinator since .*\\ncertjob never lifts it; a coordinator does, in the app", text)
    assert text.index("earlier: leave, by ola since ") > text.index("illness, by coordinator")
    facts.certificate(mentor_id, TODAY + timedelta(days=700), issued_on=TODAY)
    assert "every kind that counts is in force: a run today lifts it" in told(connection, mentor_id)


def test_who_is_watched_and_who_is_not(connection: Connection, facts: Facts) -> None:
    """A mentor who has left; one without a certificate that counts, who is not called certified; an optional kind."""
    organisation = facts.organisation(portal=None, optional_kinds=["course"])
    left = facts.certified_mentor(organisation, TODAY - timedelta(days=5))
    bare = facts.mentor(organisation, full_name=None, member_no="M1")
    taught = facts.certified_mentor(organisation, TODAY + timedelta(days=300))
    facts.certificate(taught, TODAY - timedelta(days=50), kind="course")
    night(connection, channel=CollectingChannel())
    facts.connection.execute("UPDATE mentors SET left_at = '2026-03-09 12:00+01' WHERE id = %s", (left,))

    for phrase in (
        "Has left, on 9 March.",
        "it stays as it is while the mentor has left",
        "likeperson until 5 March: none comes, the mentor has left",
    ):
        assert phrase in told(connection, left)
    assert told(connection, bare).startswith("M1, HLF\n")
    assert "Holds no certificate that counts, so" in told(connection, bare)
    facts.certificate(bare, date(2028, 3, 20), issued_on=date(2026, 3, 20))
    story = story_of(connection, bare)
    assert "likeperson has not begun yet" in page(story)
    assert (document(story)["without_certificate"], document(story)["certified"]) == (True, False)
    text = told(connection, taught)
    assert "Certified: course ended on 19 January, 50 days ago (optional: it pauses nobody); likeperson is in" in text
    assert "course, optional, 1 January 2024 to 19 January 2026: expired" in text


# What it leaves alone, and how it is printed.


def test_it_touches_nothing_and_waits_for_nobody(
    connection: Connection, facts: Facts, database_url: str, app: psycopg.Connection[object]
) -> None:
    """On a read-only connection every table is as before, whoever is asked about, and whatever rows others hold."""
    random_programme(facts, seed=7, mentors=30)
    before = everything(facts)
    app.execute("SELECT 1 FROM mentors, certificates FOR UPDATE")
    read_only = psycopg.conninfo.make_conninfo(database_url, options="-c default_transaction_read_only=on")

    with database.connect(read_only) as own:
        for (mentor_id,) in facts.rows("SELECT id FROM mentors"):
            assert page(story_of(own, UUID(str(mentor_id))))
        with pytest.raises(UnknownMentorError, match="does not exist any more"):
            story_of(own, uuid4())

    assert everything(facts) == before


def test_the_document_holds_what_the_page_says(connection: Connection, facts: Facts) -> None:
    """Ids, dates, both statuses, the next date and what, and everything after it."""
    mentor_id = facts.certified_mentor(facts.organisation(thresholds=[30, -1]), TODAY + timedelta(days=40))
    night(connection)

    read = document(story_of(connection, mentor_id))

    assert (read["outcome"], read["today"], read["mentor"]["id"]) == ("ok", "2026-03-10", str(mentor_id))
    (certificate,) = read["certificates"]
    assert (certificate["status"], certificate["stored_status"]) == ("valid", "valid")
    assert (certificate["stored_on"], certificate["days_left"]) == ("2026-03-10", 40)
    assert read["next"] == {
        "on": "2026-03-20",
        "what": ["likeperson until 19 April: valid → expiring", "reminder 30 days before the last day, 19 April"],
    }
    assert [f"{step['on']} {step['kind']}" for step in read["coming"]] == [
        *("2026-03-20 status", "2026-03-20 reminder", "2026-04-20 status", "2026-04-20 pause", "2026-04-20 hide"),
        "2026-04-20 reminder",
    ]
    assert read["review"] == {"due": False, "on": "2026-03-20", "changes_something": False}


def test_no_line_is_wider_than_the_terminal(connection: Connection, facts: Facts) -> None:
    """Whatever was entered, at any width; dates and commands stay whole where they fit."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY - timedelta(days=1), full_name=HOSTILE * 3)
    facts.certificate(mentor_id, TODAY + timedelta(days=500), kind=HOSTILE, issued_on=TODAY - timedelta(days=5))
    facts.pause(mentor_id, reason=HOSTILE, actor=HOSTILE)
    night(connection, portal=FlakyPortal(failures=99))
    for columns in (40, 80):
        output, shown = terminal(columns)

        show_story(output, story_of(connection, mentor_id))

        text = without_escapes(shown.getvalue())
        assert all(cell_len(line) <= columns for line in text.splitlines())
        assert "\x1b[2J" not in shown.getvalue()
        assert "\u202e" not in text
        assert "1 January 2024 to 9 March 2026: expired" in flat(text)
    assert "9 March 2026" in text.replace("\n", "|")


def test_on_a_terminal_far_off_days_are_counted_not_told(connection: Connection, facts: Facts) -> None:
    """--json has all of them; off a terminal nothing is left out."""
    organisation = facts.organisation(portal=None, thresholds=list(range(0, 40, 2)))
    mentor_id = facts.certified_mentor(organisation, TODAY + timedelta(days=100))
    night(connection)
    story = story_of(connection, mentor_id)
    output, shown = terminal(100)

    show_story(output, story)

    assert "… and 9 more; --json has all of them" in shown.getvalue()
    assert len({step.on for step in story.steps}) == 21
    assert "more; --json" not in page(story)


def test_the_command_tells_the_story_off_a_terminal_in_whole_lines(certjob: Certjob, facts: Facts) -> None:
    """By member number, e-mail or id; exit 0, no colour, nothing on stderr; unknown or ambiguous: exit 2."""
    hlf, nhf = facts.organisation("hlf"), facts.organisation("nhf")
    mentor_id = facts.certified_mentor(hlf, date(2099, 1, 31), member_no="M1", full_name="Kari\x1b[2J")

    results = [certjob("explain", name) for name in ("M1", "m1@example.org", str(mentor_id))]

    assert {(result.stdout, result.returncode, result.stderr) for result in results} == {(results[0].stdout, 0, "")}
    assert results[0].stdout.startswith("Kari\ufffd[2J (M1), HLF\n")
    assert "\x1b" not in results[0].stdout
    assert json.loads(certjob("explain", "M1", "--json").stdout)["mentor"]["member_no"] == "M1"
    facts.certified_mentor(nhf, date(2099, 1, 31), member_no="M1")
    assert_one_line(certjob("explain", "M1"), "M1 of hlf", "M1 of nhf", code=2, command="certjob explain")
    assert certjob("explain", "M1", "--organisation", "nhf").returncode == 0
    unknown = certjob("explain", "M2", "--json")
    assert_one_line(unknown, "no mentor 'M2'", code=2, command="certjob explain")
    assert json.loads(unknown.stdout)["error"]["code"] == "unknown_mentor"


def test_times_are_those_of_the_programme(connection: Connection, facts: Facts) -> None:
    """A pause since 23:30 UTC is one since half past midnight in Oslo, the day after."""
    mentor_id = facts.certified_mentor(facts.organisation(portal=None), date(2099, 1, 31))
    facts.pause(mentor_id)
    facts.connection.execute("UPDATE mentor_pauses SET paused_at = %s", (datetime(2026, 3, 8, 23, 30, tzinfo=UTC),))

    assert "illness, by coordinator since 9 March 00:30" in told(connection, mentor_id)


def test_the_story_reads_like_a_page(connection: Connection, facts: Facts) -> None:
    """Word for word, as it was found good."""
    mentor_id = facts.certified_mentor(facts.organisation(thresholds=[60, 14]), date(2026, 4, 25), member_no="M1")
    night(connection, channel=CollectingChannel())
    facts.connection.execute("UPDATE cert_notification_log SET sent_at = '2026-03-10 04:00+01'")

    assert told(connection, mentor_id).splitlines() == [
        "Kari Nordmann (M1), HLF",
        "Active: no pause is open. Certified: likeperson is in force until 25 April.",
        "",
        "Next: on 11 April, in 32 days: reminder 14 days before the last day, 25 April.",
        "",
        "Certificates",
        "- likeperson, 1 January 2024 to 25 April 2026: expiring",
        "its last day is 25 April, 46 days away, inside the largest reminder threshold, 60 days; stored on 10 March",
        "",
        "Pauses",
        "- none is open",
        "",
        "Reminders",
        "- likeperson until 25 April, 60 days before: sent 10 March 04:00",
        "- likeperson until 25 April, to come: 14 days before (11 April)",
        "",
        "Portal",
        "- wanted: shown",
        "- the portal has confirmed nothing yet",
        "",
        "After that, if no fact changes",
        "- on 26 April, in 47 days: likeperson until 25 April: expiring → expired; certjob pauses the mentor; the "
        "portal is asked to hide the mentor",
    ]
