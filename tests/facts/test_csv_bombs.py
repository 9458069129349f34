"""Files that were made to fill the memory or to run for ever: one clear line, and no more memory than for any file.

The installed command reads them, from a pipe that would go on for gigabytes if somebody read on.
"""

import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from certjob.errors import InputError
from certjob.facts.csv_rows import LINE_LIMIT, Record, open_csv
from certjob.facts.roster import LoadOptions, RosterForm, RosterRow
from tests.conftest import installed_command
from tests.support.facts import Facts

HEADER = b"organisation,member_no,full_name,email,kind,issued_on,expires_on\n"
ROW = b"hlf,M1,Kari,kari@example.org,likeperson,2024-01-01,2026-01-01\n"
GIGABYTE = 1_000_000_000

ROOM_BYTES = 30_000_000
"""What a bomb may take beyond a file of one row: a line, its cells, and luck."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that has ended."""

    code: int
    said: str
    peak_bytes: int


Load = Callable[[Path], Ended]


@pytest.fixture
def load(worker_url: str, bare_environment: dict[str, str], facts: Facts, tmp_path: Path) -> Load:
    """Load a file with the installed command; measure its memory."""
    facts.organisation()
    environment = bare_environment | {"CERTJOB_DATABASE_URL": worker_url}

    def run(path: Path) -> Ended:
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [installed_command(), "load", path], env=environment, cwd=tmp_path, stdout=said, stderr=said
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            said.seek(0)
            return Ended(code=process.returncode, said=said.read().decode(), peak_bytes=usage.ru_maxrss * 1024)

    return run


@contextlib.contextmanager
def pipe(folder: Path, content: Iterator[bytes]) -> Iterator[Path]:
    """A named pipe that somebody writes into for as long as somebody reads."""
    path = folder / "pipe.csv"
    os.mkfifo(path)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), path.open("wb") as stream:
            for piece in content:
                stream.write(piece)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    yield path
    writer.join(60)
    assert not writer.is_alive()


@pytest.fixture
def usual_peak_bytes(load: Load, tmp_path: Path) -> int:
    """What the command takes for a file of one row."""
    (tmp_path / "small.csv").write_bytes(HEADER + ROW)
    ended = load(tmp_path / "small.csv")
    assert (ended.code, ended.said) == (0, "")
    return ended.peak_bytes


