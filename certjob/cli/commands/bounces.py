"""The command that reads a delivery report."""

import sys

from certjob.cli.help import EVERY_NIGHT
from certjob.cli.session import Call, Commands
from certjob.errors import UsageError

app = Commands()

TRY_LATER = 75
"""EX_TEMPFAIL of sysexits.h: the mail server keeps the report and tries again later."""


@app.command(
    group=EVERY_NIGHT,
    short_help="Read a report about a mail that came back.",
    examples=("certjob bounces < report.eml",),
)
def bounces(call: Call) -> int:
    """Read one delivery report (RFC 3464) on standard input and note that its reminder or digest came back.

    `certjob alerts` shows it. Exits 75 if the report could not be saved: the mail server keeps it and tries again.
    """
    import psycopg

    from certjob.cli.terminal import plain
    from certjob.errors import CertjobError, DatabaseUnavailableError
    from certjob.mail.bounces import LARGEST_REPORT_OCTETS, take_report

    if sys.stdin.isatty():
        message = "there is no report on standard input, which is a terminal"
        raise UsageError(message, next_step="run `certjob bounces < report.eml`")
    try:
        with call.session() as opened:
            report = sys.stdin.buffer.read(LARGEST_REPORT_OCTETS + 1)
            verdict = take_report(opened.connection, report)
    except (CertjobError, psycopg.Error) as error:
        text = f"the report was not saved ({type(error).__name__}); the mail server keeps it and tries again"
        kept = error if isinstance(error, CertjobError) else DatabaseUnavailableError(text)
        kept.exit_code = TRY_LATER
        raise kept from error
    if call.json:
        plain.print_json({"outcome": "ok", "report": verdict})
    else:
        opened.output.line(f"the report: {verdict.replace('_', ' ')}")
    return 0
