"""The command that reads which mails came back."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from certjob.cli.help import EVERY_NIGHT
from certjob.cli.session import Call, Commands, Session
from certjob.errors import UsageError

app = Commands()

STDIN = "-"
TRY_LATER = 75
"""EX_TEMPFAIL of sysexits.h: a mail server keeps what it pipes in, and tries again later."""


@app.command(
    group=EVERY_NIGHT,
    short_help="Read which mails came back.",
    examples=("certjob bounces ~/Maildir", "certjob bounces - < report.eml"),
)
def bounces(
    call: Call,
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A Maildir, an mbox or a file; - is one report on standard input.")
    ] = STDIN,
) -> int:
    """Read delivery reports (RFC 3464) and note which reminders and digests came back; `certjob alerts` shows them.

    What was read in a Maildir is moved from new to cur. With - it exits 75 where the report could not be noted, for
    which a mail server keeps it and tries again.
    """
    import psycopg

    from certjob.cli.terminal import plain
    from certjob.errors import CertjobError, DatabaseUnavailableError

    if path == STDIN and sys.stdin.isatty():
        message = "there is no report on standard input, which is a terminal"
        raise UsageError(message, next_step="name a Maildir, an mbox or a file, or pipe a report in")
    try:
        with call.session() as opened:
            counts = _read(opened, path)
    except (CertjobError, psycopg.Error) as error:
        if path != STDIN:
            raise
        text = f"the database did not note the report ({type(error).__name__}); the mail server keeps it"
        kept = error if isinstance(error, CertjobError) else DatabaseUnavailableError(text)
        kept.exit_code = TRY_LATER
        raise kept from error
    if call.json:
        plain.print_json({"outcome": "ok"} | counts)
    else:
        opened.output.line(", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in counts.items()))
    return 0


def _read(opened: Session, path: str) -> dict[str, int]:
    """Return how many there were, and of which kind."""
    from certjob.mail.bounces import LARGEST_REPORT_OCTETS, Verdict, take_report
    from certjob.mail.mailboxes import read_file, read_mails

    limit = LARGEST_REPORT_OCTETS
    mails = read_file(sys.stdin.buffer, limit=limit) if path == STDIN else read_mails(Path(path), limit=limit)
    found: Counter[Verdict] = Counter()
    for mail in mails:
        opened.stop.check()
        found[take_report(opened.connection, mail)] += 1
    return {"read": found.total(), **{str(verdict): found[verdict] for verdict in Verdict}}
