"""Organisations are made and changed one value at a time; a repeated command writes nothing."""

import threading
from dataclasses import replace
from datetime import date
from uuid import UUID

import psycopg
import pytest

from certjob.database import Connection
from certjob.errors import ConfigurationError, MentorBusyError
from certjob.facts import organisations
from certjob.facts.organisations import (
    Coordinator,
    OrganisationDetails,
    is_address,
    parse_coordinator,
    parse_thresholds,
    read_organisation_details,
    set_organisation,
)
from tests.support.facts import Facts

App = psycopg.Connection[tuple[object, ...]]

USER = UUID("5f0c1f9e-9d0b-4f0f-9a55-0d9c3b6f8a21")


def coordinators(facts: Facts) -> list[tuple[object, ...]]:
    return facts.rows("SELECT id, full_name, email FROM coordinators ORDER BY email")


def test_a_new_organisation_has_the_defaults(connection: Connection) -> None:
    """Its name is its slug in capitals, its rules are those of the programme."""
    change = set_organisation(connection, "hlf")

    assert (change.created, change.changed) == (True, True)
    (shown,) = read_organisation_details(connection)
    assert (shown.slug, shown.name, shown.portal) == ("hlf", "HLF", None)
    assert (shown.thresholds, shown.optional_kinds) == ([60, 30, 14, 7, 1, -1], [])
    assert (shown.coordinators, shown.mentors) == ([], 0)


def test_everything_can_be_given_at_once_and_is_listed_and_shown(connection: Connection, facts: Facts) -> None:
    """With the mentors who have not left, and the coordinators with their language."""
    set_organisation(
        connection,
        "hlf",
        name="Hørselshemmedes Landsforbund",
        portal="dynamics",
        thresholds=[7, 90, 7],
        optional_kinds=["kurs", "førstehjelp"],
        coordinators=[f"{USER} Kari <kari@hlf.example> nn", "per@hlf.example"],
        contact_email="kontakt@hlf.example",
        contact_phone="+47 22 63 99 00",
        renewal_url="https://hlf.example/fornye",
        sender="HLF Likeperson <likeperson@hlf.example>",
    )
    facts.connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, left_at)"
        " SELECT id, no, left_at FROM organisations, (VALUES ('M1', NULL), ('M2', now())) AS m (no, left_at)"
    )

    (shown,) = read_organisation_details(connection, "hlf")
    assert read_organisation_details(connection) == [shown]
    assert [replace(person, id=None) for person in shown.coordinators] == [
        Coordinator(id=None, full_name="Kari", email="kari@hlf.example", locale="nn"),
        Coordinator(id=None, full_name=None, email="per@hlf.example", locale="nb"),
    ]
    assert replace(shown, coordinators=()) == OrganisationDetails(
        id=shown.id,
        slug="hlf",
        name="Hørselshemmedes Landsforbund",
        portal="dynamics",
        thresholds=[90, 7],
        optional_kinds=["førstehjelp", "kurs"],
        contact_email="kontakt@hlf.example",
        contact_phone="+47 22 63 99 00",
        renewal_url="https://hlf.example/fornye",
        sender="HLF Likeperson <likeperson@hlf.example>",
        mentors=1,
    )
    with pytest.raises(ConfigurationError, match="no organisation 'lhl'; see"):
        read_organisation_details(connection, "lhl")


def test_only_what_is_given_changes(connection: Connection, facts: Facts) -> None:
    """None leaves a value, the word none and an empty text remove it."""
    set_organisation(
        connection,
        "hlf",
        portal="dynamics",
        optional_kinds=["kurs"],
        contact_phone="123",
        contact_email="a@b.example",
        sender="likeperson@hlf.example",
    )

    change = set_organisation(
        connection,
        "hlf",
        thresholds=(),
        portal="none",
        optional_kinds=["none"],
        contact_phone="",
        sender="",
        name="HLF Norge",
    )

    assert (change.created, change.changed) == (False, True)
    assert facts.rows(
        "SELECT name, portal, reminder_thresholds, optional_kinds, contact_phone, sender, contact_email"
        " FROM organisations"
    ) == [("HLF Norge", None, [], [], None, None, "a@b.example")]


