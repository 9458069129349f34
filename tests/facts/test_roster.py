"""Somebody's columns and cells: which are read, which are refused, and in what words."""

from datetime import date
from pathlib import Path
from uuid import UUID

import pytest

from certjob.errors import InputError
from certjob.facts.csv_rows import open_csv
from certjob.facts.roster import Cost, LoadOptions, Problem, Roster, RosterRow
from tests.support.loading import REQUIRED

CONTACT = UUID("0b6c0f5e-52a5-4f0e-8f0c-0d5a3c9c7a11")
HLF = UUID("5f0c1f9e-9d0b-4f0f-9a55-0d9c3b6f8a21")
HEADER = (
    "organisation,member_no,full_name,email,locale,dynamics_contact_id,kind,issued_on,expires_on,revoked_on,left_on"
)
ROW = f"hlf,M1,Kari,kari@example.org,nb,{CONTACT},likeperson,2024-02-01,2026-02-01,,"
GOOD = dict(zip(HEADER.split(","), ROW.split(","), strict=True))
DATE_FORMS = "not a date of the form YYYY-MM-DD or DD.MM.YYYY"
UNSEEN = "has a control character or an invisible one"


def read(path: Path, text: str, options: LoadOptions | None = None) -> tuple[list[RosterRow], list[Problem]]:
    """The rows of a file, and what is wrong with it; the organisation ``hlf`` is known."""
    (path / "roster.csv").write_bytes(text.encode())
    rows: list[RosterRow] = []
    problems: list[Problem] = []
    with open_csv(path / "roster.csv") as file:
        roster = Roster(file, options or LoadOptions(), organisation_ids={"hlf": str(HLF)})
        for record in file:
            row, found = roster.read(record)
            rows += [row] if row else []
            problems += found
    return rows, problems


def file(*changes: dict[str, str]) -> str:
    """A header and a good row for each of these changes of it."""
    return "\n".join([HEADER, *(",".join((GOOD | change).values()) for change in changes)])


def test_somebody_elses_columns_are_mapped(tmp_path: Path) -> None:
    """Their headers, a constant in place of a column, their date forms and no other; whatever case the names have.

    Otherwise a file of one form could be half read as another; theirs is the column that is named.
    """
    options = LoadOptions(
        columns={"member_no": "Account  Number", "expires_on": "licence expires", "issued_on": "From"},
        constants={"organisation": "HLF", "kind": "permit"},
        date_formats=("%m/%d/%Y", "%d %B %Y"),
    )
    text = '"ACCOUNT NUMBER";Organisation;KIND;Licence Expires;From\n'
    text += "A7;somewhere;else;12/31/2026;1 March 2024\nA8;x;y;2026-12-31;1 March 2024"

    ((row,), problems) = read(tmp_path, text, options)

    assert (row.organisation, row.member_no, row.kind) == (str(HLF), "A7", "permit")
    assert (row.issued_on, row.expires_on) == ("2024-03-01", "2026-12-31")
    reason = "not a date of the form %m/%d/%Y or %d %B %Y"
    assert problems == [Problem(line=3, column="Licence Expires", reason=reason, value="2026-12-31")]


@pytest.mark.parametrize(
    ("changes", "column", "reason"),
    [
        ({"organisation": "lhl"}, "organisation", "lhl does not exist; create it with `certjob organisation set lhl`"),
        ({"organisation": "Kari Nordmann"}, "organisation", "not an organisation's slug, such as hlf"),
        ({"member_no": " "}, "member_no", "empty"),
        ({"member_no": "M" * 101}, "member_no", "longer than 100 characters"),
        ({"member_no": '"M\n1"'}, "member_no", UNSEEN),
        ({"member_no": "M\u200b1"}, "member_no", UNSEEN),
        ({"expires_on": "2026-02-30"}, "expires_on", f"{DATE_FORMS}: 2026-02-30"),
        ({"expires_on": "2026-2-3"}, "expires_on", f"{DATE_FORMS}: 2026-2-3"),
        ({"expires_on": "01.02.26"}, "expires_on", f"{DATE_FORMS}: 01.02.26"),
        ({"expires_on": "infinity"}, "expires_on", DATE_FORMS),
        ({"expires_on": "kari1@example.org"}, "expires_on", DATE_FORMS),
        ({"expires_on": "1\x1b[31m" + "x" * 99}, "expires_on", f"{DATE_FORMS}: 1\\u001b[31m{'x' * 34}…"),
        ({"expires_on": "2024-01-31"}, "expires_on", "ends before it begins: 2024-02-01 to 2024-01-31"),
        ({"left_on": "2025-01-01,more"}, "(line)", "12 cells where the header has 11"),
        ({"expires_on": "2026-02-01\nhlf"}, "(line)", "9 cells where the header has 11"),
        ({"full_name": '"Kari" Nordmann'}, "(line)", "a quote that opens here is never closed, or text follows"),
        ({"full_name": "K" * 1_000_000}, "(line)", "the line is longer than 262,144 characters"),
    ],
)
def test_a_bad_row_is_named_by_line_column_and_reason(
    tmp_path: Path, changes: dict[str, str], column: str, reason: str
) -> None:
    """And the good rows around it are read."""
    rows, problems = read(tmp_path, file({"member_no": "M0"}, changes, {"member_no": "M9"}))

    assert [row.member_no for row in rows] == ["M0", "M9"]
    assert {problem.cost for problem in problems} == {Cost.ROW}
    assert (problems[0].line, problems[0].column) == (3, column)
    assert f"{problems[0].reason}: {problems[0].value}".startswith(reason)


