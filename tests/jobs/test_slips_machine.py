"""Nothing slips past: random facts, portals, mail servers and days, against an oracle from docs/rules.md.

After each command the machine checks four invariants:

1. whoever is visible and must not be is named by `certjob alerts`, or was acknowledged as this alert;
2. whoever must be visible and is not, likewise, or is held;
3. each due reminder is sent, waits for less than a day, or is an alert; it is cancelled only for a true reason; no mail
   comes twice unless it says that it may be a repeat;
4. exit code 3 means an alert or a printed stop, exit code 0 means neither, and each alert is printed once. Reminders
   that were not delivered make a run exit with 3 once in seven days.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.conftest import fresh_database
from tests.support.command_line import Finished
from tests.support.programme_oracle import Due, Mentor, read_mentors
from tests.support.programme_world import (
    COORDINATORS_FACTS,
    ENTER_MENTOR,
    LOADED,
    MAIL_ANSWERS,
    PORTAL_STATES,
    SERVERS_FACTS,
    SET_CONTACTS,
    World,
    lowered_limits,
)

AT_HLF, AT_NHF = ("M1", "M2", "M3", "M4", "M5", "M6"), ("M7", "M8", "M9")
"""HLF has a portal, NHF has none."""
ORGANISATIONS = dict.fromkeys(AT_HLF, "hlf") | dict.fromkeys(AT_NHF, "nhf")
ROLES = ("authenticated", "service_role", "owner", "load")
THRESHOLDS = ("60,30,14,7,1,-1", "60,28", "30,-2")
COMMANDS = ("run", "run", "run", "deliver", "reconcile", "resync")
LAST_DAYS = (-16, -2, -1, 0, 1, 2, 7, 14, 30, 61, 300)
people, someone_at_hlf = st.sampled_from((*AT_HLF, *AT_NHF)), st.sampled_from(AT_HLF)
changes = st.fixed_dictionaries(
    {
        "what": st.sampled_from((*COORDINATORS_FACTS, *SERVERS_FACTS, "enter the mentor again")),
        "person": people,
        "role": st.sampled_from(ROLES),
        "kind": st.sampled_from(("likeperson", "first aid")),
        "begins_in": st.sampled_from((-100, -28, 0, 7)),
        "ends_in": st.sampled_from(LAST_DAYS),
    }
)
CANCELLED = (
    "SELECT l.id, m.member_no, l.threshold_days, l.expires_on, l.last_error FROM cert_notification_log AS l"
    " JOIN mentors AS m ON m.id = l.mentor_id WHERE l.status = 'cancelled'"
)
WAITING = (
    "SELECT m.member_no, l.threshold_days, l.expires_on FROM cert_notification_log AS l"
    " JOIN mentors AS m ON m.id = l.mentor_id WHERE l.status = 'pending' AND l.queued_at > now() - interval '1 day'"
)


@dataclass(slots=True, kw_only=True)
class Memory:
    """What the machine remembers of earlier commands."""

    contacts: dict[str, set[UUID]] = field(default_factory=dict)
    """The true contacts of each person, whatever the facts say."""
    coordinators: dict[str, UUID] = field(default_factory=dict)
    pauses: dict[UUID, tuple[UUID, set[str]]] = field(default_factory=dict)
    """Of each mentor, certjob's pause and its kinds."""
    edited: set[UUID] = field(default_factory=set)
    """Contacts that someone has changed on the portal by hand, until the next reading."""
    mails: dict[Due, list[int]] = field(default_factory=dict)
    """The days on which a reminder arrived."""
    told: set[Any] = field(default_factory=set)
    """The alerts that a run has printed, by day."""
    last_alerts: Any = None
    """The alerts of the last run with their causes, if it was today."""
    acknowledged: dict[str, Any] = field(default_factory=dict)
    """What a person has seen of each acknowledged alert."""
    forgiven: set[UUID] = field(default_factory=set)
    """Contacts of deleted mentors whose alert was acknowledged."""
    is_fresh: bool = False
    """Whether a run has seen the present facts of this day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """What is known after a command."""

    mentors: list[Mentor]
    alerts: list[Any]
    known: list[Any]
    """Acknowledged alerts that are what the person has seen."""
    document: Any
    said: str
    exit_code: int

    def names(self, person: str, *kinds: str, contact: UUID | None = None) -> bool:
        """Return whether an alert names the person: one of these kinds, a hold, or an unknown contact."""
        return any(
            (str(each["member_no"]).partition(" (")[0] == person and each["kind"] in (*kinds, "never_reviewed"))
            or (each["kind"] == "unknown_contacts" and str(contact) in each["alert_id"])
            or person in each["held"]
            for each in (*self.alerts, *self.known)
        )


class SlipsMachine(RuleBasedStateMachine):
    """Two organisations and nine people."""

    def __init__(self, server_url: str, template: str) -> None:
        super().__init__()
        self.resources = ExitStack()
        self.url = self.resources.enter_context(contextmanager(fresh_database)(server_url, template))
        self.folder = Path(self.resources.enter_context(TemporaryDirectory()))
        self.resources.enter_context(lowered_limits())
        self.memory = Memory()

    def teardown(self) -> None:
        with self.resources:
            if sys.exc_info()[0] is None:
                self.certjob("run")

    @initialize(
        mirror=st.booleans(), dates=st.booleans(), days=st.lists(st.sampled_from(LAST_DAYS), min_size=9, max_size=9)
    )
    def begin(self, *, mirror: bool = False, dates: bool = False, days: list[int] | None = None) -> None:
        """Everyone has one certificate, which ends in so many days, and is visible."""
        self.world = world = World(self.url, self.folder, self.resources, has_mirror=mirror)
        world.portal.until = {} if dates else None
        if mirror:
            world.install_mirror()
        for slug, portal in (("hlf", "dynamics"), ("nhf", "none")):
            user = self.memory.coordinators[slug] = uuid4()
            named = ("--name", slug, "--coordinator", f"{user} Eva <eva@{slug}.example>", "--portal", portal)
            self.ok("organisation", "set", slug, *named, "--thresholds", THRESHOLDS[0])
        for person, day in zip(ORGANISATIONS, days or [300] * 9, strict=True):
            contact = uuid4()
            self.memory.contacts[person] = {contact}
            self.change("enter the mentor again", person)
            self.change("enter a certificate", person, ends_in=day)
            world.portal.visible[contact] = person in AT_HLF
        self.memory.edited.clear()
        self.changes_are_permitted()

    # Facts.

    @rule(some=st.lists(changes, min_size=1, max_size=3), command=st.sampled_from(COMMANDS), person=someone_at_hlf)
    def facts_change(self, some: list[dict[str, Any]], command: str, person: str) -> None:
        for each in some:
            self.change(**each)
        self.starts(command, person)

    def change(
        self,
        what: str,
        person: str,
        *,
        role: str = "service_role",
        kind: str = "likeperson",
        begins_in: int = -100,
        ends_in: int = 300,
    ) -> None:
        """Write a fact, if the database accepts it."""
        world, memory, slug = self.world, self.memory, ORGANISATIONS[person]
        mentor = self.mentor(person)
        if (mentor is None) is not (what == "enter the mentor again"):
            return
        first = world.date_of((world.day + begins_in) // 7 * 7)  # one weekday, so that days that move do not collide
        last = max(first, world.date_of(world.day + ends_in))
        contact = uuid4() if what == "set the contact" else min(memory.contacts[person], key=str)
        address = f"{person.lower()}.{world.day}@example.org"
        is_acknowledged = what == "delete the mentor" and any(
            each["member_no"] == person and self.is_what_was_seen(each) for each in self.alerts("--acknowledged")
        )
        if role == "load" and what in LOADED and not world.has_mirror:
            line = {"organisation": slug, "member_no": person, "kind": kind, "issued_on": first, "expires_on": last}
            line |= {"revoked_on": world.first_date, "left_on": world.first_date, "email": address}
            is_written = world.load(LOADED[what], [line | {"dynamics_contact_id": contact}])
        else:
            values = {"person": person, "slug": slug, "mentor": mentor, "kind": kind, "first": first, "last": last}
            values |= {"contact": contact, "address": address, "today": world.first_date}
            statement = {**COORDINATORS_FACTS, **SERVERS_FACTS}.get(what, ENTER_MENTOR)
            role = role if what in COORDINATORS_FACTS and role != "load" else "service_role"
            is_written = world.write(statement, values | {"user": memory.coordinators[slug]}, role=role)
        if is_written:
            memory.is_fresh = False
            if what == "set the contact":
                memory.contacts[person].add(contact)
                world.portal.visible[contact] = person in AT_HLF
            if what == "enter the mentor again":  # certjob assumes that the portal shows a new contact
                memory.edited.add(contact)
            if is_acknowledged:
                memory.forgiven |= memory.contacts[person]

    @rule(by=st.integers(1, 3), role=st.sampled_from(ROLES))
    def contacts_are_shifted(self, by: int = 1, role: str = "service_role") -> None:
        """A file with another order of rows gives each mentor the contact of another one."""
        given = {each.member_no: each.contact for each in self.mentors() if each.contact and each.is_in_app}
        if len(given) >= 4:
            contacts = [*given.values()]
            self.set_contacts(dict(zip(given, contacts[by:] + contacts[:by], strict=True)), role)

    @rule(role=st.sampled_from(ROLES))
    def contacts_are_corrected(self, role: str = "service_role") -> None:
        wrong = [each.member_no for each in self.mentors() if not self.has_right_contact(each)]
        self.set_contacts({person: min(self.memory.contacts[person], key=str) for person in wrong}, role)

    def set_contacts(self, contacts: dict[str, UUID], role: str) -> None:
        if role == "load" and not self.world.has_mirror:
            about = [
                {"organisation": ORGANISATIONS[person], "member_no": person, "dynamics_contact_id": contact}
                for person, contact in contacts.items()
            ]
            self.world.load(["dynamics_contact_id"], about)
        else:
            values = {"people": [*contacts], "contacts": [*contacts.values()]}
            self.world.write(SET_CONTACTS, values, role="service_role")
        self.memory.is_fresh = False

    @rule(
        slug=st.sampled_from(("hlf", "nhf")),
        thresholds=st.sampled_from(THRESHOLDS),
        kind=st.sampled_from(("course", "first aid")),
    )
    def organisation_changes(self, slug: str, thresholds: str, kind: str) -> None:
        self.ok("organisation", "set", slug, "--thresholds", thresholds, "--optional-kind", kind)
        self.memory.is_fresh = False

    # The portal, the mail server and the calendar.

    @rule(state=st.sampled_from(tuple(PORTAL_STATES)))
    def portal(self, state: str) -> None:
        self.world.portal_state = state

    @rule(person=someone_at_hlf)
    def portal_rejects_or_accepts(self, person: str) -> None:
        self.world.rejected_contacts ^= self.memory.contacts[person]

    @rule(person=someone_at_hlf)
    def portal_is_edited(self, person: str) -> None:
        for contact in self.memory.contacts[person]:
            self.world.portal.visible[contact] = not self.world.portal.visible[contact]
            self.memory.edited.add(contact)

    @rule()
    def portal_gets_or_loses_dates(self) -> None:
        self.world.portal.until = {} if self.world.portal.until is None else None

    @rule(state=st.sampled_from(tuple(MAIL_ANSWERS)))
    def mail_server(self, state: str) -> None:
        self.world.mail.answers = MAIL_ANSWERS[state]

    @rule(person=people)
    def address_dies_or_works(self, person: str) -> None:
        self.world.mail.rejected ^= {
            each.address for each in self.mentors() if each.member_no == person if each.address
        }

    @rule(days=st.sampled_from((1, 1, 3)))
    def days_pass(self, days: int) -> None:
        self.world.let_days_pass(days)
        self.memory.is_fresh, self.memory.last_alerts = False, None

    @rule(command=st.sampled_from(("run", "deliver")))
    def clocks_are_wrong(self, command: str) -> None:
        """The clocks of the machine and of the database are six days ahead for one command."""
        self.days_pass(6)
        self.certjob(command)
        self.days_pass(-6)

    # Commands.

    @rule(command=st.sampled_from(COMMANDS), person=someone_at_hlf)
    def starts(self, command: str, person: str) -> None:
        if command != "resync":
            self.certjob(command)
        elif all(self.has_right_contact(each) for each in self.mentors()) and (mentor := self.mentor(person)):
            self.world.certjob("resync", str(mentor))  # it permits what is held

    @precondition(lambda self: all(map(self.has_right_contact, self.mentors())))
    @rule()
    def changes_are_permitted(self) -> None:
        """Someone has checked the facts, which are right."""
        self.certjob("run", "--allow", "hlf=99", "--allow", "nhf=99")

    @rule(number=st.integers(0, 5), days=st.sampled_from((2, 31)))
    def alert_is_acknowledged(self, number: int, days: int = 31) -> None:
        alerts = [each for each in self.alerts() if each["kind"] not in ("no_full_run", "portal_not_read")]
        if alerts:
            alert, until = alerts[number % len(alerts)], self.world.date_of(self.world.day + days)
            self.ok("acknowledge", alert["alert_id"], "--because", "known", "--until", str(until))
            self.memory.acknowledged[alert["alert_id"]] = self.seen(alert)
            self.memory.last_alerts = None

    @rule(person=someone_at_hlf)
    def coordinator_asks_for_a_push(self, person: str) -> None:
        values = {"user": self.memory.coordinators["hlf"], "mentor": self.mentor(person)}
        self.world.write("SELECT certjob.request_portal_resync(%(mentor)s)", values, role="authenticated")

    def ok(self, *arguments: str) -> None:
        result = self.world.certjob(*arguments)
        assert result.returncode == 0, result

    def certjob(self, *arguments: str) -> None:
        """Run a command, and check what it has left behind."""
        world, memory = self.world, self.memory
        cancelled = {row[0] for row in world.rows(CANCELLED)}
        letters, requests = len(world.mail.letters), len(world.portal.requests)
        result = world.certjob(*arguments, "--json")
        if result.returncode == 2 and "--accept-date" in result.stderr:
            result = world.certjob(*arguments, "--json", "--accept-date", str(world.first_date))
        assert result.returncode in (0, 3), result
        after = self.look(result, alerts=arguments[0] in ("run", "reconcile"))
        memory.edited -= {each.contact_id for each in world.portal.requests[requests:] if each.contact_id}
        self.remember_pauses(after.mentors)
        memory.is_fresh |= arguments[0] == "run"
        if arguments[0] == "reconcile" and after.document["read"] and memory.is_fresh:
            memory.edited.clear()
        complaints = [*self.wrong_mails(after, letters), *self.wrongly_cancelled(after, cancelled)]
        if memory.is_fresh and arguments[0] in ("run", "reconcile"):
            complaints += [*self.wrong_on_portal(after), *self.wrong_in_app(after)]
        if arguments[0] == "run":
            complaints += [*self.missing_mails(after), *self.wrong_exit(after)]
        assert not complaints, "\n".join([f"after {result.args[0]}:", *complaints, result.stderr])

    def look(self, result: Finished, *, alerts: bool) -> After:
        acknowledged = self.alerts("--acknowledged") if alerts and self.memory.acknowledged else []
        return After(
            mentors=self.mentors(),
            alerts=self.alerts() if alerts else [],
            known=[each for each in acknowledged if self.is_what_was_seen(each)],
            document=json.loads(result.stdout),
            said=result.stderr,
            exit_code=result.returncode,
        )

    # The invariants.

    def wrong_on_portal(self, after: After) -> Iterator[str]:
        """Invariants 1 and 2 at HLF."""
        day, portal, memory = self.world.day, self.world.portal, self.memory
        for person in AT_HLF:
            rows = [each for each in after.mentors if each.member_no == person]
            must = [each for each in rows if each.must_be_visible(day)]
            contacts = memory.contacts[person] - memory.edited
            shown = {each for each in contacts if self.is_shown(each)}
            for contact in set[UUID]() if must else shown - memory.forgiven:
                if not after.names(person, "may_be_visible", contact=contact):
                    yield f"1: {person} is visible and must not be, and no alert says so"
            for each in must:
                is_explained = after.names(person, "may_be_hidden") or after.document["stopped"]
                if not (shown or is_explained or each.contact in memory.edited):
                    yield f"2: {person} is not visible and must be, and no alert says so"
                until = (portal.until or {}).get(each.contact) if each.contact in shown else None
                is_late = until is not None and self.world.day_of(until) > each.certified_until(day)
                if is_late and not after.names(person, "may_be_visible", contact=each.contact):
                    yield f"1: {person} will be visible until {until}, and no alert says so"

    def wrong_in_app(self, after: After) -> Iterator[str]:
        """Invariants 1 and 2 at NHF, whose app shows everyone who is not paused and has not left."""
        for each in after.mentors:
            is_active = not (each.has_left or each.has_pause or each.own_pause)
            is_right = each.member_no in AT_HLF or is_active is each.must_be_visible(self.world.day)
            if not is_right and not after.names(each.member_no):
                yield f"{1 if is_active else 2}: {each.member_no} is active: {is_active}, and no alert says so"

    def wrong_mails(self, after: After, old: int) -> Iterator[str]:
        """Invariant 3: mails that were not due, or came twice."""
        mails = self.memory.mails
        for letter in self.world.mail.letters[old:]:
            due = self.due_of(after.mentors, letter.row_id)
            if due not in self.all_due(after):
                yield f"3: a mail that was not due: {due or letter.row_id}"
            elif due in mails and not letter.says_repeat:
                yield f"3: a second mail: {due}"
            if due is not None:
                mails.setdefault(due, []).append(self.world.day)

    def wrongly_cancelled(self, after: After, old: set[int]) -> Iterator[str]:
        due = {(each.member_no, each.threshold, each.last) for each in self.all_due(after)}
        for row_id, person, threshold, last, reason in self.world.rows(CANCELLED):
            if row_id not in old and (person, threshold, self.world.day_of(last)) in due:
                yield f"3: cancelled ({reason}), and still due: {person} {threshold} {last}"

    def missing_mails(self, after: After) -> Iterator[str]:
        """Invariant 3: due reminders that were not sent, do not wait, and are no alert."""
        named = {each["member_no"] for each in (*after.alerts, *after.known) if each["kind"].endswith("reminders")}
        held = {each["organisation"] for each in (*after.alerts, *after.known) if each["kind"] == "held"}
        waiting = {(*row[:2], self.world.day_of(row[2])) for row in self.world.rows(WAITING)}
        for due in self.all_due(after):
            is_sent = due in self.memory.mails or any(
                (each.member_no, each.kind, each.last) == (due.member_no, due.kind, due.last)
                and any(due.last - due.threshold <= day <= self.world.day for day in days)
                for each, days in self.memory.mails.items()
            )
            is_waiting = (due.member_no, due.threshold, due.last) in waiting
            is_held = ORGANISATIONS[due.member_no] in held or after.names(due.member_no)
            if not (is_sent or is_waiting or is_held or due.member_no in named):
                yield f"3: never sent, and no alert says so: {due}"

    def wrong_exit(self, after: After) -> Iterator[str]:
        """Invariant 4."""
        seen = {(each["alert_id"], each["row_id"]): self.seen(each) for each in after.alerts}
        told = {(self.world.day, *key) for key in seen}
        has_other = after.document["stopped"] or after.document["problems"]
        week = {each[1:] for each in self.memory.told if self.world.day - 7 <= each[0] <= self.world.day}
        quiet = {each for each in seen if each in week and "reminders" in each[0]}
        codes = {3} if seen.keys() - quiet or has_other else {0, 3} if quiet else {0}
        if after.exit_code not in codes:
            yield f"4: exit code {after.exit_code}, alerts {[*seen]}, stops {has_other}"
        untold = {each for each in told - self.memory.told if each[1:] not in quiet}
        if untold and not after.said:
            yield f"4: never printed: {untold}"
        causes = {(each["alert_id"], each["row_id"]): each["cause"] for each in after.alerts}
        if (seen, causes) == self.memory.last_alerts and not has_other and after.said:
            yield f"4: printed twice: {after.said}"
        self.memory.told |= told
        self.memory.last_alerts = seen, causes

    # What the machine looks at.

    def seen(self, alert: Any) -> dict[str, Any]:
        """Return what a person sees in an alert."""
        pushed = self.world.rows(
            "SELECT extract(epoch FROM e.wanted_at) + 86400 * %s, m.dynamics_contact_id::text"
            " FROM portal_sync_events AS e JOIN mentors AS m ON m.id = e.mentor_id WHERE e.id = %s",
            self.world.day,
            alert["row_id"] if alert["kind"].startswith("may_be") else None,
        )
        return {"row_id": alert["row_id"], "pushed": pushed, "held": alert["held"]}

    def is_what_was_seen(self, alert: Any) -> bool:
        seen, now = self.memory.acknowledged.get(alert["alert_id"]), self.seen(alert)
        return seen is not None and now["held"] <= seen["held"] and now == seen | {"held": now["held"]}

    def alerts(self, *options: str) -> list[Any]:
        """Return the alerts, each with the people whom it holds."""
        result = self.world.certjob("alerts", "--json", *options)
        document = json.loads(result.stdout)
        alerts: list[Any] = document["alerts"]
        for alert in alerts:
            held = [each for each in document["held_mentors"] if each["alert_id"] == alert["alert_id"]]
            alert["held"] = {each["member_no"].partition(" (")[0] for each in held if each["reason"] != "reminder"}
        assert result.returncode == (3 if alerts and not options else 0), result
        return alerts

    def mentors(self) -> list[Mentor]:
        return read_mentors(self.world, {key: kinds for key, (_, kinds) in self.memory.pauses.items()})

    def mentor(self, person: str) -> UUID | None:
        """Return the id of the mentor, in the app's table if there is one."""
        table = "public.profiles WHERE member_number" if self.world.has_mirror else "mentors WHERE member_no"
        found = self.world.rows(f"SELECT id FROM {table} = %s", person)
        return found[0][0] if found else None

    def has_right_contact(self, mentor: Mentor) -> bool:
        return mentor.contact is None or mentor.contact in self.memory.contacts[mentor.member_no]

    def is_shown(self, contact: UUID) -> bool:
        portal = self.world.portal
        until = (portal.until or {}).get(contact)
        return portal.visible[contact] and (until is None or self.world.day_of(until) >= self.world.day)

    def all_due(self, after: After) -> set[Due]:
        return {due for mentor in after.mentors for due in mentor.reminders(self.world.day)}

    def due_of(self, mentors: list[Mentor], row_id: int) -> Due | None:
        """Return what a row of the reminders is about, or None if its certificate is gone."""
        kinds = {each.id: (mentor, each.kind) for mentor in mentors for each in mentor.certificates}
        ((certificate, threshold, last),) = self.world.rows(
            "SELECT cert_id, threshold_days, expires_on FROM cert_notification_log WHERE id = %s", row_id
        )
        if certificate not in kinds:
            return None
        mentor, kind = kinds[certificate]
        return Due(member_no=mentor.member_no, kind=kind, last=self.world.day_of(last), threshold=threshold)

    def remember_pauses(self, mentors: list[Mentor]) -> None:
        """Add the kinds that a review has found lapsed; forget pauses that a person has lifted or that have ended."""
        lifted = dict(self.world.rows("SELECT id, lifted_by FROM mentor_pauses"))
        day, kept = self.world.day, dict[UUID, tuple[UUID, set[str]]]()
        for mentor in mentors:
            pause, kinds = self.memory.pauses.get(mentor.id, (None, set[str]()))
            if mentor.own_pause is not None:
                kinds = kinds if mentor.own_pause == pause else set()
                has_lapsed = mentor.kinds_without(day) if mentor.is_reviewed and not mentor.has_left else set()
                kept[mentor.id] = mentor.own_pause, kinds | has_lapsed
            elif pause is not None and lifted.get(pause) == "certjob" and mentor.still_lapsed(day):
                kept[mentor.id] = pause, kinds
        self.memory.pauses = kept
        for mentor in mentors:
            mentor.lapsed = kept[mentor.id][1] if mentor.id in kept else set()


