"""The rule table of the programme, a line at a time."""

import time
from datetime import date, timedelta
from uuid import uuid4

import pytest

from certjob.domain import explanations, rules
from certjob.domain.models import IN_FORCE, Certificate, Mentor, PauseChange, Reminder, Status
from tests.support.facts import TODAY
from tests.support.people import DEFAULT_THRESHOLDS, certificate, expiring_in, mentor, organisation, own_pause, pause

YESTERDAY = TODAY - timedelta(days=1)
TOMORROW = TODAY + timedelta(days=1)
NEXT_YEAR = TODAY + timedelta(days=365)
FOREVER = date(9999, 12, 31)


def status(person: Mentor, which: Certificate, today: date = TODAY) -> Status:
    """What this certificate of the mentor is today."""
    siblings = [each for each in person.certificates if each.kind == which.kind]
    return rules.status_of(which, siblings, person, today)


def thresholds_due(person: Mentor, today: date = TODAY) -> list[int]:
    """The thresholds of the reminders that are due today."""
    return [reminder.threshold_days for reminder in rules.decide(person, today).reminders]


class TestStatus:
    """First match wins."""

    def test_a_revoked_certificate_is_revoked_whatever_its_dates_say(self) -> None:
        """Revoked is looked at first: upcoming, expired and in-force rows alike."""
        rows = [
            certificate(NEXT_YEAR, issued_on=TOMORROW, revoked=True),
            certificate(YESTERDAY, revoked=True),
            certificate(NEXT_YEAR, revoked=True),
        ]

        assert [status(mentor(row), row) for row in rows] == [Status.REVOKED] * 3

    def test_a_certificate_is_upcoming_until_the_day_it_starts(self) -> None:
        """The first day is a day in force."""
        row = certificate(NEXT_YEAR, issued_on=TOMORROW)

        assert status(mentor(row), row, TODAY) is Status.UPCOMING
        assert status(mentor(row), row, TOMORROW) is Status.VALID

    def test_a_certificate_with_a_later_one_that_has_started_is_renewed_even_past_its_expiry(self) -> None:
        """Renewed comes before expired: the older row tells of no lack."""
        old = certificate(YESTERDAY)
        new = certificate(NEXT_YEAR, issued_on=TODAY)

        assert status(mentor(old, new), old) is Status.RENEWED
        assert status(mentor(old, new), new) is Status.VALID

    def test_a_certificate_is_renewed_only_when_the_later_one_starts(self) -> None:
        """An upcoming successor renews nothing yet."""
        old = certificate(YESTERDAY)
        new = certificate(NEXT_YEAR, issued_on=TOMORROW)

        assert status(mentor(old, new), old, TODAY) is Status.EXPIRED
        assert status(mentor(old, new), old, TOMORROW) is Status.RENEWED

    def test_a_revoked_successor_renews_nothing(self) -> None:
        """Revoking the new row brings the old one back."""
        old = certificate(NEXT_YEAR)
        new = certificate(NEXT_YEAR + timedelta(days=365), issued_on=YESTERDAY, revoked=True)

        assert status(mentor(old, new), old) is Status.VALID

    def test_another_kind_renews_nothing(self) -> None:
        """Each kind is judged alone."""
        first_aid = certificate(YESTERDAY, kind="first_aid")
        other = certificate(NEXT_YEAR, kind="likeperson")

        decision = rules.decide(mentor(first_aid, other), TODAY)

        assert {t.certificate_id: t.to_status for t in decision.transitions} == {
            first_aid.id: Status.EXPIRED,
            other.id: Status.VALID,
        }

    def test_of_two_rows_with_one_expiry_the_later_issued_one_counts(self) -> None:
        """The order is (expires_on, issued_on)."""
        first = certificate(NEXT_YEAR, issued_on=date(2024, 1, 1))
        second = certificate(NEXT_YEAR, issued_on=date(2024, 1, 2))

        assert status(mentor(first, second), first) is Status.RENEWED
        assert status(mentor(first, second), second) is Status.VALID

    def test_a_row_issued_later_that_ends_earlier_is_the_renewed_one(self) -> None:
        """The longer validity wins: nobody loses days by a shorter course afterwards."""
        long = certificate(NEXT_YEAR, issued_on=date(2024, 1, 1))
        short = certificate(TODAY, issued_on=date(2025, 1, 1))

        assert status(mentor(long, short), long) is Status.VALID
        assert status(mentor(long, short), short) is Status.RENEWED

    def test_the_expiry_day_itself_is_still_in_force(self) -> None:
        """Expired begins on the day after."""
        row = certificate(TODAY)

        assert status(mentor(row), row, TODAY) is Status.EXPIRING
        assert status(mentor(row), row, TOMORROW) is Status.EXPIRED

    @pytest.mark.parametrize(("days", "expected"), [(61, Status.VALID), (60, Status.EXPIRING), (0, Status.EXPIRING)])
    def test_expiring_begins_with_the_largest_threshold(self, days: int, expected: Status) -> None:
        """60 days before, by default."""
        row = expiring_in(days)

        assert status(mentor(row), row) is expected

    def test_thresholds_may_stand_in_any_order(self) -> None:
        """The largest is looked for, not the first."""
        row = expiring_in(45)
        unsorted_thresholds = organisation(thresholds=(-1, 45, 7, 45))

        assert status(mentor(row, organisation=unsorted_thresholds), row) is Status.EXPIRING

    @pytest.mark.parametrize("thresholds", [(), (-1,), (-30, -7)])
    def test_without_a_threshold_before_the_expiry_nothing_is_ever_expiring(self, thresholds: tuple[int, ...]) -> None:
        """Valid to the last day, then expired."""
        row = certificate(TODAY)
        person = mentor(row, organisation=organisation(thresholds=thresholds))

        assert status(person, row, TODAY) is Status.VALID
        assert status(person, row, TOMORROW) is Status.EXPIRED

    def test_a_certificate_that_is_not_extended_at_the_end_of_time_stays_valid(self) -> None:
        """9999-12-31 serves as "never": no overflow, nothing to look at again."""
        row = certificate(FOREVER)

        decision = rules.decide(mentor(row), TODAY)

        assert [t.to_status for t in decision.transitions] == [Status.VALID]
        assert decision.review_on == FOREVER - timedelta(days=60)

    def test_in_force_means_valid_or_expiring(self) -> None:
        """Nothing else lets a mentor meet people."""
        assert {Status.VALID, Status.EXPIRING} == IN_FORCE

    def test_a_status_that_is_already_stored_is_no_transition(self) -> None:
        """Decisions are changes: a second run of the day finds none."""
        row = certificate(NEXT_YEAR, status=Status.VALID)

        assert rules.decide(mentor(row), TODAY).transitions == ()

    def test_a_transition_names_where_the_certificate_came_from(self) -> None:
        """The audit keeps both ends."""
        row = certificate(YESTERDAY, status=Status.EXPIRING)

        (transition,) = rules.decide(mentor(row), TODAY).transitions

        assert (transition.certificate_id, transition.from_status, transition.to_status) == (
            row.id,
            Status.EXPIRING,
            Status.EXPIRED,
        )

    def test_certificates_of_mentors_who_left_still_move(self) -> None:
        """The record stays true for everybody."""
        row = certificate(YESTERDAY, status=Status.VALID)

        (transition,) = rules.decide(mentor(row, left=True), TODAY).transitions

        assert transition.to_status is Status.EXPIRED


