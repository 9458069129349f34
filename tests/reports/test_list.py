"""`certjob list`: certificates and their holders, as a table, CSV and JSON."""

import csv
import io
import itertools
import re
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from rich.cells import cell_len

from certjob.cli.pages.listing import COLUMNS, MOST_ROWS, print_list_csv, show_list
from certjob.cli.terminal.csv_output import spreadsheet_text
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Status
from certjob.facts import reading as facts_reading
from certjob.reports.listing import Filter, ListedCertificate, list_certificates
from tests.conftest import Certjob
from tests.support.command_line import HOSTILE, assert_one_line, terminal, without_escapes
from tests.support.facts import TODAY, Facts
from tests.support.programmes import random_programme


def listed(connection: Connection, **wanted: Any) -> list[ListedCertificate]:
    return list_certificates(connection, today=TODAY, wanted=Filter(**wanted)).rows


def row(**values: Any) -> ListedCertificate:
    """A row with defaults."""
    dates = {"issued_on": date(2024, 3, 12), "expires_on": date(2026, 3, 12), "days_left": 2}
    person = {"organisation": "hlf", "member_no": "M1", "full_name": "Kari Nordmann", "pauses": (), "left": False}
    ids = {"mentor_id": UUID(int=1), "certificate_id": UUID(int=2)}
    return ListedCertificate(**{**ids, **person, **dates, "kind": "likeperson", "status": Status.EXPIRING, **values})


def csv_of(capsys: pytest.CaptureFixture[str], *rows: ListedCertificate) -> str:
    print_list_csv(rows)
    return capsys.readouterr().out


def test_list_has_the_status_by_the_rules_and_filters_combine(facts: Facts, read_only: Connection) -> None:
    """On random data, also for a status that no run has stored yet."""
    random_programme(facts, seed=20, mentors=60)
    ids = [UUID(str(found[0])) for found in facts.rows("SELECT id FROM mentors")]
    expected = {}
    for mentor in facts_reading.read(facts.connection, ids, lock=False).mentors:
        for certificate in mentor.certificates:
            status = rules.status_of(certificate, mentor, TODAY)
            pauses = tuple(sorted(pause.reason for pause in mentor.open_pauses))
            expected[certificate.id] = (mentor.id, status, pauses, mentor.left, (certificate.expires_on - TODAY).days)

    rows = listed(read_only, with_left=True)

    found = {row.certificate_id: (row.mentor_id, row.status, row.pauses, row.left, row.days_left) for row in rows}
    assert (len(rows), found) == (len(found), expected)
    order = [(row.expires_on, row.organisation, row.member_no) for row in rows if row.expires_on]
    assert order == sorted(order)
    statuses = [status for status in Status if status is not Status.RECORDED]
    assert {row.status for row in rows} == {*statuses}
    organisations = {str(slug): UUID(str(row_id)) for row_id, slug in facts.rows("SELECT id, slug FROM organisations")}
    status_sets = [frozenset(some) for number in range(3) for some in itertools.combinations(statuses, number)]
    ranges = zip([None, 0, 30, 200], itertools.cycle([None, *organisations]))
    for some, (within, slug), with_left in itertools.product(status_sets, ranges, [True, False]):
        wanted = {"statuses": some, "within_days": within, "organisation_id": organisations[slug] if slug else None}
        assert listed(read_only, **wanted, with_left=with_left) == [
            row
            for row in rows
            if (not some or row.status in some)
            and (within is None or abs(row.days_left or 0) <= within)
            and slug in (None, row.organisation)
            and (with_left or not row.left)
        ]


def test_list_names_mentors_who_lack_something(connection: Connection, facts: Facts) -> None:
    """A contact ID for the portal, an address, or a certificate that counts."""
    hlf, nhf = facts.organisation("hlf", optional_kinds=["kurs"]), facts.organisation("nhf", portal=None)
    later = TODAY + timedelta(days=10)
    facts.certified_mentor(hlf, later, member_no="complete")
    facts.certified_mentor(hlf, later, member_no="no contact", contact_id=None)
    facts.certified_mentor(nhf, later, member_no="needs none", contact_id=None)
    facts.certified_mentor(nhf, later, member_no="no address", email=None)
    facts.certified_mentor(nhf, later, member_no="blank", email=" ")
    facts.mentor(nhf, member_no="nothing")
    facts.pause(facts.mentor(nhf, member_no="nothing, paused"))
    facts.mentor(nhf, member_no="nothing, left", left_at=datetime.now(UTC))
    facts.certificate(facts.mentor(hlf, member_no="optional"), later, kind="kurs")

    for wanted, numbers in (
        ({"without_contact_id": True}, {"no contact"}),
        ({"without_address": True}, {"no address", "blank"}),
        ({"without_certificate": True}, {"nothing", "optional"}),
        ({"without_certificate": True, "within_days": 30}, {"optional"}),
    ):
        assert {row.member_no for row in listed(connection, **wanted)} == numbers
    assert "nothing" not in {row.member_no for row in listed(connection)}


