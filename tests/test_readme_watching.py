"""The examples of the section about watching certjob are what the commands print."""

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time
from prometheus_client.parser import text_string_to_metric_families

from certjob.database import Connection
from certjob.metrics import read_metrics
from tests.command_line import SECRET, run_in_process
from tests.facts import Facts
from tests.nights import night
from tests.portal_answers import error, html
from tests.portal_server import PortalServer
from tests.smtp_server import CERTIFICATE, Mailbox, real_server, server_tls

README = Path(__file__).parent.parent / "README.md"
SECTION = "## Watching certjob"


def examples() -> Iterator[tuple[str, str]]:
    """Each command of the section and the output under it, in which ``…`` stands for what differs."""
    section = README.read_text().partition(SECTION)[2].partition("\n## ")[0]
    for block in section.split("\n    $ ")[1:]:
        command, *rest = block.splitlines()
        lines = [line[4:].rstrip() for line in itertools.takewhile(lambda line: not line or line[:4] == "    ", rest)]
        yield command, "\n".join(lines).strip()


def assert_printed(example: str, printed: str) -> None:
    """Line by line; an ellipsis stands for any text on its line, alone on a line for any lines."""
    pattern = re.escape(example).replace("\n…\\\n", "\n(?:[^\n]*\\\n)*").replace("…", "[^\n]*")
    assert re.fullmatch(pattern, "\n".join(line.rstrip() for line in printed.splitlines()).strip()), printed


@pytest.fixture
def hlf_and_lhl(facts: Facts) -> Facts:
    """One organisation that lacks nothing, and one without a coordinator."""
    hlf = facts.organisation("hlf")
    facts.organisation("lhl", portal=None)
    facts.connection.execute("INSERT INTO coordinators (organisation_id, email) VALUES (%s, 'k@example.org')", (hlf,))
    return facts