# Scripted histories. Each was a way around a promise.


@pytest.fixture
def slips(server_url: str, supabase_template: str) -> Iterator[SlipsMachine]:
    """The machine, driven by a script. Each command of it checks the invariants and fails the test."""
    machine = SlipsMachine(server_url, supabase_template)
    with machine.resources:
        yield machine


def test_shifted_contacts_are_held_until_they_are_corrected(slips: SlipsMachine) -> None:
    """The contact of each expired mentor belongs to a certified one, and the reverse."""
    slips.begin(days=[300, -1, 300, -1, 300, -1, 300, 300, 300])

    slips.contacts_are_shifted()
    slips.certjob("run")

    slips.contacts_are_corrected()
    slips.certjob("run")


def test_deleted_certificate_lifts_no_pause(slips: SlipsMachine) -> None:
    """The app deletes expired certificates, and only the other kind is left."""
    slips.begin()
    slips.change("enter a certificate", "M1", kind="first aid", ends_in=-1)
    slips.certjob("run")

    slips.change("delete expired certificates", "M1")
    slips.certjob("run")


def test_earlier_last_day_that_the_portal_rejects_is_an_alert(slips: SlipsMachine) -> None:
    """Without certjob, the portal would show the mentor until the later day."""
    slips.begin(dates=True)
    slips.change("change the last day", "M1", ends_in=400)
    slips.certjob("run")

    slips.change("change the last day", "M1", ends_in=100)
    slips.portal("rejects all")
    slips.certjob("run")


