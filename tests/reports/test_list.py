"""`certjob list`: certificates and their holders, as a table, CSV and JSON."""

import random
import tracemalloc
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from certjob.cli.output import Output
from certjob.database import Connection
from certjob.domain import rules
from certjob.domain.models import Status
from certjob.facts import reading as facts_reading
from certjob.redaction import spreadsheet_text
from certjob.reports.listing import COLUMNS, Filter, ListedCertificate, list_certificates, list_page
from certjob.sorting import SortedRows
from tests.conftest import Certjob
from tests.support.command_line import today
from tests.support.facts import TODAY, Facts
from tests.support.programmes import random_programme


def listed(connection: Connection, **wanted: Any) -> list[ListedCertificate]:
    return list(list_certificates(connection, today=TODAY, wanted=Filter(**wanted)).rows)


DAY = timedelta(days=1)


def row(**values: Any) -> ListedCertificate:
    """A row with defaults."""
    dates = {"issued_on": date(2024, 3, 12), "expires_on": date(2026, 3, 12), "days_left": 2}
    person = {"organisation": "hlf", "member_no": "M1", "full_name": "Kari Nordmann", "pauses": (), "left": False}
    person |= {"locale": "nb"}
    ids = {"mentor_id": UUID(int=1), "certificate_id": UUID(int=2)}
    return ListedCertificate(**{**ids, **person, **dates, "kind": "likeperson", "status": Status.EXPIRING, **values})


def test_list_has_the_status_by_the_rules(facts: Facts) -> None:
    """On random data and read-only, also for a status that no run has stored. The earliest last day comes first."""
    random_programme(facts, seed=20, mentors=60)
    ids = [UUID(str(found[0])) for found in facts.rows("SELECT id FROM mentors")]
    expected = {}
    for mentor in facts_reading.read(facts.connection, ids, lock=False).mentors:
        for certificate in mentor.certificates:
            status = rules.status_of(certificate, mentor, TODAY)
            pauses = tuple(sorted(pause.reason for pause in mentor.open_pauses))
            expected[certificate.id] = (mentor.id, status, pauses, mentor.left, (certificate.expires_on - TODAY).days)

    facts.connection.execute("SET default_transaction_read_only = on")
    rows = [row for row in listed(facts.connection, everyone=True) if row.certificate_id]

    found = {row.certificate_id: (row.mentor_id, row.status, row.pauses, row.left, row.days_left) for row in rows}
    assert (len(rows), found) == (len(found), expected)
    last_days = [row.expires_on for row in rows if row.expires_on]
    assert last_days == sorted(last_days)


def test_list_filters_combine(connection: Connection, facts: Facts) -> None:
    hlf, nhf = facts.organisation("hlf"), facts.organisation("nhf")
    for organisation, slug in ((hlf, "hlf"), (nhf, "nhf")):
        for days in (-5, 5, 200):
            facts.certified_mentor(organisation, TODAY + timedelta(days=days), member_no=f"{slug} {days}")
    facts.certified_mentor(hlf, TODAY, member_no="left", left_at=datetime.now(UTC))
    facts.mentor(hlf, member_no="nothing")
    facts.certificate(facts.mentor(nhf, member_no="kurs"), TODAY, kind="kurs")

    for wanted, numbers in (
        ({"everyone": True, "kinds": {"kurs"}}, ["kurs"]),
        ({"kinds": {"kurs", "likeperson"}, "to_on": TODAY}, ["hlf -5", "nhf -5", "kurs"]),
        ({"organisation_id": hlf}, ["hlf -5", "hlf 5", "hlf 200"]),
        ({"organisation_id": hlf, "everyone": True}, ["nothing", "hlf -5", "left", "hlf 5", "hlf 200"]),
        ({"organisation_id": nhf, "from_on": TODAY - 5 * DAY, "to_on": TODAY + 5 * DAY}, ["nhf -5", "kurs", "nhf 5"]),
        ({"organisation_id": nhf, "from_on": TODAY - 4 * DAY}, ["kurs", "nhf 5", "nhf 200"]),
        ({"organisation_id": nhf, "to_on": TODAY + 4 * DAY}, ["nhf -5", "kurs"]),
        ({"organisation_id": nhf, "to_on": TODAY + 5 * DAY, "statuses": {Status.EXPIRED, Status.VALID}}, ["nhf -5"]),
    ):
        assert [row.member_no for row in listed(connection, **wanted)] == numbers


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
        ({"without_certificate": True, "to_on": TODAY + 30 * DAY}, {"optional"}),
    ):
        assert {row.member_no for row in listed(connection, **wanted)} == numbers


