"""Reading CSV: whatever the file holds, the rows that can be read are read, in flat memory."""

import csv
import io
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certjob.errors import InputError
from certjob.facts.csv_rows import CELLS_LIMIT, ENDLESS_LINE, RECORD_LINES_LIMIT, Record, open_csv

HEADER = ["member_no", "kind"]


def score(header: Sequence[str]) -> int:
    return len(set(header) & set(HEADER))


def read(path: Path) -> tuple[list[str], list[Record]]:
    with open_csv(path) as file:
        return file.read_header(score=score).cells, list(file)


def cells(records: Sequence[Record]) -> list[tuple[int, list[str]]]:
    """The line and the cells of each record."""
    return [(record.line, record.cells) for record in records]


def read_bytes(tmp_path: Path, content: bytes) -> tuple[list[str], list[Record]]:
    path = tmp_path / "file.csv"
    path.write_bytes(content)
    return read(path)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("delimiter", [b",", b";", b"\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_common_form_of_csv_reads_the_same(
    tmp_path: Path, line_end: bytes, delimiter: bytes, mark: bytes
) -> None:
    """Byte order mark, delimiter and line end differ from program to program; the records do not."""
    lines = [delimiter.join([b"member_no", b"kind"]), delimiter.join([b"M1", b"a"]), delimiter.join([b"M2", b"b"])]

    header, records = read_bytes(tmp_path, mark + line_end.join(lines) + line_end)

    assert header == HEADER
    assert cells(records) == [(2, ["M1", "a"]), (3, ["M2", "b"])]


def test_a_last_line_without_an_end_is_a_row(tmp_path: Path) -> None:
    """Many programs leave the last line end out."""
    _, records = read_bytes(tmp_path, b"member_no,kind\nM1,a")

    assert cells(records) == [(2, ["M1", "a"])]


def test_blank_lines_and_lines_of_delimiters_are_no_rows(tmp_path: Path) -> None:
    """Spreadsheets export the empty rows below a table; line numbers go on counting them."""
    _, records = read_bytes(tmp_path, b"\n \nmember_no;kind\n\n;\n ; \nM1;a\n\t\n")

    assert cells(records) == [(7, ["M1", "a"])]


def test_a_quoted_line_break_belongs_to_its_cell(tmp_path: Path) -> None:
    """The row is named by the line on which it begins."""
    _, records = read_bytes(tmp_path, b'member_no,kind\r\n"M\r\n1",a\r\n"M""2",b\r\n')

    assert cells(records) == [(2, ["M\r\n1", "a"]), (4, ['M"2', "b"])]


def test_the_delimiter_is_the_one_that_finds_the_columns(tmp_path: Path) -> None:
    """Commas inside the other names do not make it a comma."""
    header, records = read_bytes(tmp_path, b'member_no;"a, b, c, d";kind\nM1;x,y;a\n')

    assert header == ["member_no", "a, b, c, d", "kind"]
    assert cells(records) == [(2, ["M1", "x,y", "a"])]


def test_a_first_line_sep_names_the_delimiter(tmp_path: Path) -> None:
    """Spreadsheets write it so that other spreadsheets need not guess."""
    header, records = read_bytes(tmp_path, b"sep=;\r\nmember_no;kind\r\nM1;a\r\n")

    assert header == HEADER
    assert cells(records) == [(3, ["M1", "a"])]


def test_a_stray_quote_costs_its_own_line_only(tmp_path: Path) -> None:
    """The rows after it are not swallowed until the next quote or the end of the file."""
    rows = [f"M{number},a" for number in range(1, 500)]
    rows[10] = 'M11,"a'
    rows[20] = 'M21,"Late ""Hour"" a"'

    _, records = read_bytes(tmp_path, "\n".join(["member_no,kind", *rows]).encode())

    broken = [record for record in records if record.broken]
    assert [(record.line, record.text) for record in broken] == [(12, 'M11,"a\n')]
    assert "quote" in str(broken[0].broken)
    assert len(records) == 499
    assert cells(records)[20] == (22, ["M21", 'Late "Hour" a'])


def test_a_quote_that_never_closes_is_given_up_after_a_limited_number_of_lines(tmp_path: Path) -> None:
    """No cell of a roster runs over hundreds of lines."""
    lines = b"M2,a\n" * (RECORD_LINES_LIMIT * 3)

    _, records = read_bytes(tmp_path, b'member_no,kind\nM1,"a\n' + lines)

    assert "a quote that opens here is never closed" in str(records[0].broken)
    assert len(records) == 1 + RECORD_LINES_LIMIT * 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf\r\n \r\n", "the file is empty"),
        (b"PK\x03\x04\x14\x00", "is a workbook, not a CSV"),
        ("member_no,kind\n".encode("utf-16"), "is UTF-16"),
        (b"member_no,kind\nM1,a\nM2,\x00\n", "line 3 has a NUL"),
        (b"\x7fELF\x00\x00", "line 1 has a NUL"),
        ("member_no,kind\nM1,a\nM2,K\u00e5re\n".encode("latin-1"), "line 3 is not UTF-8; save the file as 'CSV UTF-8'"),
        (b"member_no,kind\n" + b"x" * (ENDLESS_LINE + 1), "line 2 is longer than 10,000,000 characters"),
        (b"," * 1_000_000, "line 1 should hold the column names, but the line is longer than 262,144 characters"),
        (b"," * CELLS_LIMIT, "the first line has 1,001 columns"),
        (b'"member_no,kind\nM1,a\n', "line 1 should hold the column names, but"),
    ],
)
def test_a_file_that_is_no_csv_is_refused_with_the_reason(tmp_path: Path, content: bytes, sentence: str) -> None:
    """What is wrong, where, and what to do, with exit code 2."""
    with pytest.raises(InputError) as refusal:
        read_bytes(tmp_path, content)

    assert sentence in str(refusal.value)
    assert str(refusal.value).startswith(f"{tmp_path}/file.csv: ")
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize("name", ["absent.csv", "."])
def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    """Not there, or a folder."""
    with pytest.raises(InputError, match=r"cannot be read .*; check the path"):
        read(tmp_path / name)


