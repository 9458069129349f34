"""Read a CSV file: accepted columns and cells, and problems of the others."""

from datetime import date
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certjob.errors import InputError
from certjob.facts.roster import Roster, read_roster

HLF = UUID("5f0c1f9e-9d0b-4f0f-9a55-0d9c3b6f8a21")
CONTACT = UUID("0b6c0f5e-52a5-4f0e-8f0c-0d5a3c9c7a11")
LOAD_DAY = date(2026, 11, 26)
REQUIRED = "organisation,member_no,kind,issued_on,expires_on"
HEADER = REQUIRED + ",full_name,email,locale,dynamics_contact_id,revoked_on,left_on"
ROW = f"hlf,M1,likeperson,2024-02-01,2026-02-01,Kari,kari@example.org,nb,{CONTACT},,"
GOOD = dict(zip(HEADER.split(","), ROW.split(","), strict=True))
NO_DATE = "not a date such as 2026-12-31 or 31.12.2026"
INVISIBLE = "has a control character or an invisible one"
IN_FUTURE = "in the future, but it would take effect now; load it on that day"


def read(content: str | bytes) -> Roster:
    """Read a file; the organisation ``hlf`` exists."""
    data = content.encode() if isinstance(content, str) else content
    return read_roster(data, organisation_ids={"hlf": HLF}, today=LOAD_DAY)


def rows(*changes: dict[str, str]) -> str:
    """Return a file with a good row for each of these changes of it."""
    return "\n".join([HEADER, *(",".join((GOOD | change).values()) for change in changes)])


def numbers(found: Roster) -> list[str]:
    """Return the member numbers that were read."""
    return [number for _, number in found.mentors]


@pytest.mark.parametrize(
    "content",
    [
        f"\ufeff{REQUIRED}\r\n\r\nhlf,M1,kurs,2024-02-01,2026-02-01\r\n,,,,\r\n",
        "Expires_On;kind; MEMBER_NO;organisation;issued_on\n1.2.2026;kurs;M1; HLF;01.02.2024;;\n",
        f"{REQUIRED.replace(',', chr(9))}\rhlf\tM1\tkurs\t2024-02-01\t2026-02-01",
        f'{REQUIRED}\nhlf,"M1", "kurs",2024-02-01,"2026-02-01"',
    ],
    ids=["byte order mark, blank rows", "semicolons, other order", "tabs, CR alone", "quotes"],
)
def test_roster_accepts_the_usual_forms_of_csv(content: str) -> None:
    """Separators, line ends, the order and the case of the columns, both forms of a date."""
    found = read(content)

    ((certificate, dates),) = found.certificates.items()
    assert (certificate, dates[:2]) == (((HLF, "M1"), "kurs", date(2024, 2, 1)), (date(2026, 2, 1), None))
    assert (found.rows, found.skipped, found.problems) == (1, 0, [])


def test_name_and_contact_id_are_read_in_any_form() -> None:
    """A line break in a name becomes a space; Dynamics writes UUIDs in braces and capitals."""
    found = read(rows({"full_name": '"Kåre\nNordmann"', "dynamics_contact_id": f"{{{str(CONTACT).upper()}}}"}))

    mentor = found.mentors[HLF, "M1"]
    assert (mentor["full_name"], mentor["dynamics_contact_id"]) == ("Kåre Nordmann", CONTACT)