def test_acknowledgement_does_not_cover_a_later_hide(slips: SlipsMachine) -> None:
    """The hide is delivered, the mentor is reinstated, and revoked while the portal is down."""
    slips.begin()
    slips.portal("is down")
    slips.change("revoke or restore", "M1")
    slips.certjob("run")
    slips.alert_is_acknowledged(0)
    slips.portal("confirms")
    slips.days_pass(1)
    slips.certjob("run")
    slips.change("revoke or restore", "M1")
    slips.certjob("run")

    slips.portal("is down")
    slips.change("revoke or restore", "M1")
    slips.certjob("run")


def test_failing_show_that_becomes_a_hide_is_printed(slips: SlipsMachine) -> None:
    """Both fail on one day."""
    slips.begin()
    slips.change("pause", "M1")
    slips.certjob("run")
    slips.portal("is down")
    slips.change("lift the pause", "M1")
    slips.certjob("run")

    slips.change("pause", "M1")
    slips.certjob("run")


def test_mentor_with_an_open_hide_is_not_deleted(slips: SlipsMachine) -> None:
    """The hide has no contact any more, and the portal still shows the removed one."""
    slips.begin()
    slips.change("remove the contact", "M1")
    slips.change("change the last day", "M1", ends_in=-1)
    slips.certjob("run")

    slips.change("delete the mentor", "M1")
    slips.certjob("run")


def test_reminder_survives_a_rewrite_of_all_certificates(slips: SlipsMachine) -> None:
    """The app deletes and enters them between the run and the mail."""
    slips.begin()
    slips.mail_server("is down")
    slips.change("change the last day", "M1", ends_in=30)
    slips.certjob("run")

    slips.change("enter all certificates again", "M1")
    slips.mail_server("accepts")
    slips.certjob("deliver")
