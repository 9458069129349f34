"""Somebody's columns and cells: which are read, which are refused, and in what words."""

from datetime import date
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from certjob import database
from certjob.errors import InputError
from certjob.facts.loading import load
from certjob.facts.roster import Cost, LoadOptions, Problem
from tests.support.facts import Facts
from tests.support.loading import REQUIRED, Loader, many

CONTACT = UUID("0b6c0f5e-52a5-4f0e-8f0c-0d5a3c9c7a11")


@pytest.fixture
def loader(connection: database.Connection, facts: Facts, tmp_path: Path) -> Loader:
    """Loads into a database with the organisation ``hlf``."""
    facts.organisation("hlf")
    return Loader(connection, tmp_path)


def test_somebody_elses_columns_are_mapped(loader: Loader, facts: Facts) -> None:
    """Their headers, a constant in place of a column, their date form; names are found whatever their case."""
    options = LoadOptions(
        columns={"member_no": "Account  Number", "expires_on": "licence expires", "issued_on": "From"},
        constants={"organisation": "HLF", "kind": "permit"},
        date_formats=("%m/%d/%Y", "%d %B %Y"),
    )

    report = loader(
        '"ACCOUNT NUMBER";Organisation;KIND;Licence Expires;From\nA7;somewhere;else;12/31/2026;1 March 2024\n',
        options=options,
    )

    assert (report.loaded, loader.rejected) == (1, [])
    assert facts.rows(
        "SELECT m.member_no, c.kind, c.issued_on, c.expires_on FROM mentors m JOIN certificates c ON c.mentor_id = m.id"
    ) == [("A7", "permit", date(2024, 3, 1), date(2026, 12, 31))]


def test_with_a_date_form_given_no_other_is_read(loader: Loader) -> None:
    """Otherwise a file of one form could be half read as another; theirs is the column that is named."""
    options = LoadOptions(columns={"issued_on": "From"}, date_formats=("%m/%d/%Y",))

    report = loader.rows(
        "hlf,M1,likeperson,2024-02-01,12/31/2026",
        header="organisation,member_no,kind,From,expires_on",
        options=options,
    )

    assert report.rejected == 1
    assert loader.rejected == [
        Problem(line=2, column="From", reason="not a date of the form %m/%d/%Y", value="2024-02-01")
    ]


GOOD = {
    "organisation": "hlf",
    "member_no": "M1",
    "full_name": "Kari",
    "email": "kari@example.org",
    "locale": "nb",
    "dynamics_contact_id": str(CONTACT),
    "kind": "likeperson",
    "issued_on": "2024-02-01",
    "expires_on": "2026-02-01",
    "revoked_on": "",
    "left_on": "",
}

DATE_FORMS = "not a date of the form YYYY-MM-DD or DD.MM.YYYY"


@pytest.mark.parametrize(
    ("changes", "column", "reason"),
    [
        ({"organisation": ""}, "organisation", "empty"),
        (
            {"organisation": "lhl"},
            "organisation",
            "lhl does not exist; create it with `certjob organisation set lhl`",
        ),
        ({"organisation": "Kari Nordmann"}, "organisation", "not an organisation's slug, such as hlf"),
        ({"member_no": " "}, "member_no", "empty"),
        ({"member_no": "M" * 101}, "member_no", "longer than 100 characters"),
        ({"member_no": "M\x071"}, "member_no", "has a control character or an invisible one"),
        ({"member_no": '"M\n1"'}, "member_no", "has a control character or an invisible one"),
        ({"member_no": "M\u200b1"}, "member_no", "has a control character or an invisible one"),
        ({"kind": ""}, "kind", "empty"),
        ({"issued_on": ""}, "issued_on", "empty"),
        ({"expires_on": "2026-02-30"}, "expires_on", f"{DATE_FORMS}: 2026-02-30"),
        ({"expires_on": "2026-2-3"}, "expires_on", f"{DATE_FORMS}: 2026-2-3"),
        ({"expires_on": "20260203"}, "expires_on", f"{DATE_FORMS}: 20260203"),
        ({"expires_on": "01.02.26"}, "expires_on", f"{DATE_FORMS}: 01.02.26"),
        ({"expires_on": "2026-02-01T00:00"}, "expires_on", f"{DATE_FORMS}: 2026-02-01T00:00"),
        ({"expires_on": "infinity"}, "expires_on", DATE_FORMS),
        ({"expires_on": "kari1@example.org"}, "expires_on", DATE_FORMS),
        ({"expires_on": "1\x1b[31m" + "x" * 99}, "expires_on", f"{DATE_FORMS}: 1\\u001b[31m{'x' * 34}…"),
        ({"expires_on": "2024-01-31"}, "expires_on", "ends before it begins: 2024-02-01 to 2024-01-31"),
        ({"revoked_on": "yes"}, "revoked_on", DATE_FORMS),
        ({"left_on": "2025-01-01,more"}, "(line)", "12 cells where the header has 11"),
        ({"expires_on": "2026-02-01\nhlf"}, "(line)", "9 cells where the header has 11"),
        ({"full_name": '"Kari" Nordmann'}, "(line)", "a quote that opens here is never closed, or text follows"),
        ({"full_name": "K" * 1_000_000}, "(line)", "the line is longer than 262,144 characters"),
        ({"left_on": "soon"}, "left_on", DATE_FORMS),
    ],
)
def test_a_bad_row_is_named_by_line_column_and_reason(
    loader: Loader, facts: Facts, changes: dict[str, str], column: str, reason: str
) -> None:
    """And the good rows around it are loaded."""
    report = loader.rows(
        ",".join((GOOD | {"member_no": "M0", "dynamics_contact_id": str(uuid4())}).values()),
        ",".join((GOOD | changes).values()),
        ",".join((GOOD | {"member_no": "M9", "dynamics_contact_id": str(uuid4())}).values()),
        header=",".join(GOOD),
    )

    first = loader.rejected[0]
    assert (first.line, first.column) == (3, column)
    assert f"{first.reason}: {first.value}".startswith(reason)
    assert report.rejected == len(loader.rejected)
    assert facts.rows("SELECT member_no FROM mentors ORDER BY member_no") == [("M0",), ("M9",)]