@pytest.mark.parametrize(
    ("changes", "column", "reason"),
    [
        ({"organisation": "lhl"}, "organisation", "no such organisation; create it with `certjob organisation set`"),
        ({"member_no": " "}, "member_no", "empty"),
        ({"member_no": "M" * 101}, "member_no", "longer than 100 characters"),
        ({"expires_on": "2026-02-30"}, "expires_on", NO_DATE),
        ({"expires_on": "01.02.26"}, "expires_on", NO_DATE),
        ({"expires_on": "2024-01-31"}, "expires_on", "ends before it begins"),
        ({"full_name": "Kari\u202etxt"}, "full_name", INVISIBLE),
        ({"email": "a..b@example.org"}, "email", "not a valid e-mail address"),
        ({"locale": "Kari"}, "locale", "not one of nb, nn, en"),
        ({"dynamics_contact_id": str(UUID(int=0))}, "dynamics_contact_id", "not a contact ID (a UUID)"),
        ({"revoked_on": "2026-11-27"}, "revoked_on", IN_FUTURE),
        ({"left_on": "2026-11-27"}, "left_on", IN_FUTURE),
        ({"left_on": ",more"}, "line", "12 cells, but the header has 11"),
    ],
)
def test_bad_row_is_named_by_line_and_column(changes: dict[str, str], column: str, reason: str) -> None:
    """The rows around it are read."""
    found = read(rows({"member_no": "M0"}, changes, {"member_no": "M9"}))

    assert [(problem.line, problem.column, problem.reason) for problem in found.problems] == [(3, column, reason)]
    assert (numbers(found), found.rows, found.skipped) == (["M0", "M9"], 3, 1)


@pytest.mark.parametrize("character", ["\u200b", "\u00ad", "\u3164", "\ufe0f"], ids=ascii)
def test_key_with_an_invisible_character_is_rejected(character: str) -> None:
    """It would be another mentor or another kind, and the renewed certificate would count for no one."""
    found = read(rows({"member_no": f"M{character}1"}, {"kind": f"likeperson{character}"}))

    assert [(problem.column, problem.reason) for problem in found.problems] == [
        ("member_no", INVISIBLE),
        ("kind", INVISIBLE),
    ]


def test_key_is_the_same_in_other_spaces_and_letters() -> None:
    """Word processors write other spaces, and macOS decomposes letters."""
    found = read(rows({"member_no": "M\u00e5 1"}, {"member_no": "\u00a0Ma\u030a\u2003 1"}))

    assert numbers(found) == ["M\u00e5 1"]


@pytest.mark.parametrize("bad", [{"email": "kari"}, {"left_on": ",more"}], ids=["bad cell", "bad line"])
def test_mentor_with_a_bad_line_is_skipped_whole(bad: dict[str, str]) -> None:
    """Otherwise the old certificate would be loaded without its renewal."""
    found = read(rows({"issued_on": "2022-02-01"}, {"member_no": "M2"}, bad, {"kind": "kurs"}))

    assert numbers(found) == ["M2"]
    assert [number for (_, number), *_ in found.certificates] == ["M2"]
    assert (found.rows, found.skipped, len(found.problems)) == (4, 3, 1)


def test_last_value_about_a_mentor_wins() -> None:
    """An empty cell keeps the value of an earlier line."""
    found = read(
        rows(
            {"email": "old@example.org", "revoked_on": "2025-01-01"},
            {"member_no": "M2"},
            {"email": "new@example.org", "dynamics_contact_id": "", "full_name": ""},
        )
    )

    mentor = found.mentors[HLF, "M1"]
    assert (mentor["email"], mentor["full_name"], mentor["line"]) == ("new@example.org", "Kari", 2)
    certificate = found.certificates[(HLF, "M1"), "likeperson", date(2024, 2, 1)]
    assert certificate[:2] == (date(2026, 2, 1), date(2025, 1, 1))