@pytest.mark.parametrize(
    ("column", "text", "reason"),
    [
        ("full_name", "Kari\u202etxt", UNSEEN),
        ("full_name", "K" * 201, "longer than 200 characters"),
        ("email", "a..b@example.org", "not a valid e-mail address"),
        ("locale", "Kari", "not a language of ours (nb, nn, en)"),
        ("dynamics_contact_id", "4711", "not a contact ID (a UUID)"),
        ("dynamics_contact_id", str(UUID(int=0)), "not a contact ID (a UUID)"),
    ],
)
def test_a_bad_cell_about_the_mentor_costs_that_cell_and_not_the_renewal(
    tmp_path: Path, column: str, text: str, reason: str
) -> None:
    """It is reported, and left out as if it were empty."""
    (row,), problems = read(tmp_path, file({column: text}))

    assert problems == [Problem(line=2, column=column, reason=reason, cost=Cost.CELL)]
    kept = GOOD | {"organisation": str(HLF), column: None}
    assert {name: getattr(row, name) for name in GOOD} == {name: value or None for name, value in kept.items()}


@pytest.mark.parametrize(
    ("changes", "column", "cost"),
    [
        # A mistyped year is certified for ever; 9999-12-31 says that on purpose.
        ({"issued_on": "1949-12-31"}, "issued_on", Cost.NOTHING),
        ({"expires_on": "2041-11-27"}, "expires_on", Cost.NOTHING),
        ({"expires_on": "2041-11-26", "issued_on": "1950-01-01"}, None, None),
        ({"expires_on": "9999-12-31"}, None, None),
        ({"expires_on": "2024-02-01"}, None, None),  # for one day
        # What counts at once is not loaded before its day.
        ({"revoked_on": "2026-11-27"}, "revoked_on", Cost.ROW),
        ({"left_on": "2026-11-27"}, "left_on", Cost.ROW),
        ({"revoked_on": "2026-11-26", "left_on": "2026-11-26"}, None, None),
    ],
)
def test_a_date_that_can_hardly_be_is_read_with_a_warning_and_one_to_come_is_refused(
    tmp_path: Path, changes: dict[str, str], column: str | None, cost: Cost | None
) -> None:
    rows, problems = read(tmp_path, file(changes), LoadOptions(today=date(2026, 11, 26)))

    assert [(found.column, found.cost) for found in problems] == ([(column, cost)] if column else [])
    assert len(rows) == (cost is not Cost.ROW)
    assert all("load it on that day" in found.reason for found in problems if found.cost is Cost.ROW)


def test_a_row_is_read_as_people_write_it_and_all_that_is_wrong_is_reported_at_once(tmp_path: Path) -> None:
    """Spreadsheets add empty cells; people add line breaks, and spaces: inside a kind they count once."""
    text = f"\ufefffull_name;{REQUIRED.replace(',', ';')}\r\n"
    text += '"Kari\r\nNordmann";hlf;M1;like  person;2024-02-01;2026-02-01;;\r\n;hlf;;likeperson;soon;2026-02-30'

    (row,), problems = read(tmp_path, text)

    assert (row.full_name, row.kind) == ("Kari Nordmann", "like person")
    wrong = [(problem.column, problem.value) for problem in problems]
    assert wrong == [("member_no", ""), ("issued_on", ""), ("expires_on", "2026-02-30")]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"columns": {"expiry": "x"}}, "there is no column 'expiry' to fill; name one of organisation"),
        ({"columns": {"kind": "x"}, "constants": {"kind": "y"}}, "column kind is given twice, by --column and by"),
        ({"constants": {"kind": " "}}, "--set kind: empty; give a value"),
        ({"constants": {"expires_on": "soon"}}, f"--set expires_on: {DATE_FORMS}"),
        ({"date_formats": ("%Q%",)}, "--date-format '%Q%' must name day, month and year"),
        (
            {"columns": {"email": "Mail"}},
            "no column email (as 'Mail'); the file has organisation, member_no, kind, issued_on, expires_on; name it",
        ),
        (
            "organisation,member_no,kind,Valid From",
            "no column issued_on, expires_on; the file has organisation, member_no, kind, Valid From; name it with "
            "--column issued_on='Their header' or give every row one value with --set issued_on=…",
        ),
        ("organisation,member_no,email,revoked_on", "no column kind, issued_on, expires_on"),
        (REQUIRED + ",KIND", "column 'kind' is there 2 times; rename or remove the others"),
        ("hlf,M0,likeperson,2024-02-01,2026-02-01", "the first line looks like a row"),
        ("M0,kari@example.org", "the first line looks like a row"),
    ],
)
def test_wrong_options_and_wrong_columns_are_refused(
    tmp_path: Path, options: dict[str, object] | str, sentence: str
) -> None:
    """With the name of the thing and the next step."""
    header, given = (options, {}) if isinstance(options, str) else (REQUIRED, options)
    with pytest.raises(InputError) as refusal:
        read(tmp_path, f"{header}\nhlf,M1,likeperson,2024-02-01,2026-02-01", LoadOptions(**given))  # type: ignore[arg-type]

    assert sentence in str(refusal.value)
    assert (refusal.value.exit_code, "kari" in str(refusal.value)) == (2, False)
