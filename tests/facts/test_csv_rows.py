"""Reading CSV: whatever the file holds, the rows that can be read are read, in flat memory."""

import os
import tracemalloc
from itertools import repeat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certjob.errors import InputError
from certjob.facts.csv_rows import RECORD_LINES_LIMIT, Record, open_csv
from certjob.facts.roster import LoadOptions, Roster
from tests.support.nights import in_background

HEADER = ["member_no", "kind"]


def read(path: Path, content: bytes | None = None) -> tuple[list[str], list[Record]]:
    if content is not None:
        path.write_bytes(content)
    with open_csv(path) as file:
        return file.read_header(score=lambda header: len(set(header) & set(HEADER))).cells, list(file)


def cells(records: list[Record]) -> list[tuple[int, list[str]]]:
    """The line and the cells of each record."""
    return [(record.line, record.cells) for record in records]


@pytest.mark.parametrize(
    ("content", "header", "expected"),
    [
        # Spreadsheets export the empty rows below a table; line numbers go on counting them.
        (b"\n \nmember_no;kind\n\n;\n ; \nM1;a\n\t\n", HEADER, [(7, ["M1", "a"])]),
        # A quoted line break belongs to its cell; the row is named by the line on which it begins.
        (b'member_no,kind\r\n"M\r\n1",a\r\n"M""2",b\r\n', HEADER, [(2, ["M\r\n1", "a"]), (4, ['M"2', "b"])]),
        (b'member_no\tkind\r "M ""1"""\ta\r"M\t2"\tb', HEADER, [(2, ['M "1"', "a"]), (3, ["M\t2", "b"])]),
        # Commas inside the other names do not make it a comma.
        (b'member_no;"a, b, c, d";kind\nM1;x,y;a\n', ["member_no", "a, b, c, d", "kind"], [(2, ["M1", "x,y", "a"])]),
        # Spreadsheets name the delimiter so that other spreadsheets need not guess.
        (b"sep=;\r\nmember_no;kind\r\nM1;a\r\n", HEADER, [(3, ["M1", "a"])]),
    ],
    ids=["blank lines", "quoted line break", "tabs, and lines that end in CR", "delimiter", "sep="],
)
def test_what_programs_write_is_understood(
    tmp_path: Path, content: bytes, header: list[str], expected: list[tuple[int, list[str]]]
) -> None:
    names, records = read(tmp_path / "file.csv", content)
    assert (names, cells(records)) == (header, expected)


def test_a_stray_quote_or_a_line_of_a_megabyte_costs_itself_only(tmp_path: Path) -> None:
    """The rows after it are not swallowed until the next quote or the end of the file."""
    rows = [f"M{number},a" for number in range(1, 3 * RECORD_LINES_LIMIT)]
    rows[10] = 'M11,"a'
    rows[20] = 'M21,"Late ""Hour"" a"'
    rows[30] = "M31," + "a" * 1_000_000

    _, records = read(tmp_path / "file.csv", "\n".join(["member_no,kind", *rows]).encode())

    quote, long = [record for record in records if record.broken]
    assert (quote.line, quote.text) == (12, 'M11,"a\n')
    assert "a quote that opens here is never closed" in str(quote.broken)
    assert (long.line, long.broken) == (32, "the line is longer than 262,144 characters")
    assert (len(long.text) < 1_000, len(records)) == (True, len(rows))
    assert cells(records)[20] == (22, ["M21", 'Late "Hour" a'])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\r\n \r\n", "the file is empty"),
        (b"PK\x03\x04\x14\x00", "is a workbook, not a CSV"),
        ("member_no,kind\n".encode("utf-16"), "is UTF-16"),
        (b"member_no,kind\nM1,a\nM2,\x00\n", "line 3 has a NUL"),
        ("member_no,kind\nM1,a\nM2,K\u00e5re\n".encode("latin-1"), "line 3 is not UTF-8; save the file as 'CSV UTF-8'"),
        (b"member_no,kind\n" + b"x" * 1_000_000 + b"\0", "line 2 has a NUL"),
        (b"," * 1_000_000, "line 1 should hold the column names, but the line is longer than 262,144 characters"),
        (b'"member_no,kind\nM1,a\n', "line 1 should hold the column names, but"),
        (None, "cannot be read (No such file or directory); check the path"),
    ],
)
def test_a_file_that_is_no_csv_is_refused_with_the_reason(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    """What is wrong, where, and what to do, with exit code 2."""
    with pytest.raises(InputError) as refusal:
        read(tmp_path / "file.csv", content)

    assert sentence in str(refusal.value)
    assert (str(refusal.value).startswith(f"{tmp_path}/file.csv: "), refusal.value.exit_code) == (True, 2)


IDS = {"hlf": "00000000-0000-4000-8000-000000000001"}
COLUMNS = b"organisation,member_no,full_name,email,kind,issued_on,expires_on\n"
ROW = b"hlf,M1,Kari,kari@example.org,likeperson,2024-01-01,2026-01-01\n"
SIGNS = [b'"', b'""', b"\n", b"\r", b"\r\n", b",", b";", b"\t", b"\0", b"sep=;", b"\xef\xbb\xbf"]
VALUES = [b"=1+1", b"\x1b[2J", b"9" * 5000, b"-infinity", b"2024-02-30", b"hlf", "Å".encode(), b"\xff"]
PIECES = st.one_of(
    st.binary(max_size=40),
    st.text(st.sampled_from('a",;\t\r\n '), max_size=200).map(str.encode),
    st.sampled_from([COLUMNS, ROW, *SIGNS]),
    st.sampled_from(VALUES),
)


@given(pieces=st.lists(PIECES, max_size=30), begins_well=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_break_the_reader_or_the_roster(tmp_path: Path, pieces: list[bytes], begins_well: bool) -> None:
    """Whatever the file holds: rows and rejected rows, each once and in order, or one InputError that is short."""
    path, content = tmp_path / "file.csv", (COLUMNS if begins_well else b"") + b"".join(pieces)
    path.write_bytes(content)
    lines: list[int] = []
    refused = ""

    try:
        with open_csv(path) as reader:
            roster = Roster(reader, LoadOptions(), organisation_ids=IDS)
            for record in reader:
                assert record.text.encode() in content
                row, problems = roster.read(record)
                assert row or problems
                lines.append(record.line)
                # What PostgreSQL could not hold:
                assert not any("\0" in text for text in row or () if isinstance(text, str))
    except InputError as error:
        refused = str(error)

    assert refused.startswith(str(path)) or not refused
    assert len(refused) < len(str(path)) + 2_000
    assert lines == sorted(set(lines))


def test_a_file_that_was_made_to_fill_the_memory_takes_no_more_than_any_other(tmp_path: Path) -> None:
    """A pipe that somebody writes a line of 100 MB into: it costs itself only."""
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb") as stream:
            stream.write(COLUMNS + ROW)
            stream.writelines(repeat(b"x" * 1_000_000, 100))
            stream.write(b"\n" + ROW)

    tracemalloc.start()
    with in_background(write):
        _, records = read(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [(record.line, bool(record.broken)) for record in records] == [(2, False), (3, True), (4, False)]
    assert peak_bytes < 10_000_000
