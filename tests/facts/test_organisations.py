"""Create and change organisations and their coordinators."""

import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from certjob.errors import ConfigurationError
from certjob.facts.organisations import (
    Coordinator,
    OrganisationChange,
    read_coordinator,
    read_organisation_details,
    read_thresholds,
    set_organisation,
)
from tests.conftest import Certjob
from tests.support.command_line import flat, on_terminal, today, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import CollectingChannel, night

USER = UUID("5f0c1f9e-9d0b-4f0f-9a55-0d9c3b6f8a21")


def change(facts: Facts, slug: str = "hlf", **values: Any) -> OrganisationChange:
    return set_organisation(facts.connection, slug, **values)


def values(changed: OrganisationChange) -> list[tuple[str, str, str]]:
    """Return the changed options with their old and new values."""
    return [(each.option, each.old, each.new) for each in changed.changes]


def coordinate(facts: Facts, *people: str, slug: str = "hlf") -> list[tuple[object, ...]]:
    """Give an organisation these coordinators; return all there are."""
    change(facts, slug, coordinators=people)
    return facts.rows("SELECT id, full_name, email, locale FROM coordinators ORDER BY email")


def test_set_changes_only_the_given_values(facts: Facts) -> None:
    """`none` and an empty text remove a value. Mentors who have left are not counted."""
    given: dict[str, Any] = {
        "name": "Hørselshemmedes Landsforbund",
        "contact_phone": "9" * 50,
        "contact_email": "kontakt@hlf.example",
        "renewal_url": "https://hlf.example/fornye",
        "sender": "HLF Likeperson <likeperson@hlf.example>",
        "portal": "dynamics",
        "optional_kinds": ["førstehjelp", "kurs"],
    }
    change(facts, coordinators=["per@hlf.example"], thresholds="90,7", **given)
    facts.connection.execute(
        "INSERT INTO mentors (organisation_id, member_no, left_at)"
        " SELECT id, no, left_at FROM organisations, (VALUES ('M1', NULL), ('M2', now())) AS m (no, left_at)"
    )

    (shown,) = read_organisation_details(facts.connection, "hlf")
    removed: dict[str, Any] = {"thresholds": "", "optional_kinds": ["none"], "contact_phone": "", "sender": ""}
    changed = change(facts, name="HLF Norge", portal="none", **removed)
    (after,) = read_organisation_details(facts.connection)

    assert shown == replace(shown, slug="hlf", mentors=1, thresholds=[90, 7], **given)
    assert [person.email for person in shown.coordinators] == ["per@hlf.example"]
    assert (changed.created, changed.open_hides) == (False, 0)
    assert values(changed) == [
        ("name", given["name"], "HLF Norge"),
        ("portal", "dynamics", "none"),
        ("thresholds", "90,7", "none"),
        ("contact-phone", given["contact_phone"], "none"),
        ("sender", given["sender"], "none"),
        ("optional-kinds", "førstehjelp,kurs", "none"),
    ]
    without: dict[str, Any] = {"thresholds": [], "optional_kinds": [], "contact_phone": None, "sender": None}
    assert after == replace(shown, name="HLF Norge", portal=None, **without)


def test_new_organisation_gets_defaults(facts: Facts) -> None:
    assert change(facts) == OrganisationChange(created=True, changes=[], open_hides=0)

    (shown,) = read_organisation_details(facts.connection)
    assert (shown.name, shown.portal, shown.thresholds) == ("HLF", None, [60, 30, 14, 7, 1, -1])
    assert (shown.optional_kinds, shown.coordinators, shown.mentors) == ([], [], 0)


def test_repeated_set_writes_nothing_and_a_new_rule_causes_reviews(facts: Facts) -> None:
    """A changed name causes no review."""
    given: dict[str, Any] = {"portal": "dynamics", "coordinators": ["Kari <kari@hlf.example>"]}
    change(facts, thresholds="30,7", **given)
    facts.connection.execute("INSERT INTO mentors (organisation_id, member_no) SELECT id, 'M1' FROM organisations")
    facts.connection.execute("UPDATE mentors SET review_on = '2026-12-01'")

    assert change(facts, thresholds="30,7", **given) == OrganisationChange(created=False, changes=[], open_hides=0)
    assert values(change(facts, name="HLF Norge")) == [("name", "HLF", "HLF Norge")]
    assert facts.rows("SELECT review_on FROM mentors") == [(date(2026, 12, 1),)]
    change(facts, thresholds="30")
    assert facts.rows("SELECT review_on = '-infinity' FROM mentors") == [(True,)]