class TestPauses:
    """certjob's pause is open exactly while some kind that was held has no certificate in force."""

    def test_a_mentor_with_a_certificate_in_force_is_left_alone(self) -> None:
        """Nothing to pause, nothing to lift."""
        assert rules.decide(mentor(certificate(NEXT_YEAR)), TODAY).pause is None

    def test_a_mentor_whose_certificate_expired_yesterday_is_paused(self) -> None:
        """Today is the first day without one."""
        person = mentor(certificate(YESTERDAY))

        assert rules.decide(person, YESTERDAY).pause is None
        assert rules.decide(person, TODAY).pause is PauseChange.OPEN

    def test_a_mentor_whose_only_certificate_was_revoked_is_paused(self) -> None:
        """Revoked rows count as held."""
        assert rules.decide(mentor(certificate(NEXT_YEAR, revoked=True)), TODAY).pause is PauseChange.OPEN

    def test_a_revoked_certificate_that_had_not_begun_counts_as_held(self) -> None:
        """Its status is revoked, not upcoming."""
        row = certificate(NEXT_YEAR, issued_on=TOMORROW, revoked=True)

        assert rules.decide(mentor(row), TODAY).pause is PauseChange.OPEN

    def test_an_older_certificate_in_force_keeps_a_mentor_certified_when_the_newer_is_revoked(self) -> None:
        """One row in force is enough for the kind."""
        person = mentor(certificate(NEXT_YEAR), certificate(NEXT_YEAR, issued_on=YESTERDAY, revoked=True))

        assert rules.decide(person, TODAY).pause is None

    def test_a_mentor_with_nothing_but_an_upcoming_certificate_is_not_paused(self) -> None:
        """Nothing has been held yet, so nothing is lacking; but nobody watches this mentor either."""
        decision = rules.decide(mentor(certificate(NEXT_YEAR, issued_on=TOMORROW)), TODAY)

        assert decision.pause is None
        assert decision.without_certificate

    def test_an_upcoming_certificate_does_not_help_a_mentor_whose_old_one_expired(self) -> None:
        """A gap is a gap, even one of a day."""
        old = certificate(YESTERDAY)
        new = certificate(NEXT_YEAR, issued_on=TOMORROW)

        assert rules.decide(mentor(old, new), TODAY).pause is PauseChange.OPEN
        assert rules.decide(mentor(old, new, pauses=[own_pause()]), TOMORROW).pause is PauseChange.LIFT

    def test_every_kind_that_was_held_must_be_in_force(self) -> None:
        """One expired kind pauses, whatever the others are."""
        person = mentor(certificate(NEXT_YEAR, kind="likeperson"), certificate(YESTERDAY, kind="first_aid"))

        assert rules.decide(person, TODAY).pause is PauseChange.OPEN

    def test_two_kinds_in_force_pause_nobody(self) -> None:
        """Several kinds are no problem as such."""
        person = mentor(certificate(NEXT_YEAR, kind="likeperson"), certificate(TODAY, kind="first_aid"))

        assert rules.decide(person, TODAY).pause is None

    def test_an_optional_kind_pauses_nobody(self) -> None:
        """Neither beside a kind that counts, nor alone."""
        optional = organisation(optional_kinds=["first_aid"])
        expired = certificate(YESTERDAY, kind="first_aid")

        beside = rules.decide(mentor(certificate(NEXT_YEAR), expired, organisation=optional), TODAY)
        alone = rules.decide(mentor(expired, organisation=optional), TODAY)

        assert beside.pause is None
        assert alone.pause is None
        assert alone.without_certificate

    def test_an_optional_kind_in_force_certifies_nobody(self) -> None:
        """It is left out of the rule altogether."""
        optional = organisation(optional_kinds=["first_aid"])
        person = mentor(certificate(YESTERDAY), certificate(NEXT_YEAR, kind="first_aid"), organisation=optional)

        assert rules.decide(person, TODAY).pause is PauseChange.OPEN

    def test_a_renewal_lifts_the_own_pause_and_names_it(self) -> None:
        """The row to close is the one that is open."""
        open_pause = own_pause()
        person = mentor(certificate(YESTERDAY), certificate(NEXT_YEAR, issued_on=TODAY), pauses=[open_pause])

        decision = rules.decide(person, TODAY)

        assert decision.pause is PauseChange.LIFT
        assert decision.own_pause_id == open_pause.id

    def test_an_open_own_pause_of_a_mentor_who_is_still_uncertified_stays(self) -> None:
        """It is not opened twice."""
        assert rules.decide(mentor(certificate(YESTERDAY), pauses=[own_pause()]), TODAY).pause is None

    def test_a_person_who_lifts_the_own_pause_of_an_uncertified_mentor_sees_it_reopened(self) -> None:
        """An exemption is a certificate row with an end date, not a lifted pause."""
        row = certificate(YESTERDAY, status=Status.EXPIRED)

        assert rules.decide(mentor(row, pauses=[]), TODAY).pause is PauseChange.OPEN

    def test_deleting_the_only_certificate_lifts_the_own_pause(self) -> None:
        """Nothing held, nothing lacking: a row entered by mistake leaves no pause behind."""
        decision = rules.decide(mentor(pauses=[own_pause()], portal_visible=False), TODAY)

        assert decision.pause is PauseChange.LIFT
        assert decision.visible
        assert decision.without_certificate

    def test_a_manual_pause_beside_the_own_one_stays_when_that_is_lifted(self) -> None:
        """Two can be open at once; certjob closes its own alone, and the mentor stays hidden."""
        mine = own_pause()
        person = mentor(certificate(NEXT_YEAR), pauses=[pause("illness"), mine], portal_visible=False)

        decision = rules.decide(person, TODAY)

        assert decision.pause is PauseChange.LIFT
        assert decision.own_pause_id == mine.id
        assert not decision.visible
        assert not decision.push

    def test_a_manual_pause_does_not_stand_in_for_the_own_one(self) -> None:
        """Who comes back from leave without a certificate must still be paused."""
        decision = rules.decide(mentor(certificate(YESTERDAY), pauses=[pause("leave")]), TODAY)

        assert decision.pause is PauseChange.OPEN

    def test_pauses_stay_as_they_are_while_the_mentor_has_left(self) -> None:
        """Neither opened nor lifted."""
        expired = mentor(certificate(YESTERDAY), left=True)
        renewed = mentor(certificate(NEXT_YEAR), left=True, pauses=[own_pause()])

        assert rules.decide(expired, TODAY).pause is None
        assert rules.decide(renewed, TODAY).pause is None

    def test_only_an_active_mentor_is_counted_as_without_certificate(self) -> None:
        """Somebody paused or gone needs no watching."""
        assert rules.decide(mentor(), TODAY).without_certificate
        assert not rules.decide(mentor(pauses=[pause()]), TODAY).without_certificate
        assert not rules.decide(mentor(left=True), TODAY).without_certificate
        assert not rules.decide(mentor(certificate(YESTERDAY)), TODAY).without_certificate