@pytest.mark.parametrize(
    ("column", "text", "reason"),
    [
        ("full_name", "Kari\u202etxt", "has a control character or an invisible one"),
        ("full_name", "K\x85ri", "has a control character or an invisible one"),
        ("full_name", "K" * 201, "longer than 200 characters"),
        ("email", "kari", "not a valid e-mail address"),
        ("email", "kari@example.org; per@example.org", "not a valid e-mail address"),
        ("email", "Kari <kari@example.org>", "not a valid e-mail address"),
        ("email", "a..b@example.org", "not a valid e-mail address"),
        ("email", "kari@straße.no", "not a valid e-mail address"),
        ("locale", "Kari", "not a language of ours (nb, nn, en)"),
        ("dynamics_contact_id", "4711", "not a contact id (a UUID)"),
        ("dynamics_contact_id", str(UUID(int=0)), "not a contact id (a UUID)"),
    ],
)
def test_a_bad_cell_about_the_mentor_costs_that_cell_and_not_the_renewal(
    loader: Loader, facts: Facts, column: str, text: str, reason: str
) -> None:
    """It is reported, and what was known before stays."""
    header = ",".join(GOOD)
    loader.rows(",".join(GOOD.values()), header=header)

    report = loader.rows(",".join((GOOD | {"expires_on": "2028-02-01", column: text}).values()), header=header)

    assert (report.loaded, report.rejected, report.mentors_changed, report.certificates_changed) == (1, 0, 0, 1)
    assert loader.problems == [Problem(line=2, column=column, reason=reason, cost=Cost.CELL)]
    assert facts.rows("SELECT full_name, email, locale, dynamics_contact_id FROM mentors") == [
        ("Kari", "kari@example.org", "nb", CONTACT)
    ]


def test_all_that_is_wrong_with_a_row_is_reported_at_once(loader: Loader) -> None:
    """Nobody corrects a file cell by cell."""
    report = loader.rows("hlf,,likeperson,soon,2026-02-30")

    assert report.rejected == 1
    assert [(problem.column, problem.value) for problem in loader.problems] == [
        ("member_no", ""),
        ("issued_on", ""),
        ("expires_on", "2026-02-30"),
    ]


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"issued_on": "1949-12-31"}, ["issued_on"]),
        ({"expires_on": "2041-11-27"}, ["expires_on"]),
        ({"expires_on": "2041-11-25", "issued_on": "1950-01-01"}, []),
        ({"expires_on": "9999-12-31"}, []),
    ],
)
def test_a_date_that_can_hardly_be_is_loaded_with_a_warning(
    loader: Loader, facts: Facts, changes: dict[str, str], warned: list[str]
) -> None:
    """A mistyped year is certified for ever; 9999-12-31 says that on purpose."""
    options = LoadOptions(strict=True, today=date(2026, 11, 26))

    report = loader.rows(",".join((GOOD | changes).values()), header=",".join(GOOD), options=options)

    assert (report.loaded, report.rejected) == (1, 0)
    assert [(problem.column, problem.cost) for problem in loader.problems] == [(name, Cost.NOTHING) for name in warned]
    assert facts.rows("SELECT expires_on::text FROM certificates") == [((GOOD | changes)["expires_on"],)]


