"""The commands around the data: load, organisation, demo; db is in schema.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Literal

import typer

from certjob.cli.commands.schema import db_app
from certjob.cli.help import DATA, SETTING_UP
from certjob.cli.session import Call, Commands, set_up_logs

organisation_app = Commands(
    help="The member organisations: their rules, contacts and coordinators.", no_args_is_help=True
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
    date_format: Annotated[
        list[str] | None,
        typer.Option(metavar="FORM", help="How dates are written, such as %m/%d/%Y.  [default: ISO and DD.MM.YYYY]"),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Load all rows, or none when one is bad.")] = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the bad rows there, each with its reason, to be corrected and loaded."
        ),
    ] = None,
) -> int:
    """Load mentors and certificates from a CSV file; existing rows are updated, never duplicated.

    An empty cell changes nothing. Bad rows are reported on stderr, the good ones are loaded, and it exits 3. A file of
    mentors alone, without certificate columns, corrects names, addresses and contact ids.
    """
    from certjob.cli.pages import load as page
    from certjob.facts import loading
    from certjob.facts.cells import DEFAULT_DATE_FORMATS
    from certjob.facts.roster import LoadOptions

    columns, constants = _pairs(column, "--column"), _pairs(set_, "--set")
    with (
        call.session() as opened,
        _rejects_to(rejects, beside=file) as rejects_file,
    ):
        with opened.output.progress() as progress:
            report = loading.load(
                opened.connection,
                file,
                options=LoadOptions(
                    columns=columns,
                    constants=constants,
                    date_formats=tuple(date_format) if date_format else DEFAULT_DATE_FORMATS,
                    strict=strict,
                    today=opened.settings.today,
                ),
                stop=opened.stop,
                on_progress=progress.phase("Loading rows"),
            )
        if rejects_file is not None:
            page.write_rejects(rejects_file, report)
    page.show(opened.output, report, name=file.name, json=call.json, strict=strict)
    return 3 if page.needs_attention(report) else 0


@contextmanager
def _rejects_to(path: Path | None, *, beside: Path) -> Iterator[IO[str] | None]:
    """Open the file of --rejects, which must not be the one that is loaded."""
    from certjob import files
    from certjob.errors import CertjobError, InputError

    if path is None:
        yield None
        return
    if not beside.exists():
        message = f"{beside}: there is no such file"
        raise InputError(message)
    if path.exists() and path.samefile(beside):
        message = f"--rejects {path} is the file that is loaded, and would be overwritten; name another one"
        raise InputError(message)
    try:
        stream = files.create(path)
    except OSError as error:
        message = f"--rejects {path}: {error.strerror}; name a file that can be written"
        raise InputError(message) from error
    try:
        with stream:
            yield stream
    except OSError as error:
        done = "what could be loaded is loaded; make room and load the same file again"
        message = f"--rejects {path}: {error.strerror}; {done}"
        raise CertjobError(message) from error


@organisation_app.command(
    "set",
    short_help="Create an organisation or change it.",
    examples=(
        "certjob organisation set hlf --name HLF --portal dynamics",
        "certjob organisation set hlf --thresholds 90,60,30,14,7,1,-1",
    ),
)
def organisation_set(
    call: Call,
    slug: Annotated[str, typer.Argument(metavar="SLUG", show_default=False, help="Its short name, such as hlf.")],
    *,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its name in messages.  [default: the slug in capitals]")
    ] = None,
    portal: Annotated[
        Literal["dynamics", "none"] | None,
        typer.Option(metavar="dynamics|none", help="Whether its mentors are shown on the portal."),
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            metavar="DAYS,…",
            help="Days before the expiry to remind on, negative = after it; none.  [default: 60,30,14,7,1,-1]",
        ),
    ] = None,
    optional_kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Certificate kind whose expiry does not pause mentors. Repeatable; 'none' clears the list.",
        ),
    ] = None,
    coordinator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'[UUID] NAME <MAIL> [nb|nn|en]'",
            help="A coordinator; UUID = the app's user id, where known. The language is that of the daily mail.",
        ),
    ] = None,
    contact_email: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Where mentors can write to.")] = None,
    contact_phone: Annotated[str | None, typer.Option(metavar="NUMBER", help="Where mentors can call.")] = None,
    renewal_url: Annotated[str | None, typer.Option(metavar="URL", help="Where mentors renew a certificate.")] = None,
) -> int:
    """Create an organisation, or update only the options given."""
    from certjob.cli.terminal import plain
    from certjob.facts import organisations

    with call.session(interruptible=True) as opened:
        change = organisations.set_organisation(
            opened.connection,
            slug,
            name=name,
            portal=portal,
            thresholds=organisations.parse_thresholds(thresholds) if thresholds is not None else None,
            optional_kinds=optional_kind,
            coordinators=coordinator or (),
            contact_email=contact_email,
            contact_phone=contact_phone,
            renewal_url=renewal_url,
        )
    if call.json:
        plain.print_json({"outcome": "ok", "slug": slug, "created": change.created, "changed": change.changed})
    opened.output.line(
        f"{slug}: {'created' if change.created else 'changed' if change.changed else 'nothing to change'}"
    )
    return 0


@organisation_app.command("list", without=("quiet",))
def organisation_list(
    call: Call,
) -> int:
    """List the organisations with their rules."""
    from dataclasses import asdict

    from certjob.cli.terminal import output as console
    from certjob.cli.terminal import plain
    from certjob.facts import organisations

    with call.session(interruptible=True) as opened:
        rows = organisations.list_organisations(opened.connection)
    if call.json:
        plain.print_json({"outcome": "ok", "organisations": [asdict(row) for row in rows]})
        return 0
    headings = ("Slug", "Name", "Portal", "Thresholds", "Optional kinds", "Coordinators", "Mentors")
    console.show_rows(
        opened.output,
        headings,
        [
            (
                row.slug,
                row.name,
                row.portal or "none",
                ",".join(map(str, row.thresholds)) or "none",
                ", ".join(row.optional_kinds),
                ", ".join(row.coordinators),
                f"{row.mentors:,}",
            )
            for row in rows
        ],
    )
    return 0


def demo(call: Call) -> int:
    """Show a few nights in a row on a throw-away database, with a portal that has cold starts and outages."""
    from certjob.cli.demo import show as demonstration
    from certjob.cli.terminal.output import Output

    set_up_logs(verbose=call.verbose)
    return demonstration.show(Output(quiet=False), stop=call.stop)


def _pairs(values: list[str] | None, option: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values or ():
        name, equals, rest = value.partition("=")
        if not equals or not name or name in pairs:
            message = f"{option} takes NAME=VALUE, each name once; got {value!r}."
            raise typer.BadParameter(message)
        pairs[name] = rest
    return pairs


def add_to(app: Commands) -> None:
    """Register the commands, in the order in which --help shows them."""
    app.command(
        group=DATA,
        short_help="Load mentors and certificates from a CSV file.",
        examples=(
            "certjob load roster.csv --rejects rejects.csv",
            "certjob load export.csv --set organisation=hlf --column expires_on='Licence Expires'",
        ),
    )(load)
    app.add_typer(
        organisation_app,
        name="organisation",
        rich_help_panel=DATA,
        short_help="The member organisations: rules, contacts, coordinators.",
    )
    app.add_typer(db_app, name="db", rich_help_panel=SETTING_UP)
    app.command(
        group=SETTING_UP,
        without=("json", "quiet", "env_file"),
        short_help="Show a few nights on a throw-away database.",
    )(demo)