def test_coordinator_is_found_by_mail_in_any_case(facts: Facts) -> None:
    """A later name, language or user id changes the same row. Digests follow a new id."""
    ((own_id, *_),) = coordinate(facts, "Kari <kari@hlf.example>")
    facts.insert("coordinator_digests", coordinator_id=own_id, digest_on=TODAY)

    renamed = coordinate(facts, "Kari.Nordmann <KARI@hlf.example> nn")
    with_id = coordinate(facts, f"[{USER}] <Kari@hlf.example>")

    assert renamed == [(own_id, "Kari.Nordmann", "KARI@hlf.example", "nn")]
    assert with_id == [(USER, "Kari.Nordmann", "Kari@hlf.example", "nn")]
    assert facts.rows("SELECT coordinator_id FROM coordinator_digests") == [(USER,)]


def test_coordinator_with_a_new_mail_stays_one_row(facts: Facts) -> None:
    """If another row has this mail, the two rows become one. A user id has one organisation."""
    coordinate(facts, f"{USER} Kari <kari@hlf.example> nn", "new@hlf.example")

    assert coordinate(facts, f"{USER} <new@hlf.example> en") == [(USER, "Kari", "new@hlf.example", "en")]
    with pytest.raises(ConfigurationError, match="already coordinates another organisation"):
        coordinate(facts, f"{USER} <kari@lhl.example>", slug="lhl")


@pytest.mark.parametrize("text", ["KARI@hlf.example", str(USER).upper()])
def test_coordinator_is_removed_by_mail_or_user_id(facts: Facts, text: str) -> None:
    """Coordinators of other organisations stay. The digests are deleted."""
    coordinate(facts, "kari@hlf.example", slug="lhl")
    coordinate(facts, "ola@hlf.example", f"{USER} <kari@hlf.example>")
    facts.insert("coordinator_digests", coordinator_id=USER, digest_on=TODAY)

    removed = change(facts, remove_coordinators=[text])

    assert values(removed) == [("coordinator", f"<kari@hlf.example> nb ({USER})", "none")]

    assert facts.rows("SELECT email FROM coordinators ORDER BY 1") == [("kari@hlf.example",), ("ola@hlf.example",)]
    assert facts.rows("SELECT FROM coordinator_digests") == []


def test_coordinator_is_read_as_a_mail_program_writes_one() -> None:
    """A user id may precede it, and a language may follow."""
    kari = Coordinator(id=None, full_name="Nordmann, Kari", email="kari@hlf.example", locale="nn")

    assert read_coordinator('"Nordmann, Kari" <kari@hlf.example> nn') == kari
    assert read_coordinator(f"[{USER}] <kari@hlf.example>") == Coordinator(id=USER, full_name=None, email=kari.email)
    for text in ("Kari", "Kari <k@h.example> <p@h.example>", f"{USER}"):
        with pytest.raises(ValueError, match="not "):
            read_coordinator(text)


INVALID: dict[str, dict[str, Any]] = {
    "slug has only a-z, 0-9, - and _, and at most 63 of them": {"slug": "HLF"},
    "slug is not `all`, because the ids of alerts that concern everyone begin with it": {"slug": "all"},
    "--name: empty; nothing was changed": {"name": " "},
    "--optional-kind: has a control character or an invisible one": {"optional_kinds": ["like\u00adperson"]},
    "--renewal-url: not a web address such as https://": {"renewal_url": "javascript:alert(1)"},
    "--sender: not an address, or a name and <address>": {"sender": "LHL"},
    "--thresholds: not a list of at most 50 days": {"thresholds": "60;30"},
    "organisation hlf has no coordinator with this address": {"remove_coordinators": ["per@hlf.example"]},
}


def test_invalid_value_is_rejected_and_no_row_written(facts: Facts) -> None:
    """The error names the option."""
    for message, values in INVALID.items():
        with pytest.raises(ConfigurationError) as rejection:
            change(facts, **values)

        assert message in str(rejection.value)
        assert rejection.value.exit_code == 2
    assert facts.rows("SELECT FROM organisations") == []