def test_an_endless_line_costs_no_memory(tmp_path: Path) -> None:
    """64 MB without a line end are refused after the first ten, of which a quarter of one is kept."""
    path = tmp_path / "endless.csv"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(b"x" * 1_000_000)
    tracemalloc.start()

    with pytest.raises(InputError, match="line 1 is longer"):
        read(path)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 8_000_000


CELLS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), max_size=8),
    delimiter=st.sampled_from([",", ";", "\t"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    all_quoted=st.booleans(),
)
def test_what_a_csv_writer_writes_is_read_back(
    tmp_path: Path, rows: list[tuple[str, str]], delimiter: str, line_end: str, all_quoted: bool
) -> None:
    """Any text in any cell, but for spaces before it and rows without any."""
    if not all_quoted:  # Python's writer does not quote a line break that is not its own line end
        rows = [(" ".join(first.split()), " ".join(second.split())) for first, second in rows]
    text = io.StringIO(newline="")
    writer = (
        csv.writer(text, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
        if all_quoted
        else csv.writer(text, delimiter=delimiter, lineterminator=line_end)
    )
    writer.writerows([HEADER, *rows])

    header, records = read_bytes(tmp_path, text.getvalue().encode())

    assert header == HEADER
    assert [[cell.lstrip(" ") for cell in record.cells] for record in records] == [
        [cell.lstrip(" ") for cell in row] for row in rows if "".join(row).strip()
    ]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(st.sampled_from('a",;\t\r\n '), max_size=200))
def test_no_text_breaks_the_reader(tmp_path: Path, content: str) -> None:
    """Records with rising line numbers, and all of the text, whatever quotes and line ends come in whatever order."""
    _, records = read_bytes(tmp_path, b"member_no,kind\n" + content.encode())

    lines = [record.line for record in records]
    assert lines == sorted(set(lines))
    assert all(line >= 2 for line in lines)
    assert all(record.text in content for record in records)


def test_a_line_of_a_megabyte_costs_itself(tmp_path: Path) -> None:
    """Somebody pasted a document into a cell."""
    _, records = read_bytes(tmp_path, b"member_no,kind\nM1," + b"a" * 1_000_000 + b"\r\nM2,b\n")

    assert records[0].broken == "the line is longer than 262,144 characters"
    assert len(records[0].text) < 1_000
    assert [record.cells for record in records[1:]] == [["M2", "b"]]
