"""Show certjob at work: a bad night, a recovery and a repair, in half a minute.

Each line that begins with `$` is the installed command, started as a person or cron starts it. The database, the mails
and the portal are temporary: the script deletes them at its end.
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
from datetime import date, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from textwrap import indent
from typing import Any, ClassVar
from uuid import NAMESPACE_DNS, uuid5
from zoneinfo import ZoneInfo

CERTJOB = Path(sys.executable).with_name("certjob")
TODAY = datetime.now(ZoneInfo("Europe/Oslo")).date()
VALIDITY = timedelta(days=730)
NAMES = "Astrid Birk Cecilie Dagny Eivind Hedda Iver Jorunn Ketil Liv Magne Nora Odd Pernille".split()  # noqa: SIM905
SOON = {"M1001": TODAY - timedelta(days=1), "M1002": TODAY + timedelta(days=7)}  # all others have a year or longer
Row = dict[str, str]


class Portal(BaseHTTPRequestHandler):
    """A stand-in for the Edge Function and the portal behind it: POST shows or hides a contact, GET lists them."""

    visible: ClassVar[set[str]] = set()
    until: ClassVar[dict[str, str | None]] = {}  # the date column
    is_down: ClassVar = False

    @classmethod
    def shows(cls, contact: str, day: date) -> bool:
        """Apply the filter of the portal's view."""
        return contact in cls.visible and str(day) <= (cls.until.get(contact) or "2099-12-31")

    def do_POST(self) -> None:
        wish = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if Portal.is_down:
            return self.send(502, {"error": {"code": "dynamics_unavailable", "message": "Dynamics does not answer"}})
        (Portal.visible.add if wish["visible"] else Portal.visible.discard)(wish["contact_id"])
        Portal.until[wish["contact_id"]] = wish["visible_until"]
        return self.send(200, wish | {"dates": True})

    def do_GET(self) -> None:
        contacts = [{"contact_id": each, "visible_until": Portal.until.get(each)} for each in sorted(Portal.visible)]
        self.send(200, {"contacts": contacts, "next": None, "dates": True})

    def send(self, status: int, document: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


def make_row(member_no: str, name: str, last_day: date) -> Row:
    """Return a mentor with a certificate, as a row of a CSV file."""
    return {
        "organisation": "hlf",
        "member_no": member_no,
        "full_name": f"{name} Nordmann",
        "email": f"{member_no.lower()}@example.org",
        "locale": "en",
        "dynamics_contact_id": str(uuid5(NAMESPACE_DNS, f"{member_no}.example.org")),
        "kind": "likeperson",
        "issued_on": str(last_day - VALIDITY),
        "expires_on": str(last_day),
        "revoked_on": "",
    }


class Demo:
    """A temporary folder for the database, the CSV files and the mails, and the environment of the commands."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CERTJOB_")}
        self.environment = inherited | {
            "CERTJOB_DATABASE_URL": "embedded",
            "CERTJOB_NOTIFY_URL": f"maildir:{folder}/mail",
            "CERTJOB_MAIL_FROM": "HLF <likeperson@hlf.example>",
            "CERTJOB_PORTAL_URL": f"http://127.0.0.1:{port}/functions/v1/hlf-dynamics-sync",
            "CERTJOB_PORTAL_KEY": "demo-key",
            "XDG_DATA_HOME": str(folder),  # for the embedded database
        }

    def certjob(self, arguments: str) -> None:
        """Run a command; print it and its exit code."""
        print(f"\n$ certjob {arguments}", flush=True)
        with subprocess.Popen([CERTJOB, *arguments.split()], env=self.environment, cwd=self.folder) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                process.wait()  # it got the signal, too
                raise
        print(f"exit code: {code}")

    def load(self, *rows: Row) -> None:
        """Load a CSV file with these rows."""
        with (self.folder / "mentors.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        self.certjob("load mentors.csv")

    def compare(self, rows: list[Row], *, hidden: list[Row]) -> None:
        """Print how many contacts the portal shows or hides wrongly, if these should be hidden."""
        everyone, out = ({row["dynamics_contact_id"] for row in people} for people in (rows, hidden))
        shown, missing = len(Portal.visible & out), len(everyone - out - Portal.visible)
        print(f"The portal: {shown} shown wrongly, {missing} hidden wrongly.")


def tell(title: str, text: str) -> None:
    print(f"\n== {title}\n\n{text}")


def show(demo: Demo, rows: list[Row]) -> None:
    """Tell the story."""
    expired, revoked = rows[0], rows[5:8]

    tell("Set up", f"A temporary PostgreSQL, one organisation with {len(rows)} mentors, and a portal that shows all.")
    demo.certjob("db migrate")
    demo.certjob(
        "organisation set hlf --portal dynamics --contact-email likeperson@hlf.example"
        " --renewal-url https://hlf.example/course"
    )
    demo.load(*rows)

    tell("A good night", "The certificate of M1001 ended yesterday. The one of M1002 ends in a week. First the plan:")
    demo.certjob("run --dry-run")
    demo.certjob("run")
    demo.compare(rows, hidden=[expired])
    for path in demo.folder.glob("mail/new/*"):
        mail = message_from_bytes(path.read_bytes(), policy=default)
        if "m1002@" in mail["To"] and (body := mail.get_body(("plain",))):
            print(indent(f"\nSubject: {mail['Subject']}\n\n{body.get_content()}", "  | ", lambda _line: True))

    tell("A bad night", "Someone revokes three certificates, and the portal is down.")
    demo.load(*(row | {"revoked_on": str(TODAY)} for row in revoked))
    Portal.is_down = True
    demo.certjob("run")
    demo.compare(rows, hidden=[expired, *revoked])
    print("certjob has paused the three mentors. The portal does not know, so they are alerts:")
    demo.certjob("alerts")

    tell("The recovery", "The portal is back. The next job would retry; an operator does it now.")
    Portal.is_down = False
    demo.certjob("alerts --retry-all")
    demo.compare(rows, hidden=[expired, *revoked])

    tell("A renewal", "M1001 took the course again. The next run lifts the pause and shows the mentor.")
    demo.load(expired | {"issued_on": str(TODAY), "expires_on": str(TODAY + VALIDITY)})
    demo.certjob("run")
    demo.compare(rows, hidden=revoked)
    demo.certjob("explain M1001")

    tell("The repair", "Someone edits the portal: it shows a revoked mentor and hides a certified one.")
    Portal.visible ^= {rows[5]["dynamics_contact_id"], rows[10]["dynamics_contact_id"]}
    demo.compare(rows, hidden=revoked)
    demo.certjob("reconcile")
    demo.compare(rows, hidden=revoked)

    tell(
        "Without certjob",
        "Nothing runs for eight days, and M1002 does not renew. The portal still hides M1002 on time:",
    )
    for day in (SOON["M1002"], SOON["M1002"] + timedelta(days=1)):
        is_shown = Portal.shows(rows[1]["dynamics_contact_id"], day)
        print(f"{day}: the portal {'shows' if is_shown else 'hides'} M1002.")


def main() -> int:
    """Show the demo; return 0, or 1 after Ctrl-C."""
    days = (TODAY + timedelta(days=330 + 30 * number) for number in range(len(NAMES)))
    rows = [make_row(no := f"M{number}", name, SOON.get(no, next(days))) for number, name in enumerate(NAMES, 1001)]
    Portal.visible |= {row["dynamics_contact_id"] for row in rows}
    with (
        tempfile.TemporaryDirectory(prefix="certjob-demo-", ignore_cleanup_errors=True) as folder,
        ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server,
    ):
        Path(folder).chmod(0o755)  # root's PostgreSQL runs as another user
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            show(Demo(Path(folder), server.server_port), rows)
        except KeyboardInterrupt:
            print("\nStopped. The temporary database and its files are deleted.")
            return 1
    print("\nThe temporary database and its files are deleted. The README's five minutes use a database of your own.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