ANOTHER = {"full_name": "Ola", "email": "ola@example.org", "issued_on": "2025-01-01", "dynamics_contact_id": ""}


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        (ANOTHER, "full_name"),
        (ANOTHER | {"email": "KARI@example.org"}, None),
        (ANOTHER | {"full_name": "kari"}, None),
        (ANOTHER | {"full_name": ""}, None),
        ({"dynamics_contact_id": str(HLF)}, "dynamics_contact_id"),
        ({"expires_on": "2026-02-02"}, "expires_on"),
        ({"expires_on": "2026-02-02", "kind": "other"}, None),
    ],
    ids=["name and address", "name", "address", "no name", "contact ID", "last day", "another certificate"],
)
def test_lines_that_contradict_each_other_are_both_rejected(changes: dict[str, str], column: str | None) -> None:
    """They are about two people, or no one knows which of them is true. Lines between them do not matter."""
    found = read(rows({}, {"member_no": "M2"}, {"kind": "kurs", "dynamics_contact_id": ""}, changes))

    assert [(each.line, each.column) for each in found.problems] == ([(2, column), (5, column)] if column else [])
    assert numbers(found) == (["M2"] if column else ["M1", "M2"])
    assert found.skipped == (3 if column else 0)


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"issued_on": "1949-12-31"}, True),
        ({"expires_on": "2041-11-27"}, True),
        ({"expires_on": "2041-11-26", "issued_on": "1950-01-01"}, False),
        ({"expires_on": "9999-12-31"}, False),
    ],
)
def test_implausible_date_is_loaded_with_a_warning(changes: dict[str, str], warned: bool) -> None:
    """A typing error in the year would certify someone for ever; 9999-12-31 says so on purpose."""
    found = read(rows(changes))

    assert [problem.is_warning for problem in found.problems] == [True] * warned
    assert numbers(found) == ["M1"]


def test_column_that_is_not_read_is_a_warning() -> None:
    """``revoked`` instead of ``revoked_on`` would leave a mentor certified unnoticed."""
    found = read(f"{REQUIRED},revoked,Phone\nhlf,M1,kurs,2024-02-01,2026-02-01,2025-01-01,22")

    (problem,) = found.problems
    assert (problem.is_warning, problem.line, problem.reason) == (True, 1, "not read: 'revoked', 'phone'")
    assert numbers(found) == ["M1"]


def test_stray_quote_costs_its_own_line_only() -> None:
    """The lines after it are not swallowed."""
    found = read(rows(*({"member_no": f"M{number}"} for number in range(200))).replace("M7,", 'M7,"'))

    reason = "cannot be read: a quote is not closed, or text follows a quoted cell"
    assert [(problem.line, problem.reason) for problem in found.problems] == [(9, reason)]
    assert len(found.mentors) == 199


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"organisation,member_no,email,revoked_on", "the header lacks the column kind, issued_on, expires_on"),
        (b"M0,kari@example.org", "the header lacks the column"),
        (f"{REQUIRED},KIND".encode(), "the header names the column kind twice; remove one of them"),
        (REQUIRED.encode("utf-16"), "line 1 is not text in UTF-8; save the file as 'CSV UTF-8' and load it again"),
        (b"\xef\xbb\xbfmember_no,kind\r\nM1,a\r\nM2,K\xe5re\r\n", "line 3 is not text in UTF-8"),
        (b"member_no,kind\rM1,\x00\r", "line 2 is not text in UTF-8"),
    ],
)
def test_file_that_cannot_be_read_is_rejected(content: bytes, message: str) -> None:
    """The error does not quote the file, because without a header its first line is about a person."""
    with pytest.raises(InputError) as rejection:
        read(content)

    assert message in str(rejection.value)
    assert "kari" not in str(rejection.value)


PIECES = st.one_of(
    st.binary(max_size=40),
    st.text(st.sampled_from('a",;\t\r\n '), max_size=200).map(str.encode),
    st.sampled_from([HEADER.encode() + b"\n", ROW.encode() + b"\n", b'"', b"\r", b"\0", b"\xff", b"9" * 5000]),
)


@given(pieces=st.lists(PIECES, max_size=30), begins_well=st.booleans())
@settings(deadline=None, max_examples=50)
def test_roster_survives_any_bytes(pieces: list[bytes], begins_well: bool) -> None:
    """Every row is read or has a problem; otherwise the file is rejected."""
    try:
        found = read((HEADER.encode() + b"\n" if begins_well else b"") + b"".join(pieces))
    except InputError:
        return

    bad = {problem.line for problem in found.problems if not problem.is_warning}
    assert len(bad) <= found.skipped <= found.rows
    assert found.rows - found.skipped == sum(mentor["rows"] for mentor in found.mentors.values())
