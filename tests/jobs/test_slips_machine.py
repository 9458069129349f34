"""Random facts, portals, mail servers and days, checked by an oracle that was written from docs/rules.md.

The machine checks four invariants after each command:

1. If a mentor is visible and must not be, `certjob alerts` names the mentor. No one can mute this; someone can mute
   that a contact belongs to no mentor.
2. If a mentor must be visible and is not, the same is true, or the change is held, or someone has acknowledged it.
3. Each due reminder is sent, waits for less than a day, or is an alert. It is cancelled only for a true reason. A
   second mail says that it may be a repeat.
4. Exit code 3 means an alert or a printed stop, and 0 means neither. Each alert is printed once a day.
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

from certjob.domain.alert_kinds import WORDS
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
"""At first, HLF has a portal and NHF has none."""
ORGANISATIONS = dict.fromkeys(AT_HLF, "hlf") | dict.fromkeys(AT_NHF, "nhf")
ROLES = ("authenticated", "service_role", "owner", "command")
THRESHOLDS = ("60,30,14,7,1,-1", "60,28", "30,-2")
PAUSING = {"pause": ("pause", "--because"), "lift the pause": ("unpause", "--reason")}
BY_HAND = ("resync", "--hidden-by-hand", "--because", "x")
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
    """The machine's record of earlier commands."""

    contacts: dict[str, set[UUID]] = field(default_factory=dict)
    """Each person's true contacts, also if the facts have others."""
    coordinators: dict[str, UUID] = field(default_factory=dict)
    pauses: dict[UUID, tuple[UUID, set[str]]] = field(default_factory=dict)
    """By mentor: certjob's pause and its kinds."""
    edited: set[UUID] = field(default_factory=set)
    """Contacts that someone has changed on the portal by hand, until the next reading."""
    mails: dict[Due, list[int]] = field(default_factory=dict)
    """The days on which each reminder arrived."""
    told: set[Any] = field(default_factory=set)
    """The alerts that a run has printed, by day."""
    last_alerts: Any = None
    """The alerts of the last run with their causes, if it was today."""
    has_acknowledged: bool = False
    unhidden: set[str] = field(default_factory=set)
    """The people with an open hide. It stays an alert if their organisation has no portal from now on."""
    forgiven: set[UUID] = field(default_factory=set)
    """Contacts of deleted mentors who had no portal."""
    is_fresh: bool = False
    """Whether a run has seen the present facts of this day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class After:
    """The state after a command."""

    mentors: list[Mentor]
    alerts: list[Any]
    known: list[Any]
    """Acknowledged alerts."""
    document: Any
    said: str
    exit_code: int

    def people(self, *kinds: str) -> Iterator[str]:
        """Yield the people whom the alerts of these kinds name, also acknowledged ones."""
        for each in (*self.alerts, *self.known):
            if each["kind"] in kinds and each["member_no"]:
                yield each["member_no"].partition(" (")[0]  # the mirror changes the number of a deleted mentor

    def names(self, person: str, *kinds: str, contact: UUID | None = None) -> bool:
        """Return whether an alert names the person: one of these kinds, a hold, or an unknown contact.

        A hold may also name another mentor who has the person's contact now.
        """
        people = {person} | {each.member_no for each in self.mentors if contact and each.contact == contact}
        return person in self.people(*kinds, "never_reviewed") or any(
            (each["kind"] == "unknown_contacts" and str(contact) in each["alert_id"]) or people & each["held"].keys()
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
        world, memory = self.world, self.memory
        mentor, row = self.mentor(person), self.row(person)
        is_unchecked = what == "move to the other organisation" and self.wrong_contacts()  # as for a new portal
        if is_unchecked or (mentor is None) is not (what == "enter the mentor again"):
            return
        slug = row.organisation if row else ORGANISATIONS[person]
        first = world.date_of((world.day + begins_in) // 7 * 7)  # always the same weekday, so moved days do not collide
        last = max(first, world.date_of(world.day + ends_in))
        contact = uuid4() if what == "set the contact" else min(memory.contacts[person], key=str)
        address = f"{person.lower()}.{world.day}@example.org"
        is_forgiven = what == "delete the mentor" and row and not row.has_portal
        if role == "command" and what in PAUSING:
            is_written = self.pauses_or_unpauses(person, *PAUSING[what])
        elif role == "command" and what in LOADED and not world.has_mirror:
            line = {"organisation": slug, "member_no": person, "kind": kind, "issued_on": first, "expires_on": last}
            line |= {"revoked_on": world.first_date, "left_on": world.first_date, "email": address}
            is_written = world.load(LOADED[what], [line | {"dynamics_contact_id": contact}])
        else:
            values = {"person": person, "slug": slug, "mentor": mentor, "kind": kind, "first": first, "last": last}
            values |= {"contact": contact, "address": address, "today": world.first_date}
            statement = {**COORDINATORS_FACTS, **SERVERS_FACTS}.get(what, ENTER_MENTOR)
            role = role if what in COORDINATORS_FACTS and role != "command" else "service_role"
            is_written = world.write(statement, values | {"user": memory.coordinators[slug]}, role=role)
        if is_written:
            memory.is_fresh = False
            memory.unhidden -= set() if what == "move to the other organisation" else {person}
            if what == "set the contact":
                memory.contacts[person].add(contact)
                world.portal.visible[contact] = person in AT_HLF
            if what == "enter the mentor again":
                memory.forgiven.discard(contact)
            if is_forgiven:
                memory.forgiven |= memory.contacts[person]

    def pauses_or_unpauses(self, person: str, command: str, option: str) -> bool:
        """Pause or unpause by the command, and check that a successful pause has hidden the mentor."""
        edited = set(self.memory.edited)
        result = self.command(command, person, option, "illness")
        assert result.returncode in (0, 2, 3), result
        row = self.row(person)
        if row and row.contact and row.has_portal and (command, result.returncode) == ("pause", 0):
            assert row.contact in edited or not self.is_shown(row.contact), f"{person} is paused and visible"
        return result.returncode != 2

    @rule(by=st.integers(1, 3), role=st.sampled_from(ROLES))
    def contacts_are_shifted(self, by: int = 1, role: str = "service_role") -> None:
        """A file with another order of rows gives each mentor the contact of another one."""
        given = {each.member_no: each.contact for each in self.mentors() if each.contact and each.is_in_app}
        if len(given) >= 4:
            contacts = [*given.values()]
            self.set_contacts(dict(zip(given, contacts[by:] + contacts[:by], strict=True)), role)

    @rule(role=st.sampled_from(ROLES))
    def contacts_are_corrected(self, role: str = "service_role") -> None:
        contacts = self.memory.contacts
        self.set_contacts({person: min(contacts[person], key=str) for person in self.wrong_contacts()}, role)

    def set_contacts(self, contacts: dict[str, UUID], role: str) -> None:
        if role == "command" and not self.world.has_mirror:
            about = [
                {"organisation": each.organisation, "member_no": each.member_no, "dynamics_contact_id": contact}
                for each in self.mentors()
                if (contact := contacts.get(each.member_no))
            ]
            self.world.load(["dynamics_contact_id"], about)
        else:
            values = {"people": [*contacts], "contacts": [*contacts.values()]}
            self.world.write(SET_CONTACTS, values, role="service_role")
        self.memory.is_fresh = False
        self.memory.unhidden -= contacts.keys()

    @rule(
        slug=st.sampled_from(("hlf", "nhf")),
        thresholds=st.sampled_from(THRESHOLDS),
        kind=st.sampled_from(("course", "first aid")),
        portal=st.sampled_from(((), (), ("--portal", "none"), ("--portal", "dynamics"))),
    )
    def organisation_changes(self, slug: str, thresholds: str, kind: str, portal: tuple[str, ...]) -> None:
        # Someone checks the contacts first, because the guards do not count a new portal.
        rules = ("--thresholds", thresholds, "--optional-kind", kind, *(() if self.wrong_contacts() else portal))
        result = self.command("organisation", "set", slug, *rules)
        assert result.returncode in (0, 3 if "none" in portal else 0), result
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
        elif not self.wrong_contacts() and (mentor := self.mentor(person)):
            self.command("resync", str(mentor))  # it permits a held change

    @precondition(lambda self: not self.wrong_contacts())
    @rule()
    def changes_are_permitted(self) -> None:
        """Someone has checked the facts, which are right."""
        self.certjob("run", "--allow", "hlf=99", "--allow", "nhf=99")

    @rule(number=st.integers(0, 5), days=st.sampled_from((2, 31)))
    def alert_is_acknowledged(self, number: int, days: int = 31) -> None:
        alerts = [each for each in self.alerts() if each["kind"] != "portal_not_read"]
        if alerts:
            alert, until = alerts[number % len(alerts)], self.world.date_of(self.world.day + days)
            given = ("acknowledge", alert["alert_id"], "--because", "known", "--until", str(until))
            assert self.world.certjob(*given).returncode == (0 if WORDS[alert["kind"]].longest_days else 2), alert
            self.memory.has_acknowledged, self.memory.last_alerts = True, None

    @rule(person=people, role=st.sampled_from(("authenticated", "command")))
    def someone_hides_by_hand(self, person: str, role: str = "command") -> None:
        """On the portal, and then says so. Without an open hide, it is an edit like any other."""
        mentor, contacts, memory = self.mentor(person), self.memory.contacts[person], self.memory
        values = {"user": memory.coordinators[ORGANISATIONS[person]], "mentor": mentor}
        if role == "command":
            is_accepted = mentor is not None and self.world.certjob(*BY_HAND, str(mentor)).returncode == 0
        else:
            is_accepted = self.world.write("SELECT certjob.confirm_hidden(%(mentor)s, 'x')", values, role=role)
        self.world.portal.visible |= dict.fromkeys(contacts, False)
        memory.edited = memory.edited - contacts if is_accepted else memory.edited | contacts
        memory.last_alerts = None

    @rule(person=someone_at_hlf)
    def coordinator_asks_for_a_push(self, person: str) -> None:
        values = {"user": self.memory.coordinators["hlf"], "mentor": self.mentor(person)}
        self.world.write("SELECT certjob.request_portal_resync(%(mentor)s)", values, role="authenticated")

    def ok(self, *arguments: str) -> None:
        result = self.world.certjob(*arguments)
        assert result.returncode == 0, result

    def command(self, *arguments: str) -> Finished:
        """Run a command. Its pushes overwrite edits by hand."""
        requests = len(self.world.portal.requests)
        result = self.world.certjob(*arguments)
        if result.returncode == 2 and "--accept-date" in result.stderr:
            result = self.world.certjob(*arguments, "--accept-date", str(self.world.first_date))
        self.memory.edited -= {each.contact_id for each in self.world.portal.requests[requests:] if each.contact_id}
        return result

    def certjob(self, *arguments: str) -> None:
        """Run a command, and check its results."""
        world, memory, letters = self.world, self.memory, len(self.world.mail.letters)
        cancelled = {row[0] for row in world.rows(CANCELLED)}
        result = self.command(*arguments, "--json")
        assert result.returncode in (0, 3), result
        after = self.look(result, alerts=arguments[0] in ("run", "reconcile"))
        self.remember_pauses(after.mentors)
        memory.is_fresh |= arguments[0] == "run"
        if arguments[0] == "reconcile" and after.document["read"] and memory.is_fresh:
            memory.edited.clear()
        complaints = [*self.wrong_mails(after, letters), *self.wrongly_cancelled(after, cancelled)]
        if memory.is_fresh and arguments[0] in ("run", "reconcile"):
            complaints += [*self.wrong_on_portal(after), *self.wrong_in_app(after)]
        if arguments[0] == "run":
            complaints += [*self.missing_mails(after), *self.wrong_exit(after, permits="--allow" in arguments)]
        assert not complaints, "\n".join([f"after {result.args[0]}:", *complaints, result.stderr])
        if after.alerts or arguments[0] in ("run", "reconcile"):
            active = {each.member_no for each in after.mentors if each.must_be_active(world.day)}
            memory.unhidden = set(after.people("may_be_visible")) - active

    def look(self, result: Finished, *, alerts: bool) -> After:
        acknowledged = self.alerts("--acknowledged") if alerts and self.memory.has_acknowledged else []
        return After(
            mentors=self.mentors(),
            alerts=self.alerts() if alerts else [],
            known=acknowledged,
            document=json.loads(result.stdout),
            said=result.stderr,
            exit_code=result.returncode,
        )

    # The invariants.

    def wrong_on_portal(self, after: After) -> Iterator[str]:
        """Invariants 1 and 2 in an organisation with a portal."""
        day, portal, memory = self.world.day, self.world.portal, self.memory
        for person, true_contacts in memory.contacts.items():
            rows = [each for each in after.mentors if each.member_no == person]
            must = [each for each in rows if each.has_portal and each.must_be_visible(day)]
            # Without a portal, certjob hides no one, but an open hide stays an alert.
            has_no_hide = person not in memory.unhidden or any(each.must_be_active(day) for each in rows)
            is_left_alone = has_no_hide and rows and not any(each.has_portal for each in rows)
            shown = {each for each in true_contacts - memory.edited if self.is_shown(each)}
            for contact in set[UUID]() if must or is_left_alone else shown - memory.forgiven:
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
        """Invariants 1 and 2 without a portal: the app shows mentors who have neither left nor an open pause."""
        for each in after.mentors:
            is_active = not (each.has_left or each.has_pause or each.own_pause)
            is_right = each.has_portal or is_active is each.must_be_active(self.world.day)
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
        named = {*after.people("failed_reminders", "waiting_reminders")}
        organisations = {each.member_no: each.organisation for each in after.mentors}
        held = {each["organisation"] for each in (*after.alerts, *after.known) if each["kind"] == "held"}
        waiting = {(*row[:2], self.world.day_of(row[2])) for row in self.world.rows(WAITING)}
        for due in self.all_due(after):
            is_sent = due in self.memory.mails or any(
                (each.member_no, each.kind, each.last) == (due.member_no, due.kind, due.last)
                and any(due.last - due.threshold <= day for day in days)
                for each, days in self.memory.mails.items()
            )
            is_waiting = (due.member_no, due.threshold, due.last) in waiting
            is_held = organisations[due.member_no] in held or after.names(due.member_no)
            if not (is_sent or is_waiting or is_held or due.member_no in named):
                yield f"3: never sent, and no alert says so: {due}"

    def wrong_exit(self, after: After, *, permits: bool) -> Iterator[str]:
        """Invariant 4. A run that a person starts to permit changes prints every alert."""
        seen = {each["alert_id"]: (each["cause"], each["all_held"]) for each in after.alerts}
        told = {(self.world.day, alert_id) for alert_id in seen}
        has_other = after.document["stopped"] or after.document["problems"]
        if after.exit_code != (3 if seen or has_other else 0):
            yield f"4: exit code {after.exit_code}, alerts {[*seen]}, stops {has_other}"
        if (untold := told - self.memory.told) and not after.said:
            yield f"4: never printed: {untold}"
        if seen == self.memory.last_alerts and not (has_other or permits) and after.said:
            yield f"4: printed twice: {after.said}"
        self.memory.told |= told
        self.memory.last_alerts = seen

    # Readings.

    def alerts(self, *options: str) -> list[Any]:
        """Return the alerts, each with the held people."""
        result = self.world.certjob("alerts", "--json", *options)
        document = json.loads(result.stdout)
        alerts: list[Any] = document["alerts"]
        for alert in alerts:
            held = [each for each in document["held_mentors"] if each["alert_id"] == alert["alert_id"]]
            alert["all_held"] = {each["member_no"]: each["reason"] for each in held}
            people = {each["member_no"].partition(" (")[0]: each["reason"] for each in held}
            alert["held"] = {person: reason for person, reason in people.items() if reason != "reminder"}
        assert result.returncode == (3 if alerts and not options else 0), result
        return alerts

    def mentors(self) -> list[Mentor]:
        return read_mentors(self.world, {key: kinds for key, (_, kinds) in self.memory.pauses.items()})

    def mentor(self, person: str) -> UUID | None:
        """Return the id of the mentor, in the app's table if there is one."""
        table = "public.profiles WHERE member_number" if self.world.has_mirror else "mentors WHERE member_no"
        found = self.world.rows(f"SELECT id FROM {table} = %s", person)
        return found[0][0] if found else None

    def row(self, person: str) -> Mentor | None:
        """Return the mentor as certjob has it, without one whom the app has deleted."""
        return next((each for each in self.mentors() if each.member_no == person and each.is_in_app), None)

    def wrong_contacts(self) -> set[str]:
        """Return the people with another person's contact, in certjob or in the app."""
        in_app = " UNION ALL SELECT member_number, crm_contact FROM public.profiles" if self.world.has_mirror else ""
        given = self.world.rows(f"SELECT split_part(member_no, ' ', 1), dynamics_contact_id FROM mentors{in_app}")
        return {person for person, contact in given if contact and contact not in self.memory.contacts[person]}

    def is_shown(self, contact: UUID) -> bool:
        portal = self.world.portal
        until = (portal.until or {}).get(contact)
        return portal.visible[contact] and (until is None or self.world.day_of(until) >= self.world.day)

    def all_due(self, after: After) -> set[Due]:
        return {due for mentor in after.mentors for due in mentor.reminders(self.world.day)}

    def due_of(self, mentors: list[Mentor], row_id: int) -> Due | None:
        """Return the reminder of a row, or None if its certificate was deleted."""
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


def test_earlier_last_day_that_the_portal_rejects_is_an_alert(slips: SlipsMachine) -> None:
    """Without certjob, the portal would show the mentor until the later day."""
    slips.begin(dates=True)
    slips.change("change the last day", "M1", ends_in=400)
    slips.certjob("run")

    slips.change("change the last day", "M1", ends_in=100)
    slips.portal("rejects all")
    slips.certjob("run")


def test_hide_by_hand_does_not_cover_a_later_hide(slips: SlipsMachine) -> None:
    """The mentor is reinstated, and revoked while the portal is down."""
    slips.begin()
    slips.portal("rejects all")
    slips.change("revoke or restore", "M1")
    slips.certjob("run")
    slips.someone_hides_by_hand("M1")
    slips.portal("confirms")
    slips.certjob("run")
    slips.change("revoke or restore", "M1")
    slips.certjob("run")

    slips.portal("is down")
    slips.change("revoke or restore", "M1")
    slips.certjob("run")