def test_list_rejects_wrong_options(here: Certjob, facts: Facts) -> None:
    for options, phrase in (
        ("--status recorded", "'recorded' is not one of upcoming, valid, expiring, expired, renewed, revoked"),
        ("--within -1", "--within"),
        ("--within 999999999", "--within"),
        ("--organisation gone", "no organisation 'gone'; see `certjob organisation list`"),
    ):
        assert_one_line(here("list", *options.split()), phrase, code=2, command="certjob list")


def test_csv_is_rfc_4180(capsys: pytest.CaptureFixture[str]) -> None:
    """A header, CRLF at the end of each line, and quotes only around a comma or a quote."""
    odd = row(full_name=None, pauses=("certification_expired", "leave"), left=True)
    assert csv_of(capsys, row(full_name='Nordmann, "Kari"'), odd, row(full_name="a\r\nb\x1b[2J")) == (
        "organisation,member_no,full_name,kind,status,issued_on,expires_on,days_left,pauses,left,"
        "mentor_id,certificate_id\r\n"
        'hlf,M1,"Nordmann, ""Kari""",likeperson,expiring,2024-03-12,2026-03-12,2,,,{ids}\r\n'
        "hlf,M1,,likeperson,expiring,2024-03-12,2026-03-12,2,certification_expired; leave,yes,{ids}\r\n"
        "hlf,M1,a  b\ufffd[2J,likeperson,expiring,2024-03-12,2026-03-12,2,,,{ids}\r\n"
    ).replace("{ids}", f"{UUID(int=1)},{UUID(int=2)}")


def test_spreadsheet_computes_no_text_of_the_csv(capsys: pytest.CaptureFixture[str]) -> None:
    """An apostrophe precedes each formula, also if a spreadsheet splits cells at other separators."""
    texts = ('=HYPERLINK("http://evil.example","x")', "+1", "-1", "@SUM(A1)", "\t=1", "\r\n=1", " =1", "＝1")
    rows = [row(full_name=text, member_no=text, kind=text, pauses=(text,), days_left=-5) for text in texts]
    written = csv.DictReader(io.StringIO(csv_of(capsys, *rows), newline=""), strict=True)
    for text, read in zip(texts, written, strict=True):
        assert read["days_left"] == "-5"
        for cell in (read["full_name"], read["member_no"], read["kind"], read["pauses"]):
            assert (cell[0], cell.replace("'", "").strip()) == ("'", text.strip())

    signs = "=+-@＝＋－＠"
    separators = [";", ",", "|", "\t", "\n", "\r\n", "\x0b", "\x85", "\u2028", " "]
    for separator, quote in itertools.product(separators, ["", '"', '""', ' "', '" ']):
        text = separator.join(["Ola", *(f"{quote}{sign}1+1{quote}" for sign in signs)])
        for cell in re.split(r"[;,|\t\r\n ]", csv_of(capsys, row(full_name=text, pauses=(text,)))):
            assert cell.strip('"')[:1] not in set(signs), (separator, quote, cell)

    for text in ("Kari-Anne", "Kari - Ola", "O'Hara", "Ødegård", "1-2", "a=b", "a; b", ""):
        assert spreadsheet_text(text) == text


def test_list_without_a_terminal_is_csv_in_utf_8(certjob: Certjob, facts: Facts) -> None:
    """In any locale, with a header even without rows, and with all options."""
    hlf, day = facts.organisation(), date(2099, 1, 31)
    facts.organisation("nhf")
    facts.certified_mentor(hlf, day, full_name="Ærlig Ødegård" + "x" * 200)
    facts.certified_mentor(hlf, day, left_at=datetime.now(UTC))

    result = certjob("list", "--csv", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")

    assert (result.returncode, result.stderr, "Ærlig Ødegård" in result.stdout) == (0, "", True)
    assert certjob("list").stdout == result.stdout
    rows = {"": 1, "--with-left": 2, "--organisation nhf": 0, "--within 9": 0, "--status revoked": 0}
    printed = {options: certjob("list", *options.split()).stdout.splitlines() for options in rows}
    assert {options: len(lines) - 1 for options, lines in printed.items()} == rows
    assert {lines[0] for lines in printed.values()} == {",".join(COLUMNS)}


def test_list_on_a_terminal_fits_and_counts_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """Dates stay whole, and hostile texts are harmless."""
    hostile = row(organisation="nhf", full_name=HOSTILE * 2, pauses=(HOSTILE, "certification_expired"))
    for columns in (80, 120):
        output, shown = terminal(columns)
        show_list(output, [row(), hostile])
        assert all(cell_len(line) <= columns for line in without_escapes(shown.getvalue()).splitlines())
        assert (shown.getvalue().count("2026-03-12"), "\x1b[2J" in shown.getvalue()) == (2, False)
    capsys.readouterr()

    output, shown = terminal(100)
    show_list(output, [row(member_no=f"M{number}") for number in range(MOST_ROWS + 3)])
    assert shown.getvalue().count("Kari Nordmann") == MOST_ROWS
    assert "… and 3 more; --csv prints all of them" in capsys.readouterr().out
    bare = row(certificate_id=None, kind=None, status=None, issued_on=None, expires_on=None, days_left=None)
    for rows in ([row(), bare], [bare], []):
        show_list(output, rows)
    counted = ["hlf: 1 certificate, 1 without a certificate", "hlf: 1 without a certificate", "No mentor matches."]
    assert capsys.readouterr().out.splitlines() == counted
