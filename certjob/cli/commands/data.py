"""The command that fills the database: load."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from certjob.cli.help import DATA
from certjob.cli.session import Call, Commands

app = Commands()

File = Annotated[
    Path, typer.Argument(metavar="FILE.csv", show_default=False, help="The CSV file; - reads standard input.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what the file would change, and change nothing.")]


@app.command(
    group=DATA,
    short_help="Load or correct mentors and certificates from a CSV file.",
    examples=("certjob load people.csv --dry-run", "certjob load - < people.csv"),
)
def load(call: Call, file: File, *, dry_run: DryRun = False) -> int:
    """Load mentors and certificates from a CSV file; existing rows are updated, never duplicated or deleted.

    The first line names the columns: organisation, member_no, kind, issued_on and expires_on; optionally revoked_on,
    full_name, email, locale, dynamics_contact_id and left_on. Dates are 2026-12-31 or 31.12.2026.

    An empty cell changes nothing. A mentor with a bad line is skipped, the others are loaded, and it exits 3. A file
    without certificate columns corrects mentors who are known. It says how many mentors the next run pauses because of
    this file.
    """
    from certjob.cli.pages import load as page
    from certjob.facts import loading

    with call.session(interruptible=True) as opened:
        report = loading.load(opened.connection, _read(file), today=opened.settings.today, dry_run=dry_run)
    page.show(opened.output, report, json=call.json, dry_run=dry_run)
    return 3 if report.skipped else 0


def _read(file: Path) -> bytes:
    """Return the bytes of a file, or of standard input, up to one more than the limit. Raises InputError."""
    from certjob.errors import InputError
    from certjob.facts.roster import SIZE_LIMIT

    try:
        if str(file) == "-":
            return sys.stdin.buffer.read(SIZE_LIMIT + 1)
        with file.open("rb") as stream:
            return stream.read(SIZE_LIMIT + 1)
    except OSError as error:
        message = f"{file} cannot be read ({error.strerror or type(error).__name__})"
        raise InputError(message, next_step="check the path and its permissions") from error
