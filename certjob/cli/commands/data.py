"""The command that fills the database: load."""

from pathlib import Path
from typing import Annotated

import typer

from certjob.cli.help import DATA
from certjob.cli.session import Call, Commands

app = Commands()

DateFormat = Annotated[
    list[str] | None,
    typer.Option(metavar="FORM", help="How dates are written, such as %m/%d/%Y.  [default: ISO and DD.MM.YYYY]"),
]
Rejects = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write the bad rows there, each with its reason, to be corrected and loaded."),
]


@app.command(
    group=DATA,
    short_help="Load or correct mentors and certificates from a CSV file.",
    examples=(
        "certjob load roster.csv --rejects rejects.csv",
        "certjob load export.csv --set organisation=hlf --column expires_on=Expires",
    ),
)
def load(
    call: Call,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE.csv", show_default=False, help="The CSV file; its first line names the columns."),
    ],
    *,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="Their header for one of our columns: expires_on='Licence Expires'."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OURS=VALUE", help="One value for every row: organisation=hlf."),
    ] = None,
    date_format: DateFormat = None,
    strict: Annotated[bool, typer.Option("--strict", help="Load all rows, or none when one is bad.")] = False,
    rejects: Rejects = None,
) -> int:
    """Load mentors and certificates from a CSV file; existing rows are updated, never duplicated.

    Columns: organisation, member_no, kind, issued_on, expires_on, and as you like full_name, email, locale,
    dynamics_contact_id, revoked_on, left_on.

    An empty cell changes nothing. Bad rows are reported on stderr, the good ones are loaded, and it exits 3. A file of
    mentors alone, without certificate columns, corrects names, addresses and contact IDs.
    """
    from certjob.cli.pages import load as page
    from certjob.facts import loading
    from certjob.facts.cells import DEFAULT_DATE_FORMATS
    from certjob.facts.roster import LoadOptions

    columns, constants = _pairs(column, "--column"), _pairs(set_, "--set")
    if rejects is not None:
        _refuse_rejects(rejects, file=file)
    with call.session() as opened, opened.output.progress() as progress:
        report = loading.load(
            opened.connection,
            file,
            options=LoadOptions(
                columns=columns,
                constants=constants,
                date_formats=date_format or DEFAULT_DATE_FORMATS,
                strict=strict,
                today=opened.settings.today,
            ),
            stop=opened.stop,
            on_read=progress.phase("Reading rows"),
            on_progress=progress.phase("Loading rows"),
        )
    if rejects is not None:
        _write_rejects(rejects, page.rejects_text(report))
    page.show(opened.output, report, name=file.name, json=call.json, strict=strict, rejects=rejects)
    return 3 if page.needs_attention(report) else 0


def _refuse_rejects(path: Path, *, file: Path) -> None:
    """Refuse what cannot be written, or is needed, before anything is loaded. Raises InputError."""
    from certjob import files
    from certjob.errors import InputError

    if path.is_symlink() or (path.exists() and not path.is_file()):
        message = f"--rejects {path} is a symbolic link or no regular file"
        raise InputError(message, next_step="name a regular file")
    if path.exists() and file.exists() and path.samefile(file):
        message = f"--rejects {path} is the file that is loaded, and would be overwritten"
        raise InputError(message, next_step="name another one")
    try:
        files.try_replacing(path, size=1)
    except OSError as error:
        message = f"--rejects {path}: {error.strerror}"
        raise InputError(message, next_step="name a file that can be written") from error


def _write_rejects(path: Path, text: str) -> None:
    """Write them for this user only, in place of an older file, which others may read. Raises CertjobError."""
    from certjob import files
    from certjob.errors import CertjobError

    try:
        files.replace(path, text.encode(), mode=0o600)
    except OSError as error:
        message = f"--rejects {path}: {error.strerror}"
        step = "what can be loaded is loaded; name another file for the rejects, and load the same one again"
        raise CertjobError(message, next_step=step) from error


def _pairs(values: list[str] | None, option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values or ():
        name, equals, rest = value.partition("=")
        if not equals or not name or name in pairs:
            message = f"{option} takes NAME=VALUE, each name once; got {value!r}."
            raise typer.BadParameter(message)
        pairs[name] = rest
    return pairs