def test_csv_is_rfc_4180(capsys: pytest.CaptureFixture[str]) -> None:
    """A header, CRLF at the end of each line, and quotes only around a comma or a quote."""
    odd = row(full_name=None, pauses=("certification_expired", "leave"), left=True)

    rows = SortedRows[ListedCertificate](lambda _: 0)
    for each in (row(full_name='Nordmann, "Kari"'), odd, row(full_name="a\r\nb\x1b[2J")):
        rows.append(each)
    Output(quiet=False).show(list_page(rows), csv=True)

    assert capsys.readouterr().out == (
        "organisation,member_no,full_name,kind,status,issued_on,expires_on,days_left,pauses,left,"
        "mentor_id,certificate_id,revoked_on,email,locale,dynamics_contact_id,left_on\r\n"
        'hlf,M1,"Nordmann, ""Kari""",likeperson,expiring,2024-03-12,2026-03-12,2,,no,{ids}\r\n'
        "hlf,M1,,likeperson,expiring,2024-03-12,2026-03-12,2,certification_expired; leave,yes,{ids}\r\n"
        "hlf,M1,a  b\ufffd[2J,likeperson,expiring,2024-03-12,2026-03-12,2,,no,{ids}\r\n"
    ).replace("{ids}", f"{UUID(int=1)},{UUID(int=2)},,,nb,,")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('=HYPERLINK("x")', '\'=HYPERLINK("x")'),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("＝1", "'＝1"),
        ("\t=1", "' '=1"),
        ("Ola;=1", "Ola;'=1"),
        ("Ola,=1", "Ola,'=1"),
        ('Ola;"=1"', 'Ola;\'"=1"'),
        ("Kari-Anne a=b; O'Hara", "Kari-Anne a=b; O'Hara"),
    ],
)
def test_spreadsheet_computes_no_text_of_the_csv(text: str, written: str) -> None:
    """An apostrophe precedes each formula, also if a spreadsheet splits cells at other separators."""
    assert spreadsheet_text(text) == written


def test_command_lists_the_certificates_of_a_period(here: Certjob, facts: Facts) -> None:
    """Both days are in it."""
    organisation, now = facts.organisation(), today()
    for days in (-1, 0, 3, 4):
        facts.certified_mentor(organisation, now + days * DAY, member_no=f"M{days}")

    lines = here("list", "--from", str(now), "--to", str(now + 3 * DAY)).stdout.splitlines()[1:]

    assert [line.split(",")[1] for line in lines] == ["M0", "M3"]


def test_list_without_a_terminal_is_csv_in_utf_8(certjob: Certjob, facts: Facts) -> None:
    """In any locale."""
    facts.certified_mentor(facts.organisation(), date(2099, 1, 31), full_name="Ærlig Ødegård")

    result = certjob("list", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")

    header, line = result.stdout.splitlines()
    assert (header, "Ærlig Ødegård" in line) == (",".join(COLUMNS), True)


# Rows that do not fit comfortably into memory.


def test_rows_come_in_the_order_of_the_key_and_equal_ones_as_they_were_added() -> None:
    """As ``sorted`` returns them, with one run or several, and again after more rows."""
    chance = random.Random(1)
    for number in (0, 1, 250, 9_999, 10_000, 25_123):
        rows = [(chance.randint(0, 50), place) for place in range(number)]
        kept = SortedRows[tuple[int, int]](lambda pair: pair[0])
        for place, pair in enumerate(rows):
            kept.append(pair)
            if place == number // 2:
                assert next(iter(kept)) == min(rows[: place + 1], key=lambda pair: pair[0])

        assert (list(kept), len(kept)) == (sorted(rows, key=lambda pair: pair[0]), number)
        assert list(kept) == list(kept)


def test_rows_of_12_000_certificates_take_4_mb() -> None:
    """A list of them takes 6 MB. With 200,000 mentors, Kubernetes would end the command."""
    tracemalloc.start()
    kept = SortedRows[ListedCertificate](lambda each: each.expires_on)
    for number in range(12_000):
        kept.append(row(member_no=f"M{number}", expires_on=TODAY + number % 730 * DAY, certificate_id=uuid4()))
    counted = sum(1 for _ in kept)
    megabytes = tracemalloc.get_traced_memory()[0] / 2**20
    tracemalloc.stop()

    assert counted == 12_000
    assert megabytes < 4