class TestPortal:
    """For an organisation with a portal, visible = active."""

    def test_an_active_mentor_who_is_shown_is_not_pushed_again(self) -> None:
        """An event is queued only when the wanted value changes."""
        decision = rules.decide(mentor(certificate(NEXT_YEAR), portal_visible=True), TODAY)

        assert decision.visible
        assert not decision.push

    def test_a_mentor_whose_certificate_expires_is_hidden(self) -> None:
        """The pause of the same decision counts already."""
        decision = rules.decide(mentor(certificate(YESTERDAY), portal_visible=True), TODAY)

        assert not decision.visible
        assert decision.push

    def test_a_mentor_whom_certjob_hid_is_shown_when_the_pause_is_lifted(self) -> None:
        """And only then."""
        person = mentor(certificate(NEXT_YEAR), pauses=[own_pause()], portal_visible=False)

        decision = rules.decide(person, TODAY)

        assert decision.visible
        assert decision.push

    @pytest.mark.parametrize("reason", ["illness", "leave", "coordinator"])
    def test_a_pause_for_any_reason_hides(self, reason: str) -> None:
        """The portal shows active mentors only."""
        decision = rules.decide(mentor(certificate(NEXT_YEAR), pauses=[pause(reason)]), TODAY)

        assert not decision.visible
        assert decision.push

    def test_a_mentor_who_left_is_hidden(self) -> None:
        """Whatever their certificates say."""
        decision = rules.decide(mentor(certificate(NEXT_YEAR), left=True), TODAY)

        assert not decision.visible
        assert decision.push

    def test_a_mentor_without_any_certificate_is_not_hidden(self) -> None:
        """None held: no pause."""
        assert not rules.decide(mentor(), TODAY).push

    @pytest.mark.parametrize(("expires_on", "visible"), [(NEXT_YEAR, True), (YESTERDAY, False)])
    def test_an_unknown_portal_value_is_pushed_whatever_is_wanted(self, expires_on: date, visible: bool) -> None:
        """A new contact or portal: nobody knows what it shows."""
        decision = rules.decide(mentor(certificate(expires_on), portal_visible=None), TODAY)

        assert decision.visible is visible
        assert decision.push

    @pytest.mark.parametrize("portal_visible", [True, False, None])
    @pytest.mark.parametrize("expires_on", [NEXT_YEAR, YESTERDAY])
    def test_an_organisation_without_a_portal_is_never_pushed_for(
        self, expires_on: date, portal_visible: bool | None
    ) -> None:
        """Only HLF has a portal."""
        person = mentor(
            certificate(expires_on), organisation=organisation(has_portal=False), portal_visible=portal_visible
        )

        assert not rules.decide(person, TODAY).push


