"""`certjob list`: who has which certificate, by today's rules, in every form and at any size."""

import csv
import io
import itertools
import json
import re
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from rich.cells import cell_len

from certjob import database
from certjob.cli.pages.listing import COLUMNS, MOST_ROWS, print_list_csv, show_list, to_document
from certjob.cli.terminal.csv_output import spreadsheet_text
from certjob.cli.terminal.plain import print_json
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Status
from certjob.facts import reading as facts_reading
from certjob.views.listing import Filter, ListedCertificate, list_certificates
from tests.conftest import Certjob
from tests.support import forked_command
from tests.support.command_line import assert_one_line, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.nights import night
from tests.support.programmes import everything, random_programme
from tests.support.terminals import HOSTILE, terminal

SHOWN_STATUSES = tuple(status for status in Status if status is not Status.RECORDED)
READ_ONLY = "-c default_transaction_read_only=on"


def listed(connection: Connection, *, today: date = TODAY, **wanted: Any) -> list[ListedCertificate]:
    return list_certificates(connection, today=today, wanted=Filter(**wanted)).rows


def row(**values: Any) -> ListedCertificate:
    """A row with defaults for everything a test does not care about."""
    defaults: dict[str, Any] = {
        "organisation": "hlf",
        "member_no": "M1",
        "full_name": "Kari Nordmann",
        "kind": "likeperson",
        "status": Status.EXPIRING,
        "issued_on": date(2024, 3, 12),
        "expires_on": date(2026, 3, 12),
        "days_left": 2,
        "pauses": (),
        "left": False,
        "mentor_id": UUID(int=1),
        "certificate_id": UUID(int=2),
    }
    return ListedCertificate(**defaults | values)


# What is listed.


def test_the_status_is_what_the_rules_say_today_and_filters_hold_all_together(
    connection: Connection, facts: Facts, database_url: str
) -> None:
    """On random data, whatever a night has stored; any filters give the rows that fit, in order; nothing is written."""
    random_programme(facts, seed=20, mentors=60)
    ids = [UUID(str(found[0])) for found in facts.rows("SELECT id FROM mentors")]
    expected = {}
    for mentor in facts_reading.read(connection, ids, lock=False).mentors:
        for certificate in mentor.certificates:
            siblings = [other for other in mentor.certificates if other.kind == certificate.kind]
            status = rules.status_of(certificate, siblings, mentor, TODAY)
            pauses = tuple(sorted(pause.reason for pause in mentor.open_pauses))
            expected[certificate.id] = (mentor.id, status, pauses, mentor.left, (certificate.expires_on - TODAY).days)
    before = everything(facts)

    with database.connect(psycopg.conninfo.make_conninfo(database_url, options=READ_ONLY)) as own:
        rows = listed(own, with_left=True)

    found = {row.certificate_id: (row.mentor_id, row.status, row.pauses, row.left, row.days_left) for row in rows}
    assert len(rows) == len(found)
    assert found == expected
    assert [row.expires_on for row in rows] == sorted(row.expires_on for row in rows if row.expires_on)
    assert len({row.status for row in rows}) == len(SHOWN_STATUSES)
    organisations = {str(slug): UUID(str(row_id)) for row_id, slug in facts.rows("SELECT id, slug FROM organisations")}
    status_sets = [
        frozenset(chosen) for number in range(3) for chosen in itertools.combinations(SHOWN_STATUSES, number)
    ]
    for statuses, (within, slug), with_left in itertools.product(
        status_sets, zip([None, 0, 30, 200], itertools.cycle([None, *organisations])), [True, False]
    ):
        assert listed(
            connection,
            statuses=statuses,
            within_days=within,
            organisation_id=organisations[slug] if slug else None,
            with_left=with_left,
        ) == [
            row
            for row in rows
            if (not statuses or row.status in statuses)
            and (within is None or abs(row.days_left or 0) <= within)
            and slug in (None, row.organisation)
            and (with_left or not row.left)
        ]
    assert everything(facts) == before