def test_at_most_50_thresholds_are_stored_and_each_within_ten_years(facts: Facts) -> None:
    fifty = ",".join(map(str, range(50)))

    assert read_thresholds("3650, -3650") == [3650, -3650]
    assert change(facts, thresholds=fifty).created
    for text in (f"{fifty},50", "60;30", "60,", "3651", "-3651"):
        with pytest.raises(ValueError, match="not a list of at most 50 days"):
            read_thresholds(text)


def test_new_thresholds_announce_the_reminders_that_follow(here: Certjob, facts: Facts) -> None:
    """Otherwise a threshold of 600 days would mail nearly everyone without a question."""
    home = facts.organisation(thresholds=())
    for days in (20, 25, 40):
        facts.certified_mentor(home, today() + timedelta(days=days))

    said = [here("organisation", "set", "hlf", "--thresholds", days, "--json") for days in ("30", "30,60", "1")]

    assert [json.loads(each.stdout)["coming_reminders"] for each in said] == [2, 3, 0]


def test_new_thresholds_announce_what_the_next_run_queues(here: Certjob, facts: Facts) -> None:
    """Not the 22 reminders about new certificates that a guard holds, and no mail that repeats the one of 30 days."""
    home = facts.organisation(thresholds=(30,))
    for days in (20, 25, 40):
        facts.certified_mentor(home, today() + timedelta(days=days))
    night(facts.connection, today(), channel=CollectingChannel())
    for _ in range(22):
        facts.certified_mentor(home, today() + timedelta(days=5))

    said = here("organisation", "set", "hlf", "--thresholds", "60,28,7", "--json")

    report = night(facts.connection, today()).to_document()
    assert (report["reminders"]["queued"], len(report["held"])) == (1, 1)
    assert json.loads(said.stdout)["coming_reminders"] == 1


def test_a_terminal_shows_each_changed_option(facts: Facts, environment: dict[str, str], tmp_path: Path) -> None:
    facts.organisation(thresholds=(30, 7))
    command = ["organisation", "set", "hlf", "--thresholds", "60,30,7", "--sender", "HLF <x@hlf.example>"]

    code, shown = on_terminal(command, environment=environment, folder=tmp_path)

    assert code == 0
    assert "hlf: thresholds 30,7 → 60,30,7; sender none → HLF <x@hlf.example>" in flat(without_escapes(shown))


def test_portal_none_reports_the_open_hides(here: Certjob, facts: Facts) -> None:
    """certjob withdraws them, so someone must hide these mentors by hand."""
    hlf = facts.organisation("hlf")
    for visible, status in ((False, "pending"), (False, "blocked"), (True, "pending"), (False, "delivered")):
        mentor = facts.certified_mentor(hlf, date(2027, 1, 1))
        facts.insert("portal_sync_events", mentor_id=mentor, visible=visible, status=status)

    result = here("organisation", "set", "hlf", "--portal", "none")

    said = "hlf: hides that the portal has not confirmed: 2; hide these mentors by hand, then repeat it with"
    assert (result.returncode, result.stderr) == (
        3,
        f"certjob organisation set: {said} --hidden-by-hand --because TEXT\n",
    )
    assert change(facts, name="HLF Norge").open_hides == 0


def test_organisation_with_a_portal_needs_a_kind_that_counts(facts: Facts) -> None:
    """Otherwise no one would be certified, and the portal would hide all mentors."""
    hlf = facts.organisation("hlf", optional_kinds=["kurs"])
    lhl = facts.organisation("lhl", portal=None, optional_kinds=["likeperson"])
    for organisation_id in (hlf, lhl):
        facts.certified_mentor(organisation_id, date(2027, 1, 1))

    with pytest.raises(ConfigurationError, match="every kind of certificate in hlf would be optional"):
        change(facts, "hlf", optional_kinds=["kurs", "likeperson"])
    with pytest.raises(ConfigurationError, match="every kind of certificate in lhl would be optional"):
        change(facts, "lhl", portal="dynamics")

    stored = "SELECT portal, optional_kinds FROM organisations ORDER BY slug"
    assert facts.rows(stored) == [("dynamics", ["kurs"]), (None, ["likeperson"])]