class TestReminders:
    """The one most urgent threshold that is reached, once."""

    @pytest.mark.parametrize(
        ("days", "expected"),
        [
            (61, []),
            (60, [60]),
            (59, [60]),
            (31, [60]),
            (30, [30]),
            (14, [14]),
            (8, [14]),
            (7, [7]),
            (2, [7]),
            (1, [1]),
            (0, [1]),
        ],
    )
    def test_the_nearest_threshold_reached_is_due(self, days: int, expected: list[int]) -> None:
        """On its day and until the next: a missed week or a late import sends one message, not five."""
        assert thresholds_due(mentor(expiring_in(days))) == expected

    @pytest.mark.parametrize(
        ("days", "expected"), [(-1, [-1]), (-2, [-1]), (-15, [-1]), (-16, []), (-400, []), (-2500, [])]
    )
    def test_a_notice_after_the_expiry_goes_out_at_most_fourteen_days_late(
        self, days: int, expected: list[int]
    ) -> None:
        """-1 is due the day after the expiry, and for 14 days more."""
        assert thresholds_due(mentor(expiring_in(days))) == expected

    def test_two_thresholds_after_the_expiry_each_have_their_days(self) -> None:
        """The more urgent is the one further past the expiry."""
        later = organisation(thresholds=(-1, -10, -40))

        due = {
            days: thresholds_due(mentor(expiring_in(days), organisation=later))
            for days in (0, -1, -9, -10, -24, -25, -39, -40, -54, -55)
        }

        assert due == {
            0: [],
            -1: [-1],
            -9: [-1],
            -10: [-10],
            -24: [-10],
            -25: [],
            -39: [],
            -40: [-40],
            -54: [-40],
            -55: [],
        }

    def test_without_a_threshold_after_the_expiry_an_expired_certificate_reminds_nobody(self) -> None:
        """Thresholds from zero up are sent only while the certificate lasts."""
        before_only = organisation(thresholds=(30, 7, 0))

        assert thresholds_due(mentor(expiring_in(0), organisation=before_only)) == [0]
        assert thresholds_due(mentor(expiring_in(-1), organisation=before_only)) == []

    @pytest.mark.parametrize(
        ("threshold", "due_on"), [(30, range(31)), (0, range(1)), (-1, range(-15, 0)), (-7, range(-21, -6))]
    )
    def test_a_single_threshold_is_due_on_exactly_its_days(self, threshold: int, due_on: range) -> None:
        """Before, on, and after the last day."""
        single = organisation(thresholds=[threshold])

        days = [days for days in range(-40, 41) if thresholds_due(mentor(expiring_in(days), organisation=single)) != []]

        assert days == list(due_on)

    def test_an_empty_list_of_thresholds_reminds_nobody(self) -> None:
        """Neither before nor after."""
        silent = organisation(thresholds=())

        assert all(
            thresholds_due(mentor(expiring_in(days), organisation=silent)) == [] for days in (-1, 0, 1, 7, 30, 60)
        )

    def test_a_certificate_continued_on_the_next_day_is_not_reminded(self) -> None:
        """The renewal is there already; a reminder would only confuse."""
        old = expiring_in(7)
        new = certificate(NEXT_YEAR, issued_on=old.expires_on + timedelta(days=1))

        assert thresholds_due(mentor(old, new)) == []

    def test_a_certificate_continued_with_a_gap_of_one_day_is_reminded(self) -> None:
        """On that day the mentor would be without."""
        old = expiring_in(7)
        new = certificate(NEXT_YEAR, issued_on=old.expires_on + timedelta(days=2))

        decision = rules.decide(mentor(old, new), TODAY)

        assert [(r.cert_id, r.threshold_days) for r in decision.reminders] == [(old.id, 7)]

    def test_a_revoked_row_continues_nothing(self) -> None:
        """The reminder comes back with the revocation."""
        old = expiring_in(7)
        new = certificate(NEXT_YEAR, issued_on=TOMORROW, revoked=True)

        assert thresholds_due(mentor(old, new)) == [7]

    def test_a_row_of_another_kind_continues_nothing(self) -> None:
        """First aid is no renewal of anything but first aid."""
        old = expiring_in(7)
        other = certificate(NEXT_YEAR, issued_on=TOMORROW, kind="first_aid")

        assert thresholds_due(mentor(old, other)) == [7]

    def test_a_row_that_ends_earlier_continues_nothing(self) -> None:
        """Only a later row in the order (expires_on, issued_on) counts."""
        long = expiring_in(7)
        short = certificate(TODAY + timedelta(days=3), issued_on=TODAY)

        decision = rules.decide(mentor(long, short), TODAY)

        assert [r.cert_id for r in decision.reminders] == [long.id]

    def test_the_new_certificate_is_reminded_about_when_its_own_time_comes(self) -> None:
        """The old row is silent for good."""
        old = expiring_in(-200)
        new = certificate(TODAY + timedelta(days=30), issued_on=TODAY - timedelta(days=199))

        decision = rules.decide(mentor(old, new), TODAY)

        assert [(r.cert_id, r.threshold_days) for r in decision.reminders] == [(new.id, 30)]

    def test_revoked_and_upcoming_certificates_are_not_reminded_about(self) -> None:
        """Only valid, expiring and expired ones."""
        revoked = certificate(TODAY + timedelta(days=7), revoked=True)
        upcoming = certificate(TODAY + timedelta(days=7), issued_on=TOMORROW)

        assert thresholds_due(mentor(revoked)) == []
        assert thresholds_due(mentor(upcoming)) == []

    def test_optional_kinds_are_reminded_about(self) -> None:
        """Their expiry pauses nobody, but people want to know."""
        person = mentor(expiring_in(7, kind="first_aid"), organisation=organisation(optional_kinds=["first_aid"]))

        assert thresholds_due(person) == [7]

    def test_paused_mentors_are_reminded(self) -> None:
        """Whoever is ill, or paused by certjob, can still renew."""
        assert thresholds_due(mentor(expiring_in(7), pauses=[pause()])) == [7]
        assert thresholds_due(mentor(expiring_in(-1), pauses=[own_pause()])) == [-1]

    def test_mentors_who_left_are_not_reminded(self) -> None:
        """They are no mentors any more."""
        assert thresholds_due(mentor(expiring_in(7), left=True)) == []

    def test_each_kind_has_its_own_reminder(self) -> None:
        """One message per certificate and day at most."""
        person = mentor(expiring_in(7), expiring_in(30, kind="first_aid"))

        assert sorted(thresholds_due(person)) == [7, 30]

    def test_reminders_and_transitions_come_in_one_order_whatever_the_order_of_the_rows(self) -> None:
        """The plan and the audit read the same on every run."""
        rows = [expiring_in(7, kind=kind) for kind in ("first_aid", "likeperson", "driver")]

        decisions = [rules.decide(mentor(*order), TODAY) for order in (rows, rows[::-1], [rows[1], rows[2], rows[0]])]

        assert decisions[0] == decisions[1] == decisions[2]

    def test_a_reminder_names_the_date_it_is_about(self) -> None:
        """The log tells an extension in place by it."""
        row = expiring_in(7)

        assert rules.decide(mentor(row), TODAY).reminders == (
            Reminder(cert_id=row.id, threshold_days=7, expires_on=row.expires_on),
        )

    def test_a_certificate_shorter_than_its_thresholds_is_reminded_from_its_first_day(self) -> None:
        """A five-day certificate starts inside the seven-day threshold."""
        row = certificate(TOMORROW + timedelta(days=4), issued_on=TOMORROW)
        person = mentor(row)

        assert thresholds_due(person, TODAY) == []
        assert rules.decide(person, TODAY).review_on == TOMORROW
        assert thresholds_due(person, TOMORROW) == [7]

    def test_due_threshold_answers_for_one_certificate_as_decide_does(self) -> None:
        """The question asked again before sending is the same question."""
        old, new = expiring_in(7), certificate(NEXT_YEAR, issued_on=TODAY + timedelta(days=8))

        assert rules.due_threshold(old, mentor(old), TODAY) == 7
        assert rules.due_threshold(old, mentor(old, new), TODAY) is None