def test_who_asks_for_a_status_gets_it_to_the_day(connection: Connection, facts: Facts) -> None:
    """On the first and the last day of each, and under no other."""
    organisation = facts.organisation(thresholds=[60, 30])
    for days_left in (-1, 0, 60, 61):
        facts.certified_mentor(organisation, TODAY + timedelta(days=days_left))

    found = {each: [row.days_left for row in listed(connection, statuses=frozenset({each}))] for each in SHOWN_STATUSES}

    assert {status: days for status, days in found.items() if days} == {
        Status.EXPIRED: [-1],
        Status.EXPIRING: [0, 60],
        Status.VALID: [61],
    }


def test_a_status_is_listed_before_a_night_has_noted_it(connection: Connection, facts: Facts) -> None:
    """Revoked an hour ago: the list says so; the pause, which only a night opens, is not there yet."""
    facts.certified_mentor(facts.organisation(), TODAY + timedelta(days=300))
    night(connection)
    facts.connection.execute("UPDATE certificates SET revoked_at = now()")

    assert [(row.status, row.pauses) for row in listed(connection)] == [(Status.REVOKED, ())]
    night(connection)
    assert [(row.status, row.pauses) for row in listed(connection)] == [(Status.REVOKED, ("certification_expired",))]


def test_rows_of_one_day_are_in_the_order_of_their_members(connection: Connection, facts: Facts) -> None:
    """By organisation, then by member number: the same list every time."""
    for slug in ("nhf", "hlf"):
        organisation = facts.organisation(slug)
        for number in ("M2", "M1"):
            facts.certified_mentor(organisation, TODAY, member_no=number)

    assert [(row.organisation, row.member_no) for row in listed(connection)] == [
        *(("hlf", "M1"), ("hlf", "M2")),
        *(("nhf", "M1"), ("nhf", "M2")),
    ]


def test_what_check_and_status_only_count(connection: Connection, facts: Facts) -> None:
    """Who has no contact id although there is a portal, no address, no certificate that counts; one row of each."""
    hlf, nhf = facts.organisation("hlf", optional_kinds=["kurs"]), facts.organisation("nhf", portal=None)
    later = TODAY + timedelta(days=10)
    facts.certified_mentor(hlf, later, member_no="complete")
    facts.certified_mentor(hlf, later, member_no="no contact", contact_id=None)
    facts.certified_mentor(nhf, later, member_no="needs none", contact_id=None)
    facts.certified_mentor(nhf, later, member_no="no address", email=None)
    facts.certified_mentor(nhf, later, member_no="blank", email=" ")
    facts.mentor(nhf, member_no="nothing")
    facts.mentor(nhf, member_no="nothing, left", left_at=datetime.now(UTC))
    facts.certificate(facts.mentor(hlf, member_no="optional"), later, kind="kurs")

    def numbers(**wanted: Any) -> set[str]:
        return {row.member_no for row in listed(connection, **wanted)}

    assert numbers(without_contact_id=True) == {"no contact"}
    assert numbers(without_address=True) == {"no address", "blank"}
    assert numbers(without_certificate=True) == {"nothing", "optional"}
    assert numbers(without_certificate=True, within_days=30) == {"optional"}
    assert "nothing" not in numbers()


# CSV.


def csv_of(rows: Iterable[ListedCertificate], capsys: pytest.CaptureFixture[str]) -> str:
    print_list_csv(rows)
    return capsys.readouterr().out


def test_csv_is_rfc_4180(capsys: pytest.CaptureFixture[str]) -> None:
    """A header, CRLF after each line, quotes only where a comma or a quote needs them."""
    rows = [
        row(full_name='Nordmann, "Kari"'),
        row(full_name=None, pauses=("certification_expired", "leave"), left=True),
    ]

    text = csv_of(rows, capsys)

    assert text == (
        "organisation,member_no,name,kind,status,issued_on,expires_on,days_left,paused,left\r\n"
        'hlf,M1,"Nordmann, ""Kari""",likeperson,expiring,2024-03-12,2026-03-12,2,,\r\n'
        "hlf,M1,,likeperson,expiring,2024-03-12,2026-03-12,2,certification_expired; leave,yes\r\n"
    )