def test_the_same_command_again_writes_nothing_and_only_a_changed_rule_makes_certjob_look(
    connection: Connection, facts: Facts
) -> None:
    """A changed name does not."""
    given = ["Kari <kari@hlf.example>"]
    set_organisation(connection, "hlf", portal="dynamics", thresholds=(30, 7), coordinators=given)
    facts.certified_mentor(UUID(str(facts.rows("SELECT id FROM organisations")[0][0])), date(2027, 1, 1))
    connection.execute("UPDATE mentors SET review_on = '2026-12-01'")

    again = set_organisation(connection, "hlf", portal="dynamics", thresholds=(7, 30), coordinators=given)
    named = set_organisation(connection, "hlf", name="HLF Norge")
    not_due = facts.rows("SELECT review_on FROM mentors")
    set_organisation(connection, "hlf", thresholds=(30,))

    assert (again.created, again.changed, named.changed) == (False, False, True)
    assert not_due == [(date(2026, 12, 1),)]
    assert facts.rows("SELECT review_on = '-infinity' FROM mentors") == [(True,)]


def test_a_coordinator_is_found_by_the_mail_and_then_by_the_apps_user_id(connection: Connection, facts: Facts) -> None:
    """Whatever the mail's case; a name that is not given stays. The id replaces ours, and the digests follow."""
    set_organisation(connection, "hlf", coordinators=["Kari <kari@hlf.example>"])
    before = coordinators(facts)
    connection.execute(
        "INSERT INTO coordinator_digests (coordinator_id, digest_on) SELECT id, '2026-03-10' FROM coordinators"
    )

    set_organisation(connection, "hlf", coordinators=["Kari.Nordmann <KARI@hlf.example>"])
    set_organisation(connection, "hlf", coordinators=["kari@HLF.example"])
    assert coordinators(facts) == [(before[0][0], "Kari.Nordmann", "kari@HLF.example")]

    change = set_organisation(connection, "hlf", coordinators=[f"[{USER}] <Kari@hlf.example>"])
    assert change.changed
    assert coordinators(facts) == [(USER, "Kari.Nordmann", "Kari@hlf.example")]
    assert facts.rows("SELECT coordinator_id FROM coordinator_digests") == [(USER,)]


def test_a_known_user_under_a_new_mail_stays_one_row(connection: Connection, facts: Facts) -> None:
    """Also when somebody had entered the new address before."""
    set_organisation(connection, "hlf", coordinators=[f"{USER} Kari <old@hlf.example>", "new@hlf.example"])

    set_organisation(connection, "hlf", coordinators=[f"{USER} <new@hlf.example>"])
    again = set_organisation(connection, "hlf", coordinators=[f"{USER} <new@hlf.example>"])

    assert coordinators(facts) == [(USER, "Kari", "new@hlf.example")]
    assert not again.changed


def test_one_mail_may_coordinate_two_organisations_but_one_user_may_not(connection: Connection, facts: Facts) -> None:
    """The user id is the row's key; nothing of the refused command is kept."""
    set_organisation(connection, "hlf", coordinators=[f"{USER} Kari <kari@hlf.example>"])
    set_organisation(connection, "lhl", coordinators=["Kari <kari@hlf.example>"])

    with pytest.raises(ConfigurationError, match="already coordinates another organisation"):
        set_organisation(connection, "lhl", name="Changed", coordinators=[f"{USER} Kari <kari@hlf.example>"])

    assert [row[1:] for row in coordinators(facts)] == [("Kari", "kari@hlf.example")] * 2
    assert facts.rows("SELECT name FROM organisations WHERE slug = 'lhl'") == [("LHL",)]