class TestCancelReason:
    """Why a queued reminder is not sent after all; None while it is right."""

    @staticmethod
    def reason(
        row: Certificate,
        *others: Certificate,
        threshold: int = 7,
        about: date | None = None,
        left: bool = False,
        today: date = TODAY,
        thresholds: tuple[int, ...] = DEFAULT_THRESHOLDS,
    ) -> str | None:
        reminder = Reminder(cert_id=row.id, threshold_days=threshold, expires_on=about or row.expires_on)
        person = mentor(row, *others, left=left, organisation=organisation(thresholds=thresholds))
        return rules.cancel_reason(reminder, person, today)

    def test_a_reminder_that_is_still_due_is_not_cancelled(self) -> None:
        """Same threshold, same date, today's facts."""
        assert self.reason(expiring_in(7)) is None
        assert self.reason(expiring_in(2)) is None
        assert self.reason(expiring_in(-15), threshold=-1) is None

    def test_a_reminder_of_a_mentor_who_is_paused_is_not_cancelled(self) -> None:
        """Paused mentors are reminded."""
        row = expiring_in(7)
        reminder = Reminder(cert_id=row.id, threshold_days=7, expires_on=row.expires_on)

        assert rules.cancel_reason(reminder, mentor(row, pauses=[pause()]), TODAY) is None

    def test_a_deleted_certificate_is_the_first_reason(self) -> None:
        """Even for a mentor who left."""
        reminder = Reminder(cert_id=uuid4(), threshold_days=7, expires_on=TODAY)

        assert rules.cancel_reason(reminder, mentor(expiring_in(7), left=True), TODAY) == "deleted"

    def test_a_mentor_who_left_is_told_nothing(self) -> None:
        """Left comes before what happened to the certificate."""
        assert self.reason(expiring_in(7), left=True) == "left"

    def test_a_revoked_certificate_is_not_reminded_about(self) -> None:
        """The coordinator has spoken."""
        assert self.reason(certificate(TODAY + timedelta(days=7), revoked=True)) == "revoked"

    def test_a_certificate_extended_in_place_is_said_to_be_extended(self) -> None:
        """The message would name the wrong date."""
        assert self.reason(expiring_in(300), about=TODAY + timedelta(days=7)) == "extended"

    def test_a_certificate_shortened_in_place_is_said_to_be_shortened(self) -> None:
        """Also a wrong date, in the other direction."""
        assert self.reason(expiring_in(3), about=TODAY + timedelta(days=7)) == "shortened"

    def test_a_certificate_with_a_successor_is_said_to_be_renewed(self) -> None:
        """Begun already, or to begin without a gap."""
        begun = certificate(NEXT_YEAR, issued_on=TODAY)
        to_begin = certificate(NEXT_YEAR, issued_on=TODAY + timedelta(days=8))
        with_a_gap = certificate(NEXT_YEAR, issued_on=TODAY + timedelta(days=9))

        assert self.reason(expiring_in(7), begun) == "renewed"
        assert self.reason(expiring_in(7), to_begin) == "renewed"
        assert self.reason(expiring_in(7), with_a_gap) is None

    def test_a_reminder_overtaken_by_a_more_urgent_one_is_too_late(self) -> None:
        """The mail server was down for a week."""
        assert self.reason(expiring_in(7), threshold=14) == "too late"

    def test_a_reminder_past_its_window_is_too_late(self) -> None:
        """Nobody hears "in 7 days" after the expiry, nor "yesterday" three weeks after."""
        assert self.reason(expiring_in(-1), threshold=7, thresholds=(7,)) == "too late"
        assert self.reason(expiring_in(-16), threshold=-1) == "too late"

    def test_a_reminder_whose_day_has_not_come_is_not_due(self) -> None:
        """Queued under a wrong clock, or asked for by thresholds that are no more."""
        assert self.reason(expiring_in(10), threshold=7) == "not due"
        assert self.reason(expiring_in(90), threshold=60) == "not due"

    def test_a_reminder_whose_threshold_was_taken_off_the_list_is_not_due(self) -> None:
        """Too late would be a lie: it is in time, only unwanted."""
        assert self.reason(expiring_in(45), threshold=60, thresholds=(30,)) == "not due"
        assert self.reason(expiring_in(45), threshold=60, thresholds=()) == "not due"

    def test_a_reminder_about_a_certificate_moved_into_the_future_is_not_due(self) -> None:
        """Upcoming certificates are not reminded about."""
        row = certificate(TODAY + timedelta(days=7), issued_on=TOMORROW)

        assert self.reason(row) == "not due"