def test_the_example_of_check(
    hlf_and_lhl: Facts, database_url: str, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """A function that is not deployed, a login that is refused, a coordinator who is missing."""
    mailbox = Mailbox()
    with (
        PortalServer([html(404)], key=SECRET) as portal,
        real_server(mailbox, tls_context=server_tls(), authenticator=mailbox.authenticate) as server,
        freeze_time("2026-03-10 08:00"),
    ):
        result = run_in_process(
            "check",
            environment=bare_environment
            | {
                "CERTJOB_DATABASE_URL": database_url,
                "CERTJOB_PORTAL_URL": portal.url,
                "CERTJOB_PORTAL_KEY": SECRET,
                "CERTJOB_NOTIFY_URL": f"smtp://localhost:{server.port}",
                "CERTJOB_NOTIFY_USER": "post",
                "CERTJOB_NOTIFY_PASSWORD": SECRET,
                "CERTJOB_MAIL_FROM": "certjob@example.org",
                "SSL_CERT_FILE": str(CERTIFICATE),
            },
            folder=tmp_path,
        )

    assert_printed(dict(examples())["certjob check"], result.stdout.replace(*clock_line(result.stdout)))
    assert result.returncode == 2


def clock_line(printed: str) -> tuple[str, str]:
    """The clock of this machine is frozen and the server's is not: what is said about it, and what else would be."""
    (line,) = (line for line in printed.splitlines() if " clock: " in line)
    return line, "ok    clock: this machine and the database server agree"


def test_the_example_of_status(
    connection: Connection, facts: Facts, database_url: str, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """A night whose delivery met a portal in trouble, and a delivery that was killed."""
    make_status_example(connection, facts)
    now = datetime(2026, 3, 10, 8, 0, tzinfo=ZoneInfo("Europe/Oslo"))

    with freeze_time(now):
        result = run_in_process(
            "status",
            environment=bare_environment | {"CERTJOB_DATABASE_URL": database_url},
            folder=tmp_path,
        )

    printed = re.sub(r", \d[^\n]* ago\n", ", 4 h 50 min ago\n", result.stdout, count=1)
    assert_printed(dict(examples())["certjob status"], printed)


def make_status_example(connection: Connection, facts: Facts) -> None:
    """Everything at the times of the example; the database's own clock is not frozen, so ages follow the real one."""
    organisation = facts.organisation()
    runs = [
        ("run", "2026-03-10 03:10:00+01", "2026-03-10 03:10:12+01", "attention"),
        ("deliver", "2026-03-10 03:15:00+01", None, None),
    ]
    for command, started, finished, outcome in runs:
        connection.execute(
            "INSERT INTO job_runs (id, command, as_of, host, version, started_at, last_seen_at, finished_at, outcome)"
            " VALUES (gen_random_uuid(), %s, '2026-03-10', 'night-1', '0.1.0', %s,"
            " coalesce(%s, timestamptz '2026-03-10 03:20+01'), %s, %s)",
            (command, started, finished, finished, outcome),
        )
    for number, (status, kind, reason) in enumerate(
        (("blocked", "permanent", "the portal answered 404 contact_not_found"), ("pending", "transient", "reset"))
    ):
        mentor = facts.mentor(organisation, member_no=f"M{1001 + number}")
        connection.execute(
            "INSERT INTO portal_sync_events (mentor_id, visible, status, wanted_at, next_attempt_at)"
            " VALUES (%s, false, %s, '2026-03-10 03:10+01', now() + interval '3 hours')",
            (mentor, status),
        )
        connection.execute(
            "INSERT INTO dynamics_sync_failures (mentor_id, visible, kind, attempts, error, created_at)"
            " VALUES (%s, false, %s, 1, %s, '2026-03-10 03:10+01')",
            (mentor, kind, reason),
        )
        facts.certificate(mentor, date(2026, 3, 1))
    connection.execute(
        "INSERT INTO cert_notification_log (mentor_id, threshold_days, cert_id, expires_on, queued_at)"
        " VALUES (%s, 30, gen_random_uuid(), '2026-04-09', '2026-03-10 03:10+01')",
        (mentor,),
    )
    facts.mentor(organisation, member_no="M1003")
    connection.execute("UPDATE mentors SET review_on = '2026-03-11'")


def test_every_command_of_the_section_has_its_test() -> None:
    """A new example needs one."""
    assert {shlex.split(command)[1] for command, _ in examples()} == {"check", "status"}


def test_every_metric_is_in_the_table(connection: Connection, facts: Facts) -> None:
    """And the alert rules ask for none that there is not."""
    facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
    night(connection)
    written = {
        family.name
        for family in text_string_to_metric_families(read_metrics(connection, today=date(2026, 3, 10)).decode())
    }

    section = README.read_text().partition(SECTION)[2].partition("\n## ")[0]
    rows = "\n".join(line for line in section.splitlines() if line.startswith("| `certjob_"))
    assert set(re.findall(r"certjob_[a-z_]+", rows)) == written
    assert set(re.findall(r"certjob_[a-z_]+", section)) == written


def test_the_example_of_a_log_has_the_keys_of_the_log(
    facts: Facts, database_url: str, bare_environment: dict[str, str], tmp_path: Path
) -> None:
    """Line by line: the same event has the same keys, in this order."""
    facts.certified_mentor(facts.organisation(), date(2025, 1, 1))
    with PortalServer(default=error(404, "contact_not_found")) as portal:
        result = run_in_process(
            "run",
            "-v",
            "--log-format=json",
            environment=bare_environment
            | {
                "CERTJOB_DATABASE_URL": database_url,
                "CERTJOB_PORTAL_URL": portal.url,
                "CERTJOB_PORTAL_KEY": portal.key,
            },
            folder=tmp_path,
        )
    written = {line["event"]: line for line in map(json.loads, result.stderr.splitlines())}

    section = README.read_text().partition(SECTION)[2].partition("\n## ")[0]
    examples = [json.loads(line) for line in section.splitlines() if line.startswith('    {"time"')]
    assert [line["event"] for line in examples] == ["event_failed", "attention"]
    for line in examples:
        assert list(line) == list(written[line["event"]])
        assert (line["level"], line["message"]) == (written[line["event"]]["level"], written[line["event"]]["message"])