@pytest.mark.parametrize(
    "text",
    ['=HYPERLINK("http://evil.example","x")', "+1", "-1", "@SUM(A1)", "\t=1", "\r\n=1", " =1", "＝1", "＠x"],
)
def test_no_text_of_a_cell_is_computed_by_a_spreadsheet(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An apostrophe stands before what begins like a formula, in every column that people fill; numbers stay."""
    written = csv_of([row(full_name=text, member_no=text, kind=text, pauses=(text,), days_left=-5)], capsys)

    _, cells = csv.reader(io.StringIO(written, newline=""), strict=True)
    read = dict(zip(COLUMNS, cells, strict=True))
    for column in ("name", "member_no", "kind", "paused"):
        assert read[column].startswith("'")
        assert read[column].replace("'", "").strip() == text.strip()
    assert read["days_left"] == "-5"


FORMULA_SIGNS = "=+-@＝＋－＠"


def test_nor_by_one_that_splits_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    """At semicolons, as where the comma is the decimal sign; whatever it makes of quotes and line ends."""
    separators = [";", ",", "|", "\t", "\n", "\r\n", "\x0b", "\x85", "\u2028", " "]
    for separator, quote in itertools.product(separators, ["", '"', '""', ' "', '" ']):
        text = separator.join(["Ola", *(f"{quote}{sign}1+1{quote}" for sign in FORMULA_SIGNS)])

        written = csv_of([row(full_name=text, pauses=(text,))], capsys)

        for cell in re.split(r"[;,|\t\r\n ]", written):
            assert cell.strip('"')[:1] not in set(FORMULA_SIGNS), (separator, quote, cell)


def test_other_text_stays_as_it_is() -> None:
    """Hyphens and apostrophes inside names are nobody's formula."""
    for text in ("Kari-Anne", "Kari - Ola", "O'Hara", "Ødegård", "1-2", "a=b", "a; b", ""):
        assert spreadsheet_text(text) == text


def test_csv_reads_back_line_by_line_whatever_was_entered(capsys: pytest.CaptureFixture[str]) -> None:
    """Line ends and orders to a terminal inside a name break no row and move no cursor."""
    written = csv_of([row(full_name=f"a\r\nb,{HOSTILE}")], capsys)

    assert written.count("\r\n") == 2
    assert "\x1b" not in written
    assert len(list(csv.reader(io.StringIO(written, newline=""), strict=True))[1]) == len(COLUMNS)


def test_off_a_terminal_it_is_csv_in_utf_8_whatever_the_locale(certjob: Certjob, facts: Facts) -> None:
    """The same as with --csv; with no rows there is still a header; exit 0."""
    organisation = facts.organisation()
    facts.certified_mentor(organisation, date(2099, 1, 31), member_no="M1", full_name="Ærlig Ødegård" + "x" * 200)

    result = certjob("list", "--csv", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    empty = certjob("list", "--csv", "--status", "revoked")

    assert "Ærlig Ødegård" in result.stdout
    assert (result.returncode, result.stderr) == (0, "")
    assert certjob("list").stdout == result.stdout
    assert empty.stdout.splitlines() == [",".join(COLUMNS)]


# The other forms.


def test_the_document_is_one_and_says_everything(connection: Connection, facts: Facts, capsys: Any) -> None:
    """Also with no rows at all, and with a name that a terminal would obey."""
    mentor_id = facts.certified_mentor(facts.organisation(), TODAY, full_name=HOSTILE, member_no="M1")

    found = list_certificates(connection, today=TODAY, wanted=Filter())
    print_json(to_document(found, today=TODAY))
    text = capsys.readouterr().out

    read = json.loads(text)
    assert (read["outcome"], read["today"], read["problems"]) == ("ok", "2026-03-10", [])
    certificate = read["certificates"][0]
    assert certificate.pop("certificate_id")
    assert certificate == {
        "organisation": "hlf",
        "member_no": "M1",
        "full_name": HOSTILE,
        "kind": "likeperson",
        "status": "expiring",
        "issued_on": "2024-01-01",
        "expires_on": "2026-03-10",
        "days_left": 0,
        "pauses": [],
        "left": False,
        "mentor_id": str(mentor_id),
    }
    assert all(character.isprintable() or character == "\n" for character in text)


def test_on_a_terminal_the_list_is_no_wider_than_it(connection: Connection, facts: Facts) -> None:
    """Dates stay whole."""
    for slug in ("hlf", "nhf"):
        mentor_id = facts.certified_mentor(facts.organisation(slug), TODAY - timedelta(days=1), full_name=HOSTILE * 2)
        facts.pause(mentor_id, reason=HOSTILE)
    night(connection)
    for columns in (80, 120):
        output, shown = terminal(columns)

        show_list(output, listed(connection))

        text = without_escapes(shown.getvalue())
        assert all(cell_len(line) <= columns for line in text.splitlines())
        assert text.count("2026-03-09") == 2
        assert "\x1b[2J" not in shown.getvalue()


def test_a_terminal_gets_a_page_and_is_told_how_many_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """And where the rest is."""
    output, shown = terminal(100)

    show_list(output, [row(member_no=f"M{number}") for number in range(MOST_ROWS + 3)])
    assert shown.getvalue().count("Kari Nordmann") == MOST_ROWS
    assert "… and 3 more; --csv prints all of them" in capsys.readouterr().out
    show_list(output, [row()])
    show_list(output, [])
    assert capsys.readouterr().out.splitlines() == ["1 certificate", "No certificate fits."]


def test_whoever_stops_reading_ends_it_without_a_word(
    database_url: str, bare_environment: dict[str, str], facts: Facts, tmp_path: Path
) -> None:
    """`certjob list | head -1`: exit 0, nothing on stderr."""
    facts.connection.execute(
        "WITH m AS (INSERT INTO mentors (organisation_id, member_no) SELECT %s, 'M' || n FROM "
        " generate_series(1, 3000) AS n RETURNING id) INSERT INTO certificates"
        " (mentor_id, kind, issued_on, expires_on) SELECT id, 'likeperson', '2024-01-01', '2099-12-31' FROM m",
        (facts.organisation(),),
    )
    environment = bare_environment | {"CERTJOB_DATABASE_URL": database_url}
    for form in ("--csv", "--json"):
        with forked_command.start(["list", form], environment=environment, folder=tmp_path) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            said = process.stderr.read()

        assert (process.returncode, said) == (0, "")


def test_what_cannot_be_asked_for_exits_2_and_says_why(certjob: Certjob) -> None:
    """In one line."""
    for arguments, phrase in (
        (["--status", "gone"], "--status is one of upcoming, valid, expiring, expired, renewed, revoked"),
        (["--status", "recorded"], "--status is one of"),
        (["--within", "-1"], "--within"),
        (["--within", "999999999"], "--within"),
        (["--organisation", "gone"], "no organisation 'gone'; see `certjob organisation list`"),
        (["--csv", "--json"], "--csv and --json are two forms of the same"),
    ):
        assert_one_line(certjob("list", *arguments), phrase, code=2, command="certjob list")


def test_options_are_combined(certjob: Certjob, facts: Facts) -> None:
    """Those who end soon, in one organisation, who have not left: as docs/commands.md asks for them."""
    today = datetime.now(UTC).date()
    hlf, nhf = facts.organisation("hlf"), facts.organisation("nhf")
    facts.certified_mentor(hlf, today + timedelta(days=20), member_no="M1")
    facts.certified_mentor(hlf, today + timedelta(days=50), member_no="M2", left_at=datetime.now(UTC))
    facts.certified_mentor(nhf, today + timedelta(days=20), member_no="M3")
    facts.certified_mentor(hlf, today + timedelta(days=55), member_no="M4")

    asked = ["list", "--status", "expiring", "--within", "30", "--organisation", "hlf", "--csv"]

    assert [line.split(",")[1] for line in certjob(*asked).stdout.splitlines()[1:]] == ["M1"]
    assert [line.split(",")[1] for line in certjob("list", "--with-left").stdout.splitlines()[1:]] == [
        *("M1", "M3", "M2", "M4"),
    ]