class TestReviewOn:
    """The next day on which anything can change by itself."""

    def test_the_next_threshold_is_the_next_day_to_look(self) -> None:
        """From the largest on, one by one, to the day after the expiry."""
        row = expiring_in(100)
        person = mentor(row)

        days = []
        today: date | None = TODAY
        while today is not None:
            today = rules.decide(person, today).review_on
            days.append(None if today is None else (row.expires_on - today).days)

        assert days == [60, 30, 14, 7, 1, -1, None]

    def test_the_day_after_the_expiry_is_looked_at_without_any_threshold(self) -> None:
        """The status and the pause change then."""
        person = mentor(expiring_in(100), organisation=organisation(thresholds=()))

        assert rules.decide(person, TODAY).review_on == TODAY + timedelta(days=101)

    def test_an_upcoming_start_is_looked_at(self) -> None:
        """The pause is lifted on that very day."""
        person = mentor(certificate(YESTERDAY), certificate(NEXT_YEAR, issued_on=TOMORROW))

        assert rules.decide(person, TODAY).review_on == TOMORROW

    def test_a_continued_certificate_is_not_looked_at_for_its_reminders(self) -> None:
        """A night costs what is due: its thresholds remind nobody."""
        old = expiring_in(45)
        new = certificate(NEXT_YEAR, issued_on=old.expires_on + timedelta(days=1))

        assert rules.decide(mentor(old, new), TODAY).review_on == old.expires_on + timedelta(days=1)

    def test_a_mentor_who_left_is_not_looked_at_for_reminders(self) -> None:
        """Only the status changes: expiring, then expired."""
        person = mentor(expiring_in(50), left=True)

        assert rules.decide(person, TODAY).review_on == TODAY + timedelta(days=51)

    @pytest.mark.parametrize(
        "rows",
        [
            (),
            (certificate(NEXT_YEAR, revoked=True),),
            (expiring_in(-500),),
        ],
        ids=["no certificate", "revoked", "expired long ago"],
    )
    def test_a_mentor_whom_only_a_new_fact_can_change_is_never_looked_at(self, rows: tuple[Certificate, ...]) -> None:
        """None: stored as infinity."""
        assert rules.decide(mentor(*rows), TODAY).review_on is None

    def test_the_soonest_of_all_certificates_decides(self) -> None:
        """Kinds do not hide each other."""
        person = mentor(expiring_in(100), expiring_in(65, kind="first_aid"))

        assert rules.decide(person, TODAY).review_on == TODAY + timedelta(days=5)

    def test_an_expiry_on_the_last_day_of_the_calendar_does_not_overflow(self) -> None:
        """There is no day after 9999-12-31 on which it could expire, with whatever threshold."""
        widest = organisation(thresholds=(3650, -3650))

        assert rules.decide(mentor(certificate(FOREVER), organisation=widest), TODAY).review_on == (
            FOREVER - timedelta(days=3650)
        )
        assert rules.decide(mentor(certificate(FOREVER), organisation=widest), FOREVER).review_on is None

    def test_a_certificate_on_the_first_days_of_the_calendar_does_not_overflow(self) -> None:
        """Somebody's import has year 1."""
        row = certificate(date(1, 1, 2), issued_on=date(1, 1, 1))
        widest = organisation(thresholds=(3650, -3650))

        decision = rules.decide(mentor(row, organisation=widest), TODAY)

        assert decision.pause is PauseChange.OPEN
        assert decision.review_on is None