@pytest.mark.parametrize(
    ("slug", "values", "sentence"),
    [
        ("HLF", {}, "slug holds a-z, 0-9, - and _ only"),
        ("", {}, "slug holds a-z"),
        ("x" * 64, {}, "slug holds a-z"),
        ("hlf", {"portal": "crm"}, "the portal must be dynamics or none"),
        ("hlf", {"name": " "}, "the name must be 1 to 200 characters long"),
        ("hlf", {"name": "H\x1bLF"}, "without control characters"),
        ("hlf", {"thresholds": [9999]}, "thresholds must lie between -3650 and 3650 days"),
        ("hlf", {"thresholds": list(range(51))}, "at most 50 of them"),
        ("hlf", {"optional_kinds": ["none", "kurs", ""]}, "an optional kind must be 1 to 100 characters long"),
        ("hlf", {"contact_email": "kontakt"}, "the contact's e-mail address is not valid; give one such as"),
        ("hlf", {"contact_phone": "1" * 51}, "the contact's phone must be 1 to 50 characters long"),
        ("hlf", {"renewal_url": "hlf.example/fornye"}, "the renewal URL must be a web address such as"),
        ("hlf", {"renewal_url": "javascript:alert(1)"}, "the renewal URL must be a web address"),
        ("hlf", {"renewal_url": "https://[oops"}, "the renewal URL must be a web address"),
        ("hlf", {"sender": "LHL"}, "the sender is not an address that mail can be sent to; give an address, or a name"),
        ("hlf", {"sender": "Kåre <kåre@lhl.example>"}, "the sender has a character that a sender cannot have"),
        ("hlf", {"remove_coordinators": ["per@hlf.example"]}, "organisation hlf has no coordinator with this address"),
        ("hlf", {"coordinators": ["Kari"]}, "a coordinator is written as '[UUID] Name <mail> [nb|nn|en]'"),
        ("hlf", {"coordinators": ["Kari\x07 <kari@hlf.example>"]}, "a coordinator's name must be 1 to 200"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_written(
    connection: Connection, facts: Facts, slug: str, values: dict[str, object], sentence: str
) -> None:
    """What is wrong and what would be right, with exit code 2."""
    with pytest.raises(ConfigurationError) as refusal:
        set_organisation(connection, slug, **values)  # type: ignore[arg-type]

    assert sentence in str(refusal.value)
    assert refusal.value.exit_code == 2
    assert facts.rows("SELECT FROM organisations") == []


def test_two_people_may_set_up_one_organisation_at_once(connection: Connection, facts: Facts, app: App) -> None:
    """The second waits for the first and finds what it made."""
    app.execute("INSERT INTO organisations (slug, name) VALUES ('hlf', 'By the app')")
    release = threading.Timer(0.3, app.commit)
    release.start()

    change = set_organisation(connection, "hlf", portal="dynamics")

    release.join()
    assert (change.created, change.changed) == (False, True)
    assert facts.rows("SELECT name, portal FROM organisations") == [("By the app", "dynamics")]


def test_mentors_that_somebody_holds_are_not_waited_for_without_end(
    connection: Connection, facts: Facts, app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is changed, and the text says to try again."""
    monkeypatch.setattr(organisations, "_LOCK_TIMEOUT_MS", 100)
    set_organisation(connection, "hlf")
    facts.certified_mentor(UUID(str(facts.rows("SELECT id FROM organisations")[0][0])), date(2027, 1, 1))
    app.execute("SELECT FROM mentors FOR UPDATE")

    with pytest.raises(MentorBusyError, match="nothing was changed, try again"):
        set_organisation(connection, "hlf", name="Changed", thresholds=(30,))

    assert facts.rows("SELECT name FROM organisations") == [("HLF",)]


def test_thresholds_are_read_as_a_person_writes_them() -> None:
    """In any order, most days first afterwards, each once; what is no list of days is refused."""
    for text, thresholds in {
        "60,30,14,7,1,-1": (60, 30, 14, 7, 1, -1),
        " 7 , 30,+7 ": (30, 7),
        "0": (0,),
        "3650,-3650": (3650, -3650),
        "": (),
        " None ": (),
    }.items():
        assert parse_thresholds(text) == thresholds
    for text in ("sixty", "60;30", "60,,30", "60,", "1.5", "3651", "-3651", "60 30", "٣٠"):
        with pytest.raises(ConfigurationError, match="thresholds must"):
            parse_thresholds(text)


@pytest.mark.parametrize(
    ("text", "coordinator"),
    [
        ("Kari Nordmann <kari@hlf.example>", Coordinator(id=None, full_name="Kari Nordmann", email="kari@hlf.example")),
        (
            '"Nordmann, Kari" <kari@hlf.example>',
            Coordinator(id=None, full_name="Nordmann, Kari", email="kari@hlf.example"),
        ),
        ("kari@hlf.example", Coordinator(id=None, full_name=None, email="kari@hlf.example")),
        ("<kari@hlf.example>", Coordinator(id=None, full_name=None, email="kari@hlf.example")),
        (f"{USER} kari@hlf.example", Coordinator(id=USER, full_name=None, email="kari@hlf.example")),
        (
            f" [{str(USER).upper()}]  Kari  N <kari@hlf.example> ",
            Coordinator(id=USER, full_name="Kari N", email="kari@hlf.example"),
        ),
    ],
)
def test_a_coordinator_is_read_as_a_mail_program_writes_one(text: str, coordinator: Coordinator) -> None:
    """With the app's user id before it, where it is known."""
    assert parse_coordinator(text) == coordinator


def test_a_coordinators_language_is_kept_until_another_is_given(connection: Connection, facts: Facts) -> None:
    """At first bokmål; the same coordinator without a language changes nothing."""
    locales = []
    for text in ("kari@hlf.example", "Kari <kari@hlf.example> nn", "Kari <kari@hlf.example>", "kari@hlf.example en"):
        set_organisation(connection, "hlf", coordinators=[text])
        locales += facts.rows("SELECT full_name, locale FROM coordinators")

    assert locales == [(None, "nb"), ("Kari", "nn"), ("Kari", "nn"), ("Kari", "en")]


def test_what_is_no_coordinator_is_refused() -> None:
    """With the form that is expected."""
    for text in ("", "Kari", "<>", "Kari <kari>", "Kari <k@h.example> <p@h.example>", f"{USER}", "k@h.example x"):
        with pytest.raises(ConfigurationError, match="a coordinator is written as"):
            parse_coordinator(text)


NO_ADDRESSES = (
    *("", "kari", "@example.org", "kari@", "a@b@c", "kari @example.org", "kari@example.org\n", "kari@.example"),
    *("a@b..c", "a@b.", "a\x00@b", "a,b@c", "Kari <kari@example.org>", "a..b@example.org", "kari@straße.example"),
    *("kari@exa_mple.org", "kari=?x?=@example.org", "kari@" + "x" * 64, "k" * 251 + "@b.c", str(USER)),
)


def test_what_no_mail_could_go_to_is_no_address() -> None:
    """What the mail stage would refuse later is refused when it comes in: there is one definition."""
    assert [text for text in NO_ADDRESSES if is_address(text)] == []
    for text in ("kari@example.org", "kåre@blåbær.example", "a.b+c@x", "o'hara@example.org", "k" * 250 + "@b.c"):
        assert is_address(text)


@pytest.mark.parametrize("text", ["KARI@hlf.example", str(USER).upper()])
def test_a_coordinator_is_removed_by_address_or_id(connection: Connection, facts: Facts, text: str) -> None:
    """From this organisation only; the digests go along, open ones, too."""
    for slug in ("hlf", "lhl"):
        set_organisation(connection, slug, coordinators=["Ola <ola@hlf.example>", "kari@hlf.example"])
    set_organisation(connection, "hlf", coordinators=[f"{USER} <kari@hlf.example>"])
    connection.execute("INSERT INTO coordinator_digests (coordinator_id, digest_on) VALUES (%s, '2026-03-10')", (USER,))

    change = set_organisation(connection, "hlf", remove_coordinators=[text])

    assert change.changed
    assert [[person.email for person in row.coordinators] for row in read_organisation_details(connection)] == [
        ["ola@hlf.example"],
        ["kari@hlf.example", "ola@hlf.example"],
    ]
    assert facts.rows("SELECT FROM coordinator_digests") == []