def gigabytes(piece: bytes, number: int = 5) -> Iterator[bytes]:
    return repeat(piece * (1_000_000 // len(piece)), number * GIGABYTE // 1_000_000)


BOMBS: dict[str, tuple[Callable[[], Iterator[bytes]], str]] = {
    "a first line of 5 GB": (lambda: gigabytes(b"x"), "line 1 is longer than 10,000,000 characters"),
    "a third line of 5 GB": (lambda: chain([HEADER, ROW], gigabytes(b"x")), "line 3 is longer than 10,000,000"),
    "a quoted cell of 5 GB": (lambda: chain([HEADER, b'"'], gigabytes(b"x")), "line 2 is longer than 10,000,000"),
    "a million columns": (lambda: iter([b"organisation," * 700_000]), "the line is longer than 262,144 characters"),
    "a row of many million columns": (lambda: chain([HEADER], gigabytes(b",")), "line 2 is longer than 10,000,000"),
    "many columns in a line that is short enough": (lambda: iter([b"," * 200_000]), "200,001 columns, more than 1,000"),
    "5 GB of NUL": (lambda: chain([HEADER, ROW], gigabytes(b"\0")), "line 3 has a NUL character"),
    "a NUL in a cell": (lambda: iter([HEADER, ROW.replace(b"Kari", b"Ka\0ri")]), "line 2 has a NUL character"),
    "5 GB of blanks in a line": (lambda: chain([HEADER], gigabytes(b" ")), "line 2 is longer than"),
    "5 GB of blank lines": (lambda: chain([HEADER, ROW], gigabytes(b"\n")), "1,000,000th blank line in a row"),
    "5 GB of lone carriage returns": (lambda: chain([HEADER], gigabytes(b"\r")), "1,000,000th blank line in a row"),
    "5 GB of bytes that are no text": (lambda: chain([HEADER], gigabytes(b"\xfe\xff")), "line 2 is not UTF-8"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_ends_with_one_clear_line_and_no_more_memory_than_any_file(
    bomb: str, load: Load, usual_peak_bytes: int, facts: Facts, tmp_path: Path
) -> None:
    """Nothing after the limit is read, and nothing of the file is loaded."""
    facts.connection.execute("UPDATE mentors SET portal_visible = false")
    facts.connection.execute("TRUNCATE mentors CASCADE")
    content, sentence = BOMBS[bomb]

    with pipe(tmp_path, content()) as path:
        ended = load(path)

    assert (ended.code, ended.said.count("\n")) == (2, 1), ended.said[:2000]
    assert ended.said.startswith("certjob load: ")
    assert sentence in ended.said
    assert len(ended.said) < 500
    assert ended.peak_bytes < usual_peak_bytes + ROOM_BYTES
    assert facts.rows("SELECT count(*) FROM mentors") == [(0,)]


def test_a_file_of_5_gb_that_takes_no_room_on_the_disk_is_no_text(load: Load, tmp_path: Path) -> None:
    """A hole in a file reads as NUL."""
    path = tmp_path / "sparse.csv"
    path.write_bytes(HEADER)
    os.truncate(path, 5 * GIGABYTE)

    ended = load(path)

    assert ended.code == 2
    assert "line 2 has a NUL character" in ended.said


def test_rows_with_very_many_cells_are_refused_one_by_one_in_flat_memory(
    load: Load, usual_peak_bytes: int, facts: Facts, tmp_path: Path
) -> None:
    """As long as a line is short enough, its row is bad and the others are loaded."""
    wide = b"x," * (LINE_LIMIT // 2 - 10) + b"\n"
    path = tmp_path / "wide.csv"
    path.write_bytes(HEADER + wide * 50 + ROW.replace(b"M1", b"M2"))

    ended = load(path)

    assert ended.code == 3
    assert "lines 2, 3, 4 and 47 more: (line): 131,063 cells where the header has 7" in ended.said
    assert ended.peak_bytes < usual_peak_bytes + ROOM_BYTES
    assert facts.rows("SELECT count(*) FROM mentors WHERE member_no = 'M2'") == [(1,)]


def test_a_quote_that_is_never_closed_costs_a_line_not_the_file(load: Load, facts: Facts, tmp_path: Path) -> None:
    """Every row begins with one: each is given up after a limited number of lines, again and again."""
    path = tmp_path / "quotes.csv"
    path.write_bytes(HEADER + b'"hlf,M1,Kari\n' * 500 + ROW)

    ended = load(path)

    assert ended.code == 3
    assert "lines 2, 3, 4 and 497 more: (line): a quote that opens here is never closed" in ended.said
    assert "500 of 501 rows were rejected; the others were loaded" in ended.said
    assert facts.rows("SELECT member_no FROM mentors") == [("M1",)]


FORM = RosterForm(LoadOptions(), organisation_ids={"hlf": "00000000-0000-4000-8000-000000000001"})

PIECES = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [HEADER, ROW, b'"', b'""', b"\n", b"\r", b"\r\n", b",", b";", b"\t", b"\0", b"sep=;", b"\xef\xbb\xbf"]
    ),
    st.sampled_from([b"=1+1", b"\x1b[2J", b"9" * 5000, b"-infinity", b"2024-02-30", b"hlf", "Å".encode(), b"\xff"]),
)


@given(pieces=st.lists(PIECES, max_size=30), begins_well=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_break_the_reader_or_the_roster(tmp_path: Path, pieces: list[bytes], begins_well: bool) -> None:
    """Whatever the file holds: rows and rejected rows, each once and in order, or one InputError that is short."""
    path = tmp_path / "file.csv"
    path.write_bytes((HEADER if begins_well else b"") + b"".join(pieces))
    lines: list[int] = []
    refused = ""

    try:
        with open_csv(path) as reader:
            roster = FORM.fit(reader.read_header(score=FORM.score).cells, path=path)
            for record in reader:
                assert isinstance(record, Record)
                row, problems = roster.read(record)
                assert row or problems
                lines.append(record.line)
                if isinstance(row, RosterRow):  # what PostgreSQL could not hold
                    assert not any("\0" in text for text in row if isinstance(text, str))
    except InputError as error:
        refused = str(error)

    assert refused.startswith(str(path)) or not refused
    assert len(refused) < len(str(path)) + 2_000
    assert lines == sorted(set(lines))