@pytest.mark.parametrize("column", ["revoked_on", "left_on"])
def test_what_counts_at_once_is_not_loaded_before_its_day(loader: Loader, facts: Facts, column: str) -> None:
    """A revocation or a departure that is announced."""
    options = LoadOptions(today=date(2026, 1, 1))

    loader.rows(",".join((GOOD | {column: "2026-01-02"}).values()), header=",".join(GOOD), options=options)

    assert [(problem.column, problem.value) for problem in loader.rejected] == [(column, "2026-01-02")]
    assert "load it on that day" in loader.rejected[0].reason
    assert facts.rows("SELECT FROM mentors") == []


def test_extra_empty_cells_and_a_line_break_in_a_name_are_no_mistake(loader: Loader, facts: Facts) -> None:
    """Spreadsheets add the cells; people add the line breaks."""
    report = loader(
        f"\ufefffull_name;{REQUIRED.replace(',', ';')}\r\n"
        '"Kari\r\nNordmann";hlf;M1;likeperson;2024-02-01;2026-02-01;;\r\n'
    )

    assert (report.loaded, report.rejected) == (1, 0)
    assert facts.rows("SELECT full_name FROM mentors") == [("Kari Nordmann",)]


@pytest.mark.parametrize(
    ("options", "header", "sentence"),
    [
        (LoadOptions(columns={"expiry": "x"}), REQUIRED, "there is no column 'expiry' to fill; there are organisation"),
        (LoadOptions(constants={"name": "x"}), REQUIRED, "there is no column 'name' to fill"),
        (
            LoadOptions(columns={"kind": "x"}, constants={"kind": "y"}),
            REQUIRED,
            "column kind is given twice, by --column and by --set",
        ),
        (LoadOptions(constants={"kind": " "}), REQUIRED, "--set kind: empty; give a value"),
        (LoadOptions(constants={"expires_on": "soon"}), REQUIRED, f"--set expires_on: {DATE_FORMS}"),
        (
            LoadOptions(constants={"organisation": "lhl"}),
            REQUIRED,
            "--set organisation: lhl does not exist; create it with `certjob organisation set lhl`",
        ),
        (LoadOptions(date_formats=("%d.%m",)), REQUIRED, "--date-format '%d.%m' must name day, month and year"),
        (LoadOptions(date_formats=("%Q%",)), REQUIRED, "--date-format '%Q%' must name day, month and year"),
        (
            LoadOptions(columns={"email": "Mail"}),
            REQUIRED,
            "no column email (as 'Mail'); the file has organisation, member_no, kind, issued_on, expires_on; name it",
        ),
        (
            LoadOptions(),
            "organisation,member_no,kind,Valid From",
            "no column issued_on, expires_on; the file has organisation, member_no, kind, Valid From; name it with "
            "--column issued_on='Their header' or give every row one value with --set issued_on=…",
        ),
        (LoadOptions(), "organisation,member_no", "no column kind, issued_on, expires_on; the file has"),
        (LoadOptions(), "organisation,member_no,email,revoked_on", "no column kind, issued_on, expires_on"),
        (LoadOptions(), REQUIRED + ",KIND", "column 'kind' is there 2 times; rename or remove the others"),
        (LoadOptions(), "hlf,M0,likeperson,2024-02-01,2026-02-01", "the first line looks like a row"),
        (LoadOptions(), "M0,kari@example.org", "the first line looks like a row"),
    ],
)
def test_wrong_options_and_wrong_columns_are_refused_before_anything_is_loaded(
    loader: Loader, facts: Facts, options: LoadOptions, header: str, sentence: str
) -> None:
    """With the name of the thing and the next step."""
    with pytest.raises(InputError) as refusal:
        loader.rows("hlf,M1,likeperson,2024-02-01,2026-02-01", header=header, options=options)

    assert sentence in str(refusal.value)
    assert refusal.value.exit_code == 2
    assert "kari" not in str(refusal.value)
    assert facts.rows("SELECT FROM mentors") == []


def test_a_file_that_turns_out_to_be_no_text_near_its_end_loads_nothing(loader: Loader, facts: Facts) -> None:
    """The file is read to its end before the first row is written."""
    path = loader.directory / "latin.csv"
    path.write_bytes(f"{many(3_000)}\nhlf,K\u00e5re,likeperson,2024-02-01,2026-02-01".encode("latin-1"))

    with pytest.raises(InputError, match="line 3002 is not UTF-8"):
        load(loader.connection, path, options=LoadOptions())

    assert facts.rows("SELECT FROM mentors") == []