class TestCalendar:
    """Days are counted on the calendar."""

    def test_a_certificate_that_ends_on_the_leap_day_is_in_force_on_it(self) -> None:
        """29 February 2028 is a day like others."""
        leap_day = date(2028, 2, 29)
        row = certificate(leap_day)

        assert status(mentor(row), row, leap_day) is Status.EXPIRING
        assert status(mentor(row), row, date(2028, 3, 1)) is Status.EXPIRED

    @pytest.mark.parametrize(("year", "reminded_on"), [(2027, date(2027, 2, 22)), (2028, date(2028, 2, 23))])
    def test_seven_days_before_the_first_of_march_knows_leap_years(self, year: int, reminded_on: date) -> None:
        """Seven days, not a week's name."""
        person = mentor(certificate(date(year, 3, 1)))

        assert thresholds_due(person, reminded_on) == [7]
        assert thresholds_due(person, reminded_on - timedelta(days=1)) == [14]

    def test_a_threshold_reaches_across_the_turn_of_the_year(self) -> None:
        """14 days before 5 January."""
        assert thresholds_due(mentor(certificate(date(2027, 1, 5))), date(2026, 12, 22)) == [14]


class TestMassChange:
    """A bad clock or a bad import is held back."""

    @pytest.mark.parametrize(
        ("changes", "active_mentors", "held"),
        [
            (0, 0, False),
            (20, 0, False),
            (20, 21, False),
            (21, 21, True),
            (21, 209, True),
            (21, 210, False),
            (100, 1000, False),
            (101, 1000, True),
        ],
    )
    def test_more_than_twenty_and_more_than_a_tenth_is_held(
        self, changes: int, active_mentors: int, held: bool
    ) -> None:
        """More than max(20, 10 % of the active mentors)."""
        assert rules.exceeds_mass_change(changes, active_mentors=active_mentors) is held

    def test_the_limit_of_new_reminders_is_five_thousand(self) -> None:
        """More of them in one organisation and run are held back."""
        assert rules.MASS_REMINDER_LIMIT == 5_000


def test_a_decision_takes_as_long_as_there_are_rows_of_a_kind() -> None:
    """Each row compared with each other one would take minutes; whoever may write rows could stop every night so."""
    rows = [certificate(NEXT_YEAR, issued_on=date(1900, 1, 1) + timedelta(days=number)) for number in range(20_000)]
    person = mentor(*rows)

    began = time.monotonic()
    rules.decide(person, TODAY)
    rules.lapsed_certificates(person, TODAY)
    rules.ending_certificates(person, TODAY, within_days=30)
    list(explanations.why_certified(person, TODAY))

    assert time.monotonic() - began < 20
